"""Checkpoints that are deleted while they wait: told of once, whoever was there to see it."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dr_validate.config import Run, Settings, Watch
from dr_validate.source.folder import FolderSource
from dr_validate.vanished import Vanished
from tests.processes import LIMIT_S, wait_for

WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def checkpoints(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> Path:
    for number in (1, 2, 3):
        write_checkpoint(tmp_path / "checkpoints" / f"checkpoint-{number * 100}", seed=number, step=number * 100)
    return tmp_path / "checkpoints"


def test_a_checkpoint_deleted_while_it_waits_is_reported_as_skipped_once(
    dr_validate: Any, checkpoints: Path, collection: Path
) -> None:
    arguments = [f"source.path={checkpoints}", "dataset=beir", f"dataset.path={collection}", "sampler=full", "tracker=none"]
    arguments += ["encoder.pooling=mean", "encoder.normalize=true", "watch.poll_s=0.2"]
    process = dr_validate.start(*arguments)
    try:
        wait_for(lambda: bool(list(dr_validate.folder.glob(".dr_validate/listed/*.json"))))
        shutil.rmtree(checkpoints / "checkpoint-100")  # the last in turn
        wait_for(lambda: len(dr_validate.reports()) == 3)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, said
    found = {r["checkpoint"]["step"]: (r["status"], r["error"]) for r in dr_validate.reports()}
    assert found == {300: ("done", None), 200: ("done", None), 100: ("skipped", "deleted after it was listed")}
    assert said.count("skipped checkpoint-100: deleted after it was listed") == 1


def looked(checkpoints: Path, state_dir: Path) -> tuple[Vanished, FolderSource]:
    """As a start of the watcher sees it."""
    source = FolderSource(path=checkpoints)
    nothing: Any = dict.fromkeys(("store", "dataset", "encoder", "sampler", "engine", "index", "fidelity", "tracker"), None)
    run = Run(settings=Settings(state_dir=state_dir), watch=Watch(), source=source, raw={"source": {"path": "p"}}, **nothing)
    return Vanished(run, "s1"), source


def test_what_vanished_while_nobody_looked_is_known_after_a_restart(checkpoints: Path, tmp_path: Path) -> None:
    vanished, source = looked(checkpoints, tmp_path / "state")
    listing = source.list(tmp_path / "state")
    assert vanished.since_last_look(listing, []) == []
    vanished.remember(listing.checkpoints)
    done = listing.checkpoints[1].digest  # since then; what becomes of it now is nobody's concern
    for name in ("checkpoint-100", "checkpoint-200"):
        shutil.rmtree(checkpoints / name)
    vanished, source = looked(checkpoints, tmp_path / "state")
    listing = source.list(tmp_path / "state")
    (gone,) = vanished.since_last_look(listing, [done])
    assert (gone.name, gone.step) == ("checkpoint-100", 100)
    vanished.remember(listing.checkpoints)
    assert looked(checkpoints, tmp_path / "state")[0].since_last_look(listing, []) == []


def test_what_is_there_but_not_listed_or_half_deleted_has_not_vanished(checkpoints: Path, tmp_path: Path) -> None:
    vanished, source = looked(checkpoints, tmp_path / "state")
    listing = source.list(tmp_path / "state")
    vanished.remember(listing.checkpoints)
    (checkpoints / "checkpoint-100" / "model.safetensors").unlink()
    (checkpoints / "checkpoint-200" / "config.json").write_text("{ }")  # other content under the same name
    listing = source.list(tmp_path / "state")
    assert [part.name for part in listing.incomplete] == ["checkpoint-100"]
    assert [one.name for one in listing.checkpoints] == ["checkpoint-200", "checkpoint-300"]
    assert vanished.since_last_look(listing, []) == []
    shutil.rmtree(checkpoints / "checkpoint-100")
    assert [one.name for one in vanished.since_last_look(source.list(tmp_path / "state"), [])] == ["checkpoint-100"]


def test_a_damaged_memory_is_an_empty_one(checkpoints: Path, tmp_path: Path) -> None:
    vanished, source = looked(checkpoints, tmp_path / "state")
    vanished.remember(source.list(tmp_path / "state").checkpoints)
    (memory,) = (tmp_path / "state" / "listed").iterdir()
    memory.write_text('[{"name": "half')
    shutil.rmtree(checkpoints)
    assert looked(checkpoints, tmp_path / "state")[0].since_last_look(source.list(tmp_path / "state"), []) == []
