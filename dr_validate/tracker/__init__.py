"""Where Reports go: `wandb`, `tensorboard`, `trackio`, `none`; `local`: reports.jsonl, and what all but the first share.

`validation_run`, `session`: W&B runs, and the SDK; `rows`: what they hold, and when to alert; `dashboard`: a saved view.
"""
