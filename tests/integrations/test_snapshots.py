"""Weights without a save: what a snapshot holds, when it is not taken, and a training that is validated by nothing else."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dr_validate.errors import ConfigError
from dr_validate.integrations.publish import Snapshots, check_room_for_snapshots
from dr_validate.integrations.transformers import AsyncValidation
from tests.integrations.tiny import STATED, Hold, learner, same_weights, saved_steps, told
from tests.processes import wait_for

CONTRACT = {"pooling": "mean", "normalize": True}


def fill(disk: Path) -> None:
    with pytest.raises(OSError), (disk / "ballast").open("wb", buffering=0) as stream:
        while stream.write(b"x" * 4096):
            pass


def test_a_snapshot_holds_the_weights_of_its_step_whatever_the_training_does_next(bert: Any, tmp_path: Path) -> None:
    model, tokenizer = bert
    snapshots = Snapshots(model, tmp_path / "snapshots", tokenizer, CONTRACT)
    for step in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(step)
        expected = {name: one.clone() for name, one in model.state_dict().items()}
        snapshot = snapshots.take(step, wait=True)
        assert snapshot is not None
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        snapshot.written.wait()
        assert snapshot.folder == tmp_path / "snapshots" / f"checkpoint-{step}"
        saved = load_file(snapshot.folder / "model.safetensors")
        assert all(torch.equal(one, expected[name]) for name, one in saved.items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_of_a_peft_model_the_adapter_alone_is_copied(bert: Any, tmp_path: Path) -> None:
    import peft

    model = peft.get_peft_model(bert[0], peft.LoraConfig(r=2, target_modules=["query", "value"]))
    snapshots = Snapshots(model, tmp_path / "snapshots", bert[1], CONTRACT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    snapshot = snapshots.take(1)
    assert snapshot is not None
    snapshot.written.wait()
    assert snapshot.folder is not None
    assert not (snapshot.folder / "model.safetensors").exists()
    saved = load_file(snapshot.folder / "adapter_model.safetensors")
    mine = {name.replace(".default", ""): one for name, one in model.named_parameters() if "lora" in name}
    assert saved.keys() == mine.keys()
    assert all(torch.equal(one, mine[name]) for name, one in saved.items())


def test_a_full_disk_costs_a_snapshot_and_one_line_and_the_next_one_is_taken(
    bert: Any, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots = Snapshots(bert[0], small_disk / "snapshots", bert[1], CONTRACT)
    fill(small_disk)
    with caplog.at_level(logging.WARNING):
        snapshot = snapshots.take(1, wait=True)
        assert snapshot is not None
        snapshot.written.wait()
    assert snapshot.folder is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no snapshot of step 1" in line
    assert "0 bytes free" in line
    (small_disk / "ballast").unlink()
    snapshot = snapshots.take(2, wait=True)
    assert snapshot is not None
    snapshot.written.wait()
    assert [path.name for path in (small_disk / "snapshots").iterdir()] == ["checkpoint-2"]


def test_too_little_room_is_refused_before_the_training_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"snapshot_folder: .* bytes free, and 3 snapshots .* --shm-size"):
        check_room_for_snapshots(2**60, tmp_path)


@pytest.mark.usefixtures("warm_watcher")
def test_a_training_without_saves_is_validated_from_its_first_weights_to_its_last_and_the_best_is_kept(
    bert: Any, harder: Path, tmp_path: Path
) -> None:
    trainer = learner(bert, harder, tmp_path / "out", max_steps=25, save_steps=1000, eval_steps=1000)
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def remember(step: int) -> None:
        weights[step] = {name: one.clone() for name, one in bert[0].state_dict().items()}
        if step == 11:  # the results come while there is training left
            wait_for(lambda: len(validation.results) == 2)

    trainer.add_callback(Hold(remember))
    validation = AsyncValidation(
        [*STATED, f"dataset.path={harder}"], every=10, backpressure="all", snapshot_folder=tmp_path / "memory"
    ).attach(trainer)
    trainer.train()
    values = told(trainer.state)
    assert sorted(values) == [0, 10, 20, 25]
    best = trainer.state.best_global_step
    assert best == max(values, key=lambda step: (values[step], -step)) > 0
    assert saved_steps(tmp_path / "out") == [25]  # the Trainer's own last one
    assert same_weights(trainer.model, trainer.state.best_model_checkpoint)
    assert all(torch.equal(one, weights[best][name]) for name, one in bert[0].state_dict().items())
    assert not list((tmp_path / "memory").iterdir())
