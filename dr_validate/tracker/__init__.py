"""Where Reports go: `wandb`, `tensorboard`, `trackio`, `none`; `local`: reports.jsonl, and what all but the first share.

`validation_run`, `session`: W&B runs, and the SDK; `rows`: what they hold; `dashboard`: a saved view; `on_best`: of a new best
checkpoint, `watch.on_best` and `store.keep_best`.
"""
