"""Where Reports go: `wandb`, `tensorboard`, `trackio`, `jsonl`, `none`; `local`: what all but the first share.

`validation_run`, `run_target`, `summary_run`: W&B runs; `rows`, `tables`, `lineage`: what they hold; `session`: the SDK;
`arrivals`: what the server is known to have; `dashboard`: a saved view of them;
`on_best`: of a new best checkpoint, `watch.on_best` and `store.keep_best`.
"""
