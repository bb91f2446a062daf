"""What is done, and said, at the end about reports that a tracker is not known to have, and at the next start."""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dr_validate.config import Run, Settings, Watch
from dr_validate.ledger.ledger import Ledger as LedgerFile
from dr_validate.source.folder import FolderSource
from dr_validate.stages import Tracked, TrackerRun
from dr_validate.store.checkpoints import CheckpointStore
from dr_validate.tracker.local import LocalRun, TrackedRow
from dr_validate.tracker.none import NoTracker
from dr_validate.tracker.rows import STEP
from dr_validate.tracker.wandb import WandbTracker
from dr_validate.values import Checkpoint
from dr_validate.watcher.delivery import Delivery, TrackerQueue
from tests.factories import report
from tests.processes import LIMIT_S, wait_for


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


NOW = "2026-11-21T03:15:10Z"
SHORT = {"exit_timeout_s": 0.1}
NAMES = {"training_run": "t", "spec": "s1", "full_spec": "f", "dataset": "vaswani", "sampler": "random", "device": "cpu"}


def run_of(state_dir: Path, source: Any, store: Any, **watch: Any) -> Run:
    rest: Any = dict.fromkeys(("dataset", "encoder", "sampler", "engine", "index", "fidelity"))
    return Run(
        settings=Settings(state_dir=state_dir),
        watch=Watch(**{"exit_timeout_s": LIMIT_S, **watch}),
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


def test_the_best_is_another_one_when_baselines_have_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fetched: list[str] = []

    def fetch(place: Place, one: Checkpoint, into: Path) -> None:
        fetched.append(one.digest)
        (into / "weights").write_text(one.digest)

    monkeypatch.setattr(Place, "fetch", fetch)
    kept = tmp_path / "kept"
    run = run_of(tmp_path, Place(), CheckpointStore(keep_best=kept))
    sampled = [replace(report(step), notes={"estimate": {"sample": "drawn", "as_of": 1.0}}) for step in (100, 200, 50)]
    first, second = (one.checkpoint.digest for one in sampled[:2])
    earlier = {"drawn": {digest: {"mrr@10": [value, 0.0, 1.0]} for digest, value in ((first, 0.4), (second, 0.3))}}
    baseline = replace(report(100, spec="f"), notes={"sampled": {"s1": {"as_of": 2.0, "earlier": earlier}}})
    with LedgerFile(tmp_path / "ledger.db") as ledger:
        ledger.register_spec("s1", NAMES, NOW)
        for new, weights, asked_for in (
            (sampled[:2], second, [second]),
            ([baseline], first, [first]),  # which revises the sampled values
            (sampled[2:], first, []),  # kept already
            ([report(200, spec="f"), report(50, spec="f")], second, [second]),  # by the full corpus, which knows all now
        ):
            with Delivery(run, ledger, NAMES, lambda: NOW) as delivery:
                for one in new:
                    ledger.finish(one)
                delivery.deliver()
            assert (kept / "best" / "weights").read_text() == weights
            assert len(list(kept.glob("check*"))) == 1
            assert fetched == asked_for
            fetched.clear()
            shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    assert not caplog.messages


def deliver(run: Run, *steps: int, until: Callable[[], bool] = lambda: True) -> None:
    """A start of the watcher that finishes these steps, and ends once `until` is true."""
    with LedgerFile(run.settings.state_dir / "ledger.db") as ledger:
        ledger.register_spec("s1", NAMES, NOW)
        with Delivery(run, ledger, NAMES, lambda: NOW) as delivery:
            for step in steps:
                ledger.finish(report(step))
            delivery.deliver()
            wait_for(until)


def undelivered(state_dir: Path, name: str) -> list[int]:
    """Steps."""
    with LedgerFile(state_dir / "ledger.db") as ledger:
        return [one.checkpoint.step for _, one in ledger.undelivered(f"{name}:s1", ["s1"])]


def test_what_a_local_tracker_could_not_write_until_the_end_is_written_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[TrackedRow] = []

    def full(*args: Any) -> None:
        raise OSError("no space left")

    run = run_of(tmp_path, Place(), CheckpointStore(keep_best=tmp_path / "kept"))
    with monkeypatch.context() as disk:
        disk.setattr(NoTracker, "write", full)
        disk.setattr(Place, "fetch", full)
        deliver(run, 100, 200)
    assert undelivered(tmp_path, "none") == [100, 200]
    assert undelivered(tmp_path, "keep_best") == [100, 200]
    monkeypatch.setattr(NoTracker, "write", lambda tracker, told: written.append(told))
    deliver(run)
    assert undelivered(tmp_path, "none") == undelivered(tmp_path, "keep_best") == []
    assert [told.numbers[STEP] for told in written] == [100, 200]
    assert (tmp_path / "kept" / "best" / "weights").read_text() == "sha256:00c8"


def test_what_comes_during_a_local_delivery_does_not_have_it_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[float] = []
    began, may_go_on = threading.Event(), threading.Event()

    def write(tracker: NoTracker, told: TrackedRow) -> None:
        written.append(told.numbers[STEP])
        began.set()
        may_go_on.wait(LIMIT_S)

    monkeypatch.setattr(NoTracker, "write", write)
    with LedgerFile(tmp_path / "ledger.db") as ledger:
        ledger.register_spec("s1", NAMES, NOW)
        run = run_of(tmp_path, Place(), CheckpointStore())
        with Delivery(run, ledger, NAMES, lambda: NOW) as delivery:
            for step in (100, 200):
                ledger.finish(report(step))
                delivery.deliver()
                wait_for(began.is_set)
            may_go_on.set()
    assert written == [100, 200]


def test_what_a_slow_local_tracker_had_not_written_at_the_end_is_written_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[float] = []
    began, may_go_on = threading.Event(), threading.Event()

    def write(tracker: NoTracker, told: TrackedRow) -> None:
        began.set()
        may_go_on.wait(LIMIT_S)
        written.append(told.numbers[STEP])

    monkeypatch.setattr(NoTracker, "write", write)
    deliver(run_of(tmp_path, Place(), CheckpointStore(), **SHORT), 100, 200, until=began.is_set)
    assert undelivered(tmp_path, "none") == [100, 200]
    may_go_on.set()
    wait_for(lambda: written == [100])  # too late to be noted
    deliver(run_of(tmp_path, Place(), CheckpointStore()))
    assert undelivered(tmp_path, "none") == []
    assert written == [100, 100, 200]


def test_all_that_end_share_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits_s: list[float] = []

    def close(run: LocalRun, timeout_s: float) -> None:
        limits_s.append(timeout_s)
        time.sleep(timeout_s)

    monkeypatch.setattr(LocalRun, "close", close)
    deliver(run_of(tmp_path, Place(), CheckpointStore(keep_best=tmp_path / "kept"), **SHORT))
    assert limits_s[1:] == [0.0]


@pytest.mark.slow
def test_the_end_of_a_run_kills_the_command_of_on_best_and_the_next_start_runs_it_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_best(command: str, **watch: Any) -> Run:
        return run_of(tmp_path, Place(), CheckpointStore(), on_best=command, **watch)

    def is_over() -> bool:
        try:
            os.killpg(int((tmp_path / "began").read_text()), 0)
        except ProcessLookupError:
            return True
        return False

    hangs = f"echo $$ > '{tmp_path}/beginning'; mv '{tmp_path}/beginning' '{tmp_path}/began'; sleep 3600 & sleep 3600"
    deliver(on_best(hangs, **SHORT), 100, until=(tmp_path / "began").exists)
    assert undelivered(tmp_path, "on_best") == [100]
    wait_for(is_over)
    (warning,) = (one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING)
    assert "watch.on_best: killed for checkpoint-100" in warning
    deliver(on_best(f"cat > '{tmp_path}/told'"))
    assert undelivered(tmp_path, "on_best") == []
    assert json.loads((tmp_path / "told").read_text())["checkpoint"]["step"] == 100
