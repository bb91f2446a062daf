"""What is said at the end of reports that a tracker is not known to have."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dr_validate.config import Run, Settings, Watch
from dr_validate.ledger.ledger import Ledger as LedgerFile
from dr_validate.source.folder import FolderSource
from dr_validate.stages import Tracked, TrackerRun
from dr_validate.store.checkpoints import CheckpointStore
from dr_validate.tracker.none import NoTracker
from dr_validate.tracker.wandb import WandbTracker
from dr_validate.values import Checkpoint
from dr_validate.watcher.delivery import Delivery, TrackerQueue
from tests.factories import report
from tests.processes import LIMIT_S


class Tracker:
    """One that never has anything."""

    def __init__(self, *, is_remote: bool) -> None:
        self.is_remote = is_remote

    def deliver(self, *args: Any) -> None:
        pass

    def settle(self, report: Any) -> bool:
        return False

    def close(self, timeout_s: float) -> None:
        pass


class Ledger:
    def undelivered(self, name: str) -> list[tuple[int, Any]]:
        return [(1, None)]


@pytest.mark.parametrize(("is_remote", "level"), [(True, logging.WARNING), (False, logging.INFO)])
def test_only_what_can_arrive_is_missed(is_remote: bool, level: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dr_validate")
    ledger: Any = Ledger()
    TrackerQueue("wandb", Tracker(is_remote=is_remote), ledger).close(1.0)
    (record,) = caplog.records
    assert record.levelno == level
    assert ("known to have arrived" in record.message) is is_remote


def test_a_round_that_hung_until_the_end_does_nothing_after_it() -> None:
    class Hangs(Tracker):
        def deliver(self, *args: Any) -> None:
            done.append("deliver")
            queue.close(0.0)
            done.clear()  # with what the end itself has done

        def settle(self, report: Any) -> bool:
            done.append("settle")
            return False

    done: list[str] = []
    delivery: Any = Ledger()
    delivery.ledger = SimpleNamespace(reports=lambda spec: [])
    delivery.undelivered = lambda name: [(number, report()) for number in (1, 2)]
    queue = TrackerQueue("wandb", Hangs(is_remote=True), delivery)
    assert not queue.offer_all()
    assert done == []


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_an_offline_run_has_no_server(mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    about: dict[str, Any] = {"training_run": "t", "spec": "s", "dataset": "d", "sampler": "full", "config": {}}
    assert WandbTracker(mode=mode).start(Tracked(state_dir=tmp_path, **about)).is_remote is (mode == "online")


class Place:
    """A source whose checkpoints are of one file."""

    training_run = "t"

    def identity(self) -> dict[str, str]:
        return {"path": "somewhere"}

    def fetch(self, one: Checkpoint, into: Path) -> None:
        (into / "weights").write_text(one.digest)


NAMES = {"training_run": "t", "spec": "s1", "full_spec": "f", "dataset": "vaswani", "sampler": "random", "device": "cpu"}


def run_of(state_dir: Path, source: Any, store: Any) -> Run:
    rest: Any = dict.fromkeys(("dataset", "encoder", "sampler", "engine", "index", "fidelity"))
    return Run(
        settings=Settings(state_dir=state_dir),
        watch=Watch(exit_timeout_s=LIMIT_S),
        source=source,
        raw={},
        **{"store": store, "tracker": NoTracker(), **rest},
    )


@pytest.mark.parametrize("name", ["cold", None])
def test_trackers_are_told_where_the_checkpoints_of_a_named_training_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    told: list[Tracked] = []
    really = NoTracker.start

    def start(tracker: NoTracker, about: Tracked) -> TrackerRun:
        told.append(about)
        return really(tracker, about)

    monkeypatch.setattr(NoTracker, "start", start)
    run = run_of(tmp_path, FolderSource(path=tmp_path / "cold", name=name), CheckpointStore())
    with LedgerFile(tmp_path / "ledger.db") as ledger, Delivery(run, ledger, NAMES, lambda: "2026-11-21T03:15:10Z"):
        pass
    assert [about.folder for about in told] == [str(tmp_path / "cold") if name else ""]


def test_the_best_is_kept_though_another_has_taken_the_place_of_its_copy(tmp_path: Path) -> None:
    run = run_of(tmp_path, Place(), CheckpointStore(keep_best=tmp_path / "kept"))
    with LedgerFile(tmp_path / "ledger.db") as ledger:
        ledger.register_spec("s1", NAMES, "2026-11-21T03:00:00Z")
        with Delivery(run, ledger, NAMES, lambda: "2026-11-21T03:15:10Z") as delivery:
            for step in (300, 200, 100, 400):  # the value is the step's
                ledger.finish(report(step))
                delivery.deliver()
        assert ledger.undelivered("keep_best:s1", ["s1"]) == []
    assert [path.name for path in (tmp_path / "kept").glob("check*")] == ["checkpoint-400-v3"]
    assert (tmp_path / "kept" / "best" / "weights").read_text() == "sha256:0190"
