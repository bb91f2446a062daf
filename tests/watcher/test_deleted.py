"""Checkpoints that are deleted while they wait: told of once, whoever was there to see it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dr_validate.config import Run, Settings, Watch
from dr_validate.source.folder import FolderSource
from dr_validate.values import Listing
from dr_validate.watcher import schedule
from dr_validate.watcher.schedule import NEVER_SEEN, Deleted, never_seen
from tests.processes import wait_for

WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def checkpoints(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> Path:
    for number in (1, 2, 3):
        write_checkpoint(tmp_path / "checkpoints" / f"checkpoint-{number * 100}", seed=number, step=number * 100)
    return tmp_path / "checkpoints"


def looked(checkpoints: Path, state_dir: Path, **options: Any) -> tuple[Deleted, FolderSource]:
    """As a start of the watcher sees it."""
    source = FolderSource(path=checkpoints)
    nothing: Any = dict.fromkeys(("store", "dataset", "encoder", "sampler", "engine", "index", "fidelity", "tracker"), None)
    run = Run(settings=Settings(state_dir=state_dir), watch=Watch(), source=source, raw={"source": {"path": "p"}}, **nothing)
    return Deleted(run, "s1", options.get("reason", lambda checkpoint: None)), source


def test_what_was_deleted_while_nobody_looked_is_known_after_a_restart(checkpoints: Path, tmp_path: Path) -> None:
    deleted, source = looked(checkpoints, tmp_path / "state")
    listing = source.list(tmp_path / "state")
    assert deleted.since_last_poll(listing, []) == []
    deleted.remember(listing.checkpoints)
    done = listing.checkpoints[1].digest  # since then; what becomes of it now is nobody's concern
    for name in ("checkpoint-100", "checkpoint-200"):
        shutil.rmtree(checkpoints / name)
    deleted, source = looked(checkpoints, tmp_path / "state")
    listing = source.list(tmp_path / "state")
    ((gone, reason),) = deleted.since_last_poll(listing, [done])
    assert (gone.name, gone.step, reason) == ("checkpoint-100", 100, "deleted after it was listed")
    deleted.remember(listing.checkpoints)
    assert looked(checkpoints, tmp_path / "state")[0].since_last_poll(listing, []) == []


def test_why_there_was_no_copy_is_said_where_it_is_known(checkpoints: Path, tmp_path: Path) -> None:
    deleted, source = looked(checkpoints, tmp_path / "state", reason=lambda checkpoint: f"no room for {checkpoint.name}")
    deleted.remember(source.list(tmp_path / "state").checkpoints)
    shutil.rmtree(checkpoints / "checkpoint-100")
    found = deleted.since_last_poll(source.list(tmp_path / "state"), [])
    assert [reason for _, reason in found] == ["no room for checkpoint-100"]


def test_what_there_is_a_copy_of_was_not_deleted(checkpoints: Path, tmp_path: Path) -> None:
    deleted, source = looked(checkpoints, tmp_path / "state")
    listing = source.list(tmp_path / "state")
    deleted.remember(listing.checkpoints)
    shutil.rmtree(checkpoints)
    assert deleted.since_last_poll(schedule.union(Listing(), listing.checkpoints[:2]), [listing.checkpoints[2].digest]) == []


def test_what_is_there_but_not_listed_or_half_deleted_was_not_deleted(checkpoints: Path, tmp_path: Path) -> None:
    deleted, source = looked(checkpoints, tmp_path / "state")
    listing = source.list(tmp_path / "state")
    deleted.remember(listing.checkpoints)
    (checkpoints / "checkpoint-100" / "model.safetensors").unlink()
    (checkpoints / "checkpoint-200" / "config.json").write_text("{ }")  # other content under the same name
    listing = source.list(tmp_path / "state")
    assert [part.name for part in listing.incomplete] == ["checkpoint-100"]
    assert [one.name for one in listing.checkpoints] == ["checkpoint-200", "checkpoint-300"]
    assert deleted.since_last_poll(listing, []) == []
    shutil.rmtree(checkpoints / "checkpoint-100")
    assert [one.name for one, _ in deleted.since_last_poll(source.list(tmp_path / "state"), [])] == ["checkpoint-100"]


def test_a_damaged_memory_is_an_empty_one(checkpoints: Path, tmp_path: Path) -> None:
    deleted, source = looked(checkpoints, tmp_path / "state")
    deleted.remember(source.list(tmp_path / "state").checkpoints)
    (memory,) = (tmp_path / "state" / "listed").iterdir()
    memory.write_text('[{"name": "half')
    shutil.rmtree(checkpoints)
    assert looked(checkpoints, tmp_path / "state")[0].since_last_poll(source.list(tmp_path / "state"), []) == []


def saved_every(save_steps: int, checkpoints: Path) -> None:
    for folder in checkpoints.iterdir():
        step = int(folder.name.partition("-")[2] or 251)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "save_steps": save_steps}))


def test_a_step_that_was_saved_and_never_seen_is_known_by_the_steps_around_it(checkpoints: Path, tmp_path: Path) -> None:
    source = FolderSource(path=checkpoints)
    saved_every(100, checkpoints)
    assert never_seen(source.list(tmp_path / "state"), {}) == []
    shutil.rmtree(checkpoints / "checkpoint-100")  # has its Report
    (checkpoints / "checkpoint-300").rename(checkpoints / "checkpoint-600")
    saved_every(100, checkpoints)
    found = never_seen(source.list(tmp_path / "state"), {"checkpoint-100": 100, "checkpoint-300": 300})
    assert [(part.name, part.step, part.reason) for part in found] == [
        ("checkpoint-400", 400, NEVER_SEEN),
        ("checkpoint-500", 500, NEVER_SEEN),
    ]


def test_a_final_model_and_the_last_step_of_a_training_make_no_holes(checkpoints: Path, tmp_path: Path) -> None:
    saved_every(100, checkpoints)
    (checkpoints / "checkpoint-300").rename(checkpoints / "checkpoint-250")
    shutil.copytree(checkpoints / "checkpoint-250", checkpoints / "final")
    saved_every(100, checkpoints)
    assert never_seen(FolderSource(path=checkpoints).list(tmp_path / "state"), {}) == []


def test_a_trainer_that_saves_by_another_rule_has_no_holes(checkpoints: Path, tmp_path: Path) -> None:
    (checkpoints / "checkpoint-300").rename(checkpoints / "checkpoint-939")
    saved_every(500, checkpoints)  # save_strategy=epoch leaves the default of save_steps
    assert never_seen(FolderSource(path=checkpoints).list(tmp_path / "state"), {}) == []


def test_a_rotating_trainer_loses_nothing_to_a_slow_validation(
    dr_validate: Any, checkpoints: Path, collection: Path, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    """As with save_total_limit=2: the watcher is killed in the middle, and all is over when the first one is validated."""
    arguments = [f"source.path={checkpoints}", "dataset=beir", f"dataset.path={collection}", "tracker=none", "watch.poll_s=0.1"]
    arguments += ["encoder.pooling=mean", "encoder.normalize=true", "metrics=[mrr@10]"]
    (checkpoints / "checkpoint-300").rename(tmp_path / "checkpoint-300")
    process = dr_validate.start(*arguments, "sampler=full")
    copies = dr_validate.folder / ".dr_validate" / "checkpoints"
    wait_for(lambda: len(list(copies.glob("sha256-*"))) == 2)
    shutil.rmtree(checkpoints / "checkpoint-100")
    (tmp_path / "checkpoint-300").rename(checkpoints / "checkpoint-300")
    wait_for(lambda: len(list(copies.glob("sha256-*"))) == 3)
    process.kill()
    process.communicate()
    shutil.rmtree(checkpoints)
    assert dr_validate(*arguments, "sampler=full", "watch.mode=once").returncode == 0
    assert {(r["checkpoint"]["step"], r["status"]) for r in dr_validate.reports()} == {(n, "done") for n in (100, 200, 300)}
    hashes = [r["checkpoint"]["weights_sha256"] for r in dr_validate.reports()]
    assert len(set(hashes)) == 3 and all(len(one) == 64 for one in hashes)
    more = dr_validate(*arguments, "sampler=random", "sampler.fraction=0.6", "fidelity.baseline=always", "watch.mode=once")
    assert more.returncode == 0, more.stderr  # a day later, with another sampler
    assert sorted(r["checkpoint"]["step"] for r in dr_validate.reports() if r["sampler"] == "random") == [100, 200, 300]
    assert "over 3 checkpoints" in more.stdout
    said = dr_validate("task=status", *arguments).stdout
    assert "no watcher is running" in said and "running " not in said.replace("no watcher is running", "")
