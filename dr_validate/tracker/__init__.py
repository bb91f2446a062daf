"""Where Reports go: `wandb`, `tensorboard`, `trackio`, `jsonl`, `none`; `local`: what all but the first share.

`validation_run`, `run_target`: W&B runs; `rows`, `lineage`: what they hold; `session`: the SDK; `dashboard`: a saved view;
`on_best`: of a new best checkpoint, `watch.on_best` and `store.keep_best`.
"""
