"""A transformers Trainer with a watcher beside it: real processes, tiny models."""

from pathlib import Path
from typing import Any

from dr_validate.integrations.transformers import AsyncValidation
from tests.integrations.tiny import STATED, learner, same_weights, told


def test_the_best_by_the_watcher_is_loaded_and_the_losses_are_those_of_a_training_without(
    bert: Any, harder: Path, tmp_path: Path
) -> None:
    trainer = learner(bert, harder, tmp_path / "out")
    AsyncValidation([*STATED, f"dataset.path={harder}"], backpressure="all").attach(trainer)
    trainer.train()
    values = told(trainer.state)
    print(values, trainer.state.best_global_step, trainer.state.log_history[-1])
    assert sorted(values) == [10, 20, 30, 40, 50, 60]
    assert trainer.state.best_global_step == max(values, key=lambda step: (values[step], -step))
    assert same_weights(trainer.model, trainer.state.best_model_checkpoint)
