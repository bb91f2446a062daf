"""Checkpoints as they appear: `folder` (also which files of it are copied, and its step) and `wandb` (by `wandb_client/`).

`completeness`: what a complete checkpoint holds, and whether its files are whole; `remembered`: what was read of files that
have not changed. A version in W&B is checked twice: by the names in its manifest (`wandb_client/versions`) before anything is
fetched, and by `completeness` once its files are here.
"""
