"""Checkpoints as they appear: `folder` and `wandb` (by `wandb_client/`).

`completeness`: what a complete checkpoint holds; `wanted`, `walk`: its files; `steps`: its training step; `safetensors`: is
a file whole; `remembered`: what was read of files that have not changed.
"""
