"""What a training imports: `publish` for any loop, `transformers.AsyncValidation` for a transformers Trainer.

The training's process validates nothing: `child` starts `python -m dr_validate` beside it and reads the ledger; `checks`: what
is refused; `publish` also writes weights without a save; `checkpoints`: which of them wait, and which is the best.
"""
