"""What becomes of an attempt that fails: with a worker that does as it is told, and a clock that goes by hand."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dr_validate.config import Run, Watch
from dr_validate.dataset.hub import HubDataset
from dr_validate.dataset.msmarco import MsmarcoDataset
from dr_validate.errors import (
    CheckpointDeleted,
    CheckpointError,
    ConfigError,
    DeviceFailure,
    Interrupted,
    NoMemory,
    NotStated,
    Outage,
    Preempted,
    SetupError,
    Stopped,
    TimedOut,
)
from dr_validate.files import disk_words, is_disk_full, name_of_digest
from dr_validate.ledger.ledger import Ledger
from dr_validate.process import TIME_IS_UP
from dr_validate.source.folder import FolderSource
from dr_validate.values import Checkpoint, Estimate, Report
from dr_validate.watcher import schedule
from dr_validate.watcher.attempts import Attempts
from dr_validate.watcher.loop import watch
from dr_validate.watcher.polling import SourcePoller
from dr_validate.watcher.schedule import Needs, Target
from dr_validate.watcher.worker_pool import WorkerPool
from dr_validate.watcher.worker_process import DiskFull, StallLimit, Tick, WorkerClient, WorkerDied, WorkerFailure, activity_of
from dr_validate.worker.main import errors_to
from tests.processes import LIMIT_S, wait_for
from tests.watcher.by_hand import AT, Behaviour, FakeWorker, checkpoint, run_of

TARGET = Target(dataset="vaswani", sampler="full", spec="s1", sampled_spec="s1", full_spec="s1")


class Clock:
    """Monotonic seconds that also pass by hand."""

    def __init__(self) -> None:
        self._real, self.ahead = time.monotonic, 0.0

    def __call__(self) -> float:
        return self._real() + self.ahead


class Books:
    """Attempts on one checkpoint, and what is in the ledger of them."""

    def __init__(self, state_dir: Path, ledger: Ledger, behave: Behaviour, **watch_settings: Any) -> None:
        self.run = run = run_of(state_dir, [100], **watch_settings)
        self.worker, self.ledger, self.listing = FakeWorker(behave), ledger, run.source.list(state_dir)
        worker: Any = self.worker
        run.store.take(checkpoint(100), run.source.fetch, state_dir)
        poller = SourcePoller(run, lambda listing: Needs(order=()))  # not started: the copy is there
        self._attempts = Attempts(run, ledger, worker, poller, lambda: AT)

    def attempt(self, tick: Tick = lambda progress: None, **known: Any) -> Report | None:
        """`known`: what its source says of the checkpoint."""
        return self._attempts.validate(dataclasses.replace(checkpoint(100), **known), TARGET, tick)

    def finish(self, report: Report, target: Target) -> Report:
        return self._attempts.finish(report, target)

    @property
    def is_waiting(self) -> bool:
        """Whether it would be tried again."""
        return bool(schedule.waiting(self.listing, self.ledger.settled("s1"), "newest_first"))


def fails(error: Exception) -> Behaviour:
    def behave(wanted: Checkpoint, tick: Any) -> None:
        raise error

    return behave


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def agreement_after(books: Books, sampled: Target, one: Checkpoint, error: float) -> tuple[int, float] | None:
    """Checkpoints and bias, when `one` has been done on the sample, where it is so far off, and then on the full corpus; None
    of a single one."""
    for target in (sampled, dataclasses.replace(sampled, spec=sampled.full_spec)):
        value = one.step / 1000 + (0 if target.is_baseline else error)
        estimate = Estimate(value=value, low=value, high=value, naive=value)
        report = dataclasses.replace(FakeWorker(fails(Stopped())).done(one), metrics={"mrr@10": estimate})
        last = books.finish(dataclasses.replace(report, spec=target.spec), target)
    return (last.agreement.checkpoints, round(last.agreement.bias, 9)) if last.agreement else None


def test_the_agreement_of_a_report_is_that_of_its_own_training(tmp_path: Path, ledger: Ledger) -> None:
    sampled = dataclasses.replace(TARGET, sampled_spec="s1", full_spec="f1")
    books = Books(tmp_path, ledger, fails(Stopped()))
    found = {}
    for training, error in (("t", 0.25), ("other", 0.5), ("", 0.25)):  # without a name: of the source's own
        for step in (100, 200):
            one = dataclasses.replace(checkpoint(step), training_run=training, digest=f"sha256:{training}{step}")
            found[training] = agreement_after(books, sampled, one, error)
    assert found == {"t": (2, 0.25), "other": (2, 0.5), "": (4, 0.25)}


def test_a_training_without_a_name_in_another_folder_is_not_agreed_with_by_one_that_was_given_a_name(
    tmp_path: Path, ledger: Ledger
) -> None:
    sampled = dataclasses.replace(TARGET, sampled_spec="s1", full_spec="f1")
    books = Books(tmp_path, ledger, fails(Stopped()))
    object.__setattr__(books.run, "source", FolderSource(path=tmp_path / "cold", name="cold"))  # a Run is frozen
    found = {}
    for folder, training, error in (("output", "", 0.5), ("cold", "", 0.25), ("cold", "cold", 0.25)):
        for step in (100, 200):
            one = dataclasses.replace(checkpoint(step), training_run=training, digest=f"sha256:{folder}{training}{step}")
            one = dataclasses.replace(one, uri=str(tmp_path / folder / one.name))
            found[folder, training] = agreement_after(books, sampled, one, error)
    assert found == {("output", ""): (2, 0.5), ("cold", ""): (2, 0.25), ("cold", "cold"): (4, 0.25)}


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_what_will_fail_every_time_is_tried_once(tmp_path: Path, ledger: Ledger, max_attempts: int) -> None:
    books = Books(tmp_path, ledger, fails(CheckpointError("vectors hold NaN or Inf")), max_attempts=max_attempts)
    report = books.attempt()
    assert report is not None
    assert (report.status, report.error, report.attempts) == ("failed", "vectors hold NaN or Inf", 1)
    assert not books.is_waiting and ledger.reports("s1") == [report]


@pytest.mark.parametrize("uri", ["/data/out/checkpoint-100", "wandb-artifact://me/retriever/checkpoint-100"])
@pytest.mark.parametrize("is_relative", [False, True])
def test_an_error_names_the_checkpoint_in_its_source_and_not_the_copy_of_it(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, uri: str, is_relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    state_dir = Path() if is_relative else tmp_path
    copy = tmp_path / "checkpoints" / name_of_digest(checkpoint(100).digest)
    said = f"{copy}/config.json: no model_type, nor in {copy.relative_to(tmp_path) if is_relative else copy}"
    books = Books(state_dir, ledger, fails(CheckpointError(said)))
    report = books.attempt(uri=uri)
    place = uri if uri.startswith("/") else "checkpoint-100"
    assert report is not None and report.error == f"{place}/config.json: no model_type, nor in {place}"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("the worker died"), TimedOut("took too long"), NoMemory("no memory on cuda:0")],
    ids=["died", "timed-out", "no-memory"],
)
@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_what_may_pass_is_tried_as_often_as_allowed(
    tmp_path: Path, ledger: Ledger, error: Exception, max_attempts: int
) -> None:
    books = Books(tmp_path, ledger, fails(error), max_attempts=max_attempts)
    for _ in range(max_attempts - 1):
        assert books.attempt() is None and books.is_waiting
    report = books.attempt()
    assert report is not None and (report.status, report.attempts) == ("failed", max_attempts)
    assert report.error == f"{error} (attempt {max_attempts} of {max_attempts})"
    assert not books.is_waiting and len(books.worker.asked) == max_attempts


@pytest.mark.parametrize("error", [Outage("no answer"), Stopped()], ids=["outage", "stopped"])
def test_what_is_not_the_checkpoints_fault_costs_no_attempt(tmp_path: Path, ledger: Ledger, error: Exception) -> None:
    books = Books(tmp_path, ledger, fails(error), max_attempts=1)
    for _ in range(3):
        if isinstance(error, Interrupted):
            with pytest.raises(type(error)):
                books.attempt()
        else:
            assert books.attempt() is None
        assert books.is_waiting
    assert ledger.begin(checkpoint(100), "s1", AT).attempts == 1


def test_a_run_goes_on_after_a_failure_for_good_and_ends_with_exit_code_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave(wanted: Checkpoint, tick: Any) -> None:
        if wanted.step == 200:
            raise CheckpointError("vectors hold NaN or Inf")
        if worker.asked.count(wanted.step) < 3:
            raise RuntimeError("the worker died")

    worker = FakeWorker(behave)
    monkeypatch.setattr("dr_validate.watcher.loop.WorkerClient", lambda raw, hub: worker)
    assert watch(run_of(tmp_path, [100, 200, 300], max_attempts=3)).exit_code == 1
    assert sorted(worker.asked) == [100] * 3 + [200] + [300] * 3
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert [(r.checkpoint.step, r.status, r.attempts) for r in ledger.reports("s1")] == [
            (100, "done", 3),
            (200, "failed", 1),
            (300, "done", 3),
        ]


@pytest.mark.parametrize(("took_s", "status"), [(0.9, "done"), (1.1, "failed")])
def test_a_limit_of_a_second_ends_what_takes_longer_and_leaves_the_rest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took_s: float, status: str
) -> None:
    """In hours instead of seconds, so that what this machine takes besides does not count."""
    clock, hour = Clock(), 3600.0

    def behave(wanted: Checkpoint, tick: Any) -> None:
        wait_for(lambda: len(run.store.digests(tmp_path)) == 2)  # the limit is one of fetches, too
        for _ in range(2):
            clock.ahead += took_s * hour / 2
            tick(None)

    worker = FakeWorker(behave)
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr("dr_validate.watcher.loop.WorkerClient", lambda raw, hub: worker)
    run = run_of(tmp_path, [100, 200], max_attempts=1, timeout_s=hour)
    watch(run)
    with Ledger(tmp_path / "ledger.db") as ledger:
        reports = ledger.reports("s1")
    assert [report.status for report in reports] == [status] * 2 and sorted(worker.asked) == [100, 200]
    if status == "failed":
        assert {report.error for report in reports} == {"took longer than watch.timeout_s=3600 (attempt 1 of 1)"}


HOUR = 3600.0
ENCODING, SCORING = {"phase": "encoding", "done": 10, "total": 40}, {"phase": "scoring", "done": 0, "total": 0}


@pytest.mark.parametrize(
    ("device", "phase", "seconds", "num_bytes", "error"),
    [
        ("cpu", {}, 0.0, 0, "phase 'loading'"),
        ("cuda:0", SCORING, 0.001, 10, "phase 'scoring'"),  # a thread that only waits does a little, too
        ("cuda:0", ENCODING, 20.0, 1 << 20, "phase 'encoding'"),  # a device that hangs keeps a processor busy
        ("cuda:0", SCORING, 1.0, 0, None),
        ("cuda:0", {}, 0.0, 1 << 20, None),  # weights that are read
        ("cpu", ENCODING, 1.0, 0, None),  # an hour for a slice is slow, and moves
    ],
)
def test_work_that_stands_still_for_the_limit_is_ended_and_slow_work_is_not(
    monkeypatch: pytest.MonkeyPatch, device: str, phase: Mapping[str, Any], seconds: float, num_bytes: int, error: str | None
) -> None:
    now, done = [100.0], [0.0, 0]
    monkeypatch.setattr("dr_validate.watcher.worker_process.time.monotonic", lambda: now[0])
    stall = StallLimit(HOUR, lambda: (done[0], int(done[1])))
    stall.on_processors = device == "cpu"
    stall.begin("loading")
    stall.look(phase or None)

    def work_for(hours: float) -> None:
        end = now[0] + hours * HOUR
        while now[0] < end:
            now[0] += 10.0
            done[0], done[1] = done[0] + seconds, done[1] + num_bytes
            stall.look(phase or None)  # the same again is no news

    work_for(0.99)
    ends = pytest.raises(TimedOut, match=f"no progress for watch.stall_timeout_s=3600 in {error}; raise it")
    with ends if error else contextlib.nullcontext():
        work_for(0.02 if error else 10)


def test_news_of_any_phase_is_progress_and_time_in_which_nobody_looked_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("dr_validate.watcher.worker_process.time.monotonic", lambda: now[0])
    stall, unlimited = StallLimit(HOUR, lambda: (0.0, 0)), StallLimit(None, lambda: (0.0, 0))
    for count in range(1000):
        now[0] += HOUR  # both processes were stopped, or the machine slept
        stall.look(None if count % 50 else {"phase": "encoding", "done": count, "total": 1000})
        unlimited.look(None)


def test_an_attempt_that_stands_still_counts_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def behave(wanted: Checkpoint, tick: Any) -> None:
        tick(ENCODING)
        for _ in range(400 if wanted.step == 200 else 300):
            clock.ahead += 10.0
            tick(None)

    monkeypatch.setattr(time, "monotonic", clock)
    assert watch_with(monkeypatch, run_of(tmp_path, [100, 200], max_attempts=2), behave) == 1
    with Ledger(tmp_path / "ledger.db") as ledger:
        done, failed = ledger.reports("s1")
    assert (done.status, failed.status, failed.attempts) == ("done", "failed", 2)
    assert str(failed.error).startswith("no progress for watch.stall_timeout_s=3600 in phase 'encoding'; raise it")


def test_a_start_that_stands_still_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(worker: FakeWorker, tick: Any) -> Any:
        while True:
            clock.ahead += 10.0
            tick(None)

    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(FakeWorker, "start", start)
    with pytest.raises(SetupError, match=r"the worker did not get ready: no progress for .* in phase 'start'"):
        watch_with(monkeypatch, run_of(tmp_path, [100]), lambda wanted, tick: None)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_that_dies_at_the_start_is_said_in_words_unless_the_same_signal_stopped_the_run(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(worker: FakeWorker, tick: Any) -> Any:
        if stopped:
            signal.raise_signal(signal.SIGTERM)
        started.append(worker)
        raise WorkerDied("the worker process was ended by SIGKILL (out of memory?)")

    started: list[FakeWorker] = []
    monkeypatch.setattr(FakeWorker, "start", start)
    words = pytest.raises(SetupError, match=r"the worker did not get ready: the worker process was ended by SIGKILL")
    with contextlib.nullcontext() if stopped else words:
        assert watch_with(monkeypatch, run_of(tmp_path, [100]), lambda wanted, tick: None) == 0
    assert len(started) == (1 if stopped else Watch().max_attempts)


def test_a_worker_that_dies_once_at_the_start_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(worker: FakeWorker, tick: Any) -> Any:
        monkeypatch.setattr(FakeWorker, "start", ready)
        raise WorkerDied("the worker process was ended by SIGKILL (out of memory?)")

    ready = FakeWorker.start
    monkeypatch.setattr(FakeWorker, "start", start)
    assert watch_with(monkeypatch, run_of(tmp_path, [100]), lambda wanted, tick: None) == 0
    assert "the worker did not get ready: the worker process was ended by SIGKILL (out of memory?); start 2 of 3" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_what_a_worker_and_the_processes_below_it_do_is_seen() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint('x' * (1 << 20), file=open('/dev/null', 'w'))"
    below = f"[sys.executable, '-c', {busy + chr(10) + 'input()'!r}]"
    script = f"import subprocess, sys; subprocess.Popen({below}).wait()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        try:
            wait_for(lambda: (activity_of(process.pid) or (0, 0))[0] >= 0.3)
            wait_for(lambda: (activity_of(process.pid) or (0, 0))[1] >= 1 << 20)
        finally:
            process.communicate(b"\n")
    assert activity_of(process.pid) is None


@pytest.mark.slow
@pytest.mark.parametrize("answers", [True, False], ids=["answers", "hangs"])
def test_a_worker_that_is_ended_for_its_time_leaves_the_reason(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    def tick(progress: Mapping[str, Any] | None) -> None:
        if progress == ENCODING:
            raise TimedOut("no progress for an hour")

    monkeypatch.setattr("dr_validate.watcher.worker_process.GRACE_S", 3600.0 if answers else 0.01)
    lines = [{"ready": {}}, {"progress": ENCODING}, {"error": {"kind": "timed_out", "message": ""}}]
    reads = "; ".join(f"print({json.dumps(line)!r}, flush=True); input()" for line in lines[:2])
    script = f"input(); {reads}; {f'print({json.dumps(lines[2])!r}, flush=True); input()' if answers else 'input()'}"
    with pytest.raises(TimedOut, match="^no progress for an hour$"):
        ScriptedWorker(monkeypatch, script).validate(tick)


def watch_with(monkeypatch: pytest.MonkeyPatch, run: Run, behave: Behaviour) -> int:
    worker = FakeWorker(behave)
    monkeypatch.setattr("dr_validate.watcher.loop.WorkerClient", lambda raw, hub: worker)
    return watch(run).exit_code


def told(state_dir: Path) -> list[tuple[str, str]]:
    lines = (state_dir / "reports.jsonl").read_text().splitlines()
    return [(line["checkpoint"]["name"], line["status"]) for line in map(json.loads, lines)]


def test_a_state_dir_that_is_removed_meanwhile_ends_the_run_and_nothing_is_told_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state_dir = tmp_path / "state"

    def behave(wanted: Checkpoint, tick: Any) -> None:
        if wanted.step == 100:  # the second one: newest first
            shutil.rmtree(state_dir, ignore_errors=True)

    with pytest.raises(SetupError, match=r"ledger\.db: the ledger is gone: state_dir was removed"):
        watch_with(monkeypatch, run_of(state_dir, [100, 200], mode="follow"), behave)
    assert not any("delivered later" in message for message in caplog.messages)
    assert not (state_dir / "ledger.db").exists() and not (state_dir / "reports.jsonl").exists()
    assert watch_with(monkeypatch, run_of(state_dir, [100, 200]), lambda wanted, tick: None) == 0
    assert told(state_dir) == [("checkpoint-200", "done"), ("checkpoint-100", "done")]


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "not-stopped"])
def test_a_result_waits_for_a_locked_ledger_and_a_stop_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    monkeypatch.setattr("dr_validate.ledger.database.BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr("dr_validate.ledger.ledger.BETWEEN_TRIES_S", 0.01)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None, check_same_thread=False)
    waits = threading.Event()

    def behave(wanted: Checkpoint, tick: Any) -> None:
        other.execute("BEGIN IMMEDIATE")
        if is_stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            threading.Thread(target=lambda: waits.wait(LIMIT_S) and other.execute("ROLLBACK")).start()

    def say(logger: logging.Logger, message: str, *_: Any) -> None:
        if "locked" in message:
            waits.set()

    with Ledger(tmp_path / "ledger.db"), contextlib.closing(other):
        monkeypatch.setattr(logging.Logger, "warning", say)
        worker = FakeWorker(behave)
        monkeypatch.setattr("dr_validate.watcher.loop.WorkerClient", lambda raw, hub: worker)
        outcome = watch(run_of(tmp_path, [100], exit_timeout_s=0.2 if is_stopped else 3600.0))
        assert (outcome.stopped, outcome.exit_code, waits.is_set()) == (is_stopped, 0, True)
        if is_stopped:
            other.execute("ROLLBACK")
            assert watch_with(monkeypatch, run_of(tmp_path, [100]), lambda wanted, tick: None) == 0
    assert told(tmp_path) == [("checkpoint-100", "done")]


def test_a_copy_that_comes_between_two_looks_at_what_there_is_waits_for_no_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, is_imminent, may_come = run_of(tmp_path, [100], poll_s=LIMIT_S), SourcePoller.is_imminent, threading.Event()
    fetch = run.source.fetch
    answers: list[bool] = []

    def late(wanted: Checkpoint, into: Path) -> None:
        may_come.wait(LIMIT_S)
        fetch(wanted, into)

    def asked(poller: SourcePoller, wanted: Checkpoint) -> bool:
        """The copy comes after the first answer, that it will be here in a moment."""
        if answers == [True]:
            changes = poller.changes
            may_come.set()
            wait_for(lambda: poller.changes > changes)
        answers.append(is_imminent(poller, wanted))
        return answers[-1]

    monkeypatch.setattr(run.source, "fetch", late)
    monkeypatch.setattr(SourcePoller, "is_imminent", asked)
    assert watch_with(monkeypatch, run, lambda wanted, tick: None) == 0
    assert told(tmp_path) == [("checkpoint-100", "done")]
    assert answers[:2] == [True, False]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EBUSY, errno.EAGAIN], ids=errno.errorcode.get)
def test_a_disk_that_is_full_or_busy_is_waited_for_and_costs_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    tries: list[int] = []

    def behave(wanted: Checkpoint, tick: Any) -> None:
        tries.append(wanted.step)
        if len(tries) < 3:
            raise DiskFull(number, os.strerror(number), str(tmp_path / "queries" / "x.parquet"))

    stop = tmp_path / "stop"
    stop.touch()
    assert watch_with(monkeypatch, run_of(tmp_path, [100], mode="follow", poll_s=0.01, stop_file=stop), behave) == 0
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert [(report.status, report.attempts) for report in ledger.reports("s1")] == [("done", 1)]
    said = [message for message in caplog.messages if message.endswith("; waiting for it")]
    assert len(said) == 1  # of two: beside a trainer it is polled twice a second
    assert f"the disk of {tmp_path / 'queries'} " in said[0]
    assert ("bytes free" if number != errno.EDQUOT else "your quota") in said[0]
    with pytest.raises(SetupError, match="start again, nothing done is lost"):
        tries.clear()
        watch_with(monkeypatch, run_of(tmp_path / "once", [100]), behave)


@pytest.mark.parametrize("mode", ["once", "follow"])
def test_when_the_hours_of_a_run_are_over_it_stops_cleanly_and_is_to_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def goes_on(wanted: Checkpoint, tick: Any) -> None:
        while wanted.step == 100:  # the second one: newest first
            tick(None)

    assert watch_with(monkeypatch, run_of(tmp_path, [100, 200], mode=mode, max_hours=1e-5), goes_on) == TIME_IS_UP
    assert watch_with(monkeypatch, run_of(tmp_path, [100, 200], max_hours=1), lambda wanted, tick: None) == 0
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert sorted((report.checkpoint.step, report.attempts) for report in ledger.reports("s1")) == [(100, 1), (200, 1)]


@pytest.mark.parametrize("mode", ["once", "follow"])
def test_a_disk_that_can_only_be_read_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    with pytest.raises(SetupError, match=r"its disk can only be read now .* mount it for writing"):
        error = OSError(errno.EROFS, os.strerror(errno.EROFS))
        watch_with(monkeypatch, run_of(tmp_path, [100], mode=mode), fails(error))


class ScriptedWorker:
    """Has `WorkerClient` start a Python that runs `script` in place of the worker process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        popen = subprocess.Popen
        monkeypatch.setattr("subprocess.Popen", lambda command, **kw: popen([sys.executable, "-c", script], **kw))
        self.client = WorkerClient({}, hub=True)

    def validate(self, tick: Any = lambda progress: None) -> Report:
        try:
            return self.client.validate(checkpoint(100), Path(), full=False, tick=tick)
        finally:
            self.client.kill()


@pytest.mark.slow
def test_what_is_missing_on_the_disk_of_the_worker_is_known_to_the_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Mapping[str, Any]] = []
    with errors_to(sent.append):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/there/x.parquet")
    script = (
        f"""print('{{"ready": {{}}}}', flush=True); input(); input(); print({json.dumps(sent[0])!r}, flush=True); input()"""
    )
    with pytest.raises(DiskFull, match="quota") as caught:
        ScriptedWorker(monkeypatch, script).validate()
    assert is_disk_full(caught.value)
    assert disk_words(caught.value, Path("/")) == f"your quota on the disk of /there is used up ({caught.value}); free some"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConfigError(["a: wrong"]), SetupError),
        (CheckpointError("wrong"), CheckpointError),
        (NotStated("wrong"), NotStated),
        (Preempted("wrong"), Preempted),
        (DeviceFailure("wrong"), WorkerFailure),
        (OSError(errno.EROFS, "wrong"), SetupError),
        (RuntimeError("wrong"), WorkerFailure),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_worker_raises_is_what_the_watcher_meets(
    raised: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Mapping[str, Any]] = []
    with errors_to(sent.append):
        raise raised
    script = (
        f"""print('{{"ready": {{}}}}', flush=True); input(); input(); print({json.dumps(sent[0])!r}, flush=True); input()"""
    )
    with pytest.raises(Exception, match="wrong") as caught:
        ScriptedWorker(monkeypatch, script).validate()
    assert type(caught.value) is expected


READY = 'import os, sys, json; print(json.dumps({"ready": {"spec": str(os.getpid()), "full_spec": "f"}}), flush=True); '
TWO_LINES = f"{READY}sys.stdin.readline(); sys.stdin.readline()"


@pytest.mark.slow
def test_an_answer_that_nobody_waits_for_any_more_is_not_taken_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(progress: Any) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    client = ScriptedWorker(monkeypatch, TWO_LINES + "; sys.stdin.read()").client
    client.start(lambda progress: None)
    with pytest.raises(OSError, match="full"):
        client.validate(checkpoint(100), Path(), full=False, tick=full)
    assert client.activity() is None  # the process that is at it is gone


@pytest.mark.slow
def test_a_process_that_finds_other_files_than_the_run_began_with_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ScriptedWorker(monkeypatch, TWO_LINES)
    worker.client.start(lambda progress: None)
    worker.client.kill()
    with pytest.raises(SetupError, match="are others than when this run began .spec .* put them back, or start again"):
        worker.validate()
    clients = [ScriptedWorker(monkeypatch, TWO_LINES).client for _ in range(2)]
    pool = WorkerPool(clients, lambda digest: contextlib.nullcontext(Path()))
    pool.start(lambda progress: None)
    clients[1].rank_ahead(checkpoint(100), Path(), full=False, collection=0, keep=())
    with pytest.raises(SetupError, match="are others than when this run began"):
        clients[1].wait_until_ranked(lambda progress: None)
    pool.close()


@pytest.mark.slow
def test_what_is_to_give_way_is_told_so_once_lest_the_pipe_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = f"import sys; lines = sys.stdin.readlines(); open({str(tmp_path / 'lines')!r}, 'w').writelines(lines)"
    client = ScriptedWorker(monkeypatch, read).client
    client.rank_ahead(checkpoint(100), Path(), full=False, collection=0, keep=())
    client.has_begun = True
    for _ in range(3):
        client.interrupt_ranking("preempted")
    client.close()
    assert [line.split('"')[1:2] for line in (tmp_path / "lines").read_text().splitlines()[1:]] == [["rank"], ["interrupt"]]


@pytest.mark.slow
def test_the_end_does_not_wait_for_a_process_that_has_nothing_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dr_validate.watcher.worker_process.GRACE_S", "no time to wait for")
    client = ScriptedWorker(monkeypatch, f"import time; time.sleep({LIMIT_S})").client
    client.rank_ahead(checkpoint(100), Path(), full=False, collection=0, keep=())
    client.close()
    assert client.activity() is None


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 9 GiB", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_device_without_memory_fails_the_checkpoint_at_once_and_costs_no_attempts(message: str) -> None:
    sent: list[Mapping[str, Any]] = []
    with errors_to(sent.append):
        raise RuntimeError(message)
    (said,) = sent
    assert said["error"]["kind"] == "no_memory" and message in said["error"]["message"]
    assert "set device to another one" in said["error"]["message"]
    with errors_to(sent.append):
        raise DeviceFailure("all workers were lost again and again, last worker 1")  # nobody knows: an attempt less
    assert sent[1]["error"]["kind"] == "device"


def test_a_limit_on_memory_is_said_in_words() -> None:
    sent: list[Mapping[str, Any]] = []
    with errors_to(sent.append):
        raise MemoryError
    assert "under its limit (ulimit -v, a cgroup)" in sent[0]["error"]["message"] and sent[0]["error"]["kind"] == "unexpected"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's choice is Linux's")
def test_where_memory_runs_out_the_worker_goes_first_and_not_its_watcher() -> None:
    script = "from dr_validate.process import live_and_die_with_parent as begin; begin(); "
    script += "print(open('/proc/self/oom_score_adj').read())"
    before = Path("/proc/self/oom_score_adj").read_text()
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(answer.stdout) == 1000 and Path("/proc/self/oom_score_adj").read_text() == before


@pytest.mark.parametrize(
    ("hub", "said", "offline"), [(False, None, "1"), (True, None, None), (False, "0", "0"), (True, "1", "1")], ids=str
)
def test_the_worker_may_ask_the_hub_only_where_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, hub: bool, said: str | None, offline: str | None
) -> None:
    started: list[Mapping[str, str]] = []

    def start(command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> Any:
        started.append(env)
        raise OSError("as far as this test needs")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if said is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", said)
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(OSError, match="as far as"):
        WorkerClient({}, hub=hub).start(lambda _: None)
    assert [env.get("HF_HUB_OFFLINE") for env in started] == [offline]


@pytest.mark.parametrize(
    ("dataset", "hub"),
    [
        (None, False),
        (HubDataset(id="BeIR/nq"), True),
        (HubDataset(id="."), False),
        (MsmarcoDataset(hub="BeIR/msmarco"), True),
        (MsmarcoDataset(hub="."), False),
        (MsmarcoDataset(path=Path()), False),
    ],
    ids=str,
)
def test_a_data_set_of_the_hub_is_what_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any, hub: bool
) -> None:
    asked: list[bool] = []

    def worker(raw: Mapping[str, Any], *, hub: bool) -> Any:
        asked.append(hub)
        return FakeWorker(lambda wanted, tick: None)

    monkeypatch.setattr("dr_validate.watcher.loop.WorkerClient", worker)
    watch(dataclasses.replace(run_of(tmp_path, [100]), dataset=dataset))
    assert asked == [hub]


HOSTILE = "https://user:sesame@host/x?api_key=sesame&X-Amz-Signature=sesame refused\x1b[31m \x07: it cannot be read"


@pytest.mark.parametrize(
    "error", [CheckpointError(HOSTILE), CheckpointDeleted(HOSTILE), RuntimeError(HOSTILE)], ids=["failed", "gone", "retried"]
)
def test_no_login_and_no_control_character_of_an_error_is_ever_stored(tmp_path: Path, ledger: Ledger, error: Exception) -> None:
    books = Books(tmp_path, ledger, fails(error), max_attempts=2)
    report = books.attempt()
    said = report.error if report else next(state.error for state in ledger.states("s1"))
    assert said == "https://***@host/x?api_key=***&X-Amz-Signature=*** refused\\x1b[31m \\x07: it cannot be read"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]


def test_a_signal_ends_the_reading_of_a_copy_whatever_its_size(tmp_path: Path, ledger: Ledger) -> None:
    books = Books(tmp_path, ledger, lambda wanted, tick: None)

    def tick(progress: Mapping[str, Any] | None) -> None:
        raise Stopped("between two chunks")

    with pytest.raises(Stopped):
        books.attempt(tick)
    assert books.worker.asked == [] and books.is_waiting
    assert books.attempt() is not None and books.worker.asked == [100]


def test_what_a_report_revises_is_logged_beside_what_it_was_at_first(
    tmp_path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = Books(tmp_path / "state", ledger, lambda wanted, tick: None)
    validate = books.worker.validate
    for step in (20, 50):
        report = validate(checkpoint(step), tmp_path, full=False, tick=None)
        ledger.finish(dataclasses.replace(report, notes={"estimate": {"sample": "x"}}))
    values = {20: 0.4999, 50: 0.25}  # the first moves by less than is worth a line
    earlier = {checkpoint(step).digest: {"mrr@10": [value, 0.125, 0.5, 0.125, 0.5]} for step, value in values.items()}
    notes = {"estimate": {"sample": "x", "earlier": {"x": earlier}}}
    later = "2026-11-21T04:15:10Z"
    monkeypatch.setattr(
        books.worker,
        "validate",
        lambda *given, **options: dataclasses.replace(validate(*given, **options), at=later, notes=notes),
    )
    with caplog.at_level(logging.INFO):
        assert books.attempt() is not None
    assert [line for line in caplog.messages if "known now" in line] == [
        "by what is known now: checkpoint-50 mrr@10 0.2500 (first 0.5000)"
    ]
