"""Who ranks what ahead, and who validates it then: with worker processes that do as they are told."""

import contextlib
import errno
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dr_validate.config import Run
from dr_validate.errors import CheckpointError, NoMemory, Preempted, SetupError, Stopped
from dr_validate.values import Checkpoint, RankingKey, Report
from dr_validate.watcher.loop import watch
from dr_validate.watcher.worker_pool import WorkerPool
from dr_validate.watcher.worker_process import WorkerFailure
from tests.factories import checkpoint
from tests.watcher.by_hand import Behaviour, FakeWorker, run_of


class Client:
    """In place of a worker process: what it is asked for is over when the test says so."""

    def __init__(self) -> None:
        self.validated: list[int] = []
        self.asked: list[int] = []  # steps that it was to rank ahead
        self.ranking: RankingKey | None = None
        self.ranked: list[RankingKey] = []
        self.has_begun = False
        self.is_closed = self.is_done = self.is_dead = False
        self.met: Exception | None = None  # what ranking ahead raises when it is looked at next
        self.refuses: list[Exception] = []  # what validating raises, each once
        self.cannot_start: OSError | None = None

    def rank_ahead(self, wanted: Checkpoint, folder: Path, *, full: bool, collection: int, keep: Sequence[RankingKey]) -> None:
        if self.cannot_start is not None:
            raise self.cannot_start
        self.ranked = [job for job in self.ranked if job in keep]
        self.ranking, self.has_begun, self.met = (wanted.digest, collection, full), True, None
        self.is_done = False
        self.asked.append(wanted.step)

    def finish(self) -> None:
        """The ranking is done, which shows when it is looked at."""
        assert self.ranking is not None
        self.is_done = True

    def has_ranked(self) -> bool:
        if self.met is not None:
            self.ranking = None
            raise self.met
        if self.is_done and self.ranking is not None:
            self.ranked.append(self.ranking)
            self.ranking = None
        return self.is_done

    def wait_until_ranked(self, tick: Callable[[Any], None]) -> None:
        try:
            self.has_ranked()
            tick(None)
        except Exception:
            self.ranking = None
            raise
        self.is_done = True
        self.has_ranked()

    def forget_the_dead(self) -> None:
        if self.is_dead:
            self.ranked, self.is_dead = [], False

    def interrupt_ranking(self, reason: str) -> None:
        if self.ranking is not None:
            self.met = Preempted() if reason == "preempted" else Stopped()

    def validate(self, wanted: Checkpoint, folder: Path, *, full: bool, tick: Any, collection: int = 0) -> Any:
        if self.refuses:
            raise self.refuses.pop()
        self.validated.append(wanted.step)
        self.ranked = [job for job in self.ranked if job != (wanted.digest, collection, full)]

    def kill(self) -> None:
        self.ranking, self.ranked = None, []

    def close(self) -> None:
        self.is_closed = True
        self.kill()


class Pool:
    """A pool of such processes."""

    def __init__(self, number: int) -> None:
        self.clients = [Client() for _ in range(number)]
        self.leased: list[str] = []
        clients: Any = self.clients
        self.pool = WorkerPool(clients, self._lease)

    @contextlib.contextmanager
    def _lease(self, digest: str) -> Iterator[Path]:
        self.leased.append(digest)
        yield Path()
        self.leased.remove(digest)

    def validate(self, step: int, tick: Callable[[Any], None] = lambda progress: None, **which: Any) -> None:
        self.pool.validate(checkpoint(step), Path(), full=False, tick=tick, **which)

    def ahead(self, now: int, *steps: int, collections: Sequence[int] = (0,)) -> None:
        work = [(checkpoint(step), collection, False) for step in steps for collection in collections]
        self.pool.look_ahead(checkpoint(now).digest, work)


def test_what_comes_next_is_ranked_meanwhile_and_validated_by_who_has_it() -> None:
    pool = Pool(2)
    first, second = pool.clients
    pool.validate(100)
    pool.ahead(100, 200, 300)
    assert second.asked == [200] and pool.leased == [checkpoint(200).digest]
    second.finish()
    pool.ahead(100, 200, 300)
    assert second.asked == [200] and not pool.leased  # one checkpoint ahead for each process
    pool.validate(200)
    pool.ahead(200, 300)
    pool.validate(300)  # which is waited for
    assert (first.validated, second.validated) == ([100, 300], [200])
    assert first.asked == [300]


def test_a_process_for_each_checkpoint_that_is_ranked_ahead() -> None:
    pool = Pool(3)
    pool.ahead(100, 200, 300, 400)
    assert [client.asked for client in pool.clients] == [[], [200], [300]]
    pool.clients[2].finish()
    pool.validate(200)
    pool.ahead(200, 300, 400)
    assert [client.asked for client in pool.clients] == [[400], [200], [300]]


def test_what_is_more_urgent_comes_first_and_a_finished_ranking_stays() -> None:
    pool = Pool(2)
    second = pool.clients[1]
    pool.ahead(100, 200)
    pool.ahead(100, 300, 200)  # a newer one has come
    pool.ahead(100, 300, 200)
    assert second.asked == [200, 300]
    second.finish()
    pool.ahead(100, 400, 300, 200)
    assert second.asked == [200, 300, 400]
    second.finish()
    for step in (400, 300, 200):
        pool.validate(step)
    assert second.validated == [400, 300, 200]
    assert not pool.leased


def test_a_process_that_has_counted_nothing_yet_is_not_waited_for() -> None:
    pool = Pool(2)
    first, second = pool.clients
    pool.ahead(100, 200)
    second.has_begun = False
    pool.validate(200)
    assert first.validated == [200] and isinstance(second.met, Preempted)
    pool.ahead(200, 300)
    pool.ahead(200, 300)
    assert second.asked == [200, 300]


def test_collections_of_a_checkpoint_stay_with_one_process() -> None:
    pool = Pool(3)
    second, third = pool.clients[1:]
    for _ in range(6):
        pool.ahead(100, 200, 300, collections=(0, 1, 2, 3, 4))
        for client in (second, third):
            if client.ranking is not None:
                client.finish()
    assert second.asked == [200] * 4 and third.asked == [300] * 4  # as many as are kept
    pool.validate(200, collection=0)
    assert second.validated == [200]


def test_an_interruption_while_a_ranking_is_waited_for_ends_the_attempt() -> None:
    pool = Pool(2)
    pool.ahead(100, 200)

    def stop(progress: Any) -> None:
        raise Stopped("stopped by a signal")

    with pytest.raises(Stopped, match="by a signal"):
        pool.validate(200, stop)
    assert pool.clients[1].validated == []


def test_what_cannot_be_ranked_ahead_is_left_to_its_attempt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pool = Pool(2)
    first, second = pool.clients
    for step, error in [(200, CheckpointError("NaN")), (300, WorkerFailure("killed")), (400, OSError("full"))]:
        pool.ahead(100, step, 500)
        second.met = error
        pool.ahead(100, step)
    assert second.asked == [200, 300, 400] and not pool.leased
    assert second.is_closed and "1 checkpoints at once" not in caplog.text
    assert "one checkpoint at a time from now on" in caplog.text and "failed 3 times in a row, last: full" in caplog.text
    pool.ahead(100, 500)
    for step in (200, 500):
        pool.validate(step)
    assert first.validated == [200, 500]


def test_a_machine_that_starts_no_further_process_costs_the_checkpoint_whose_turn_it_is_nothing() -> None:
    pool = Pool(2)
    pool.clients[1].cannot_start = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    pool.ahead(100, 200)
    assert not pool.leased


class Process(Client):
    """The same, in a whole run; `behave` is called while it validates."""

    specs = None

    def __init__(self, behave: Behaviour) -> None:
        super().__init__()
        self._alone = FakeWorker(behave)
        self.start, self.activity = self._alone.start, self._alone.activity

    def validate(self, wanted: Checkpoint, folder: Path, *, full: bool, tick: Any, collection: int = 0) -> Report:
        self.validated.append(wanted.step)
        return self._alone.validate(wanted, folder, full=full, tick=tick)


def watched(monkeypatch: pytest.MonkeyPatch, run: Run, *processes: Process) -> int:
    """The exit code of a run with these processes, which looks ahead at every tick."""
    monkeypatch.setattr("dr_validate.watcher.loop.LOOK_AHEAD_EVERY_S", -1.0)
    left = list(processes)
    monkeypatch.setattr("dr_validate.watcher.loop.WorkerClient", lambda raw, hub: left.pop(0))
    return watch(run).exit_code


def test_what_failed_before_is_tried_again_with_the_machine_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside: list[list[RankingKey | None]] = []

    def behave(wanted: Checkpoint, tick: Any) -> None:
        if [*first.validated, *second.validated].count(wanted.step) == 1:
            raise WorkerFailure("was ended by SIGKILL (out of memory?)")
        tick(None)
        tick(None)
        beside.append([first.ranking, second.ranking])

    first, second = Process(behave), Process(behave)
    run = run_of(tmp_path, [100, 200], at_once=2, poll_s=0.01, max_attempts=2)
    assert watched(monkeypatch, run, first, second) == 0
    assert beside == [[None, None]] * 2


def test_a_ledger_that_cannot_be_read_for_what_comes_next_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def behave(wanted: Checkpoint, tick: Any) -> None:
        tick(None)

    def after(*_: Any) -> Any:
        asked.append(1)
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr("dr_validate.watcher.schedule.WorkQueue.after", after)
    assert watched(monkeypatch, run_of(tmp_path, [100], at_once=2, max_attempts=1), Process(behave), Process(behave)) == 0
    assert asked


@pytest.mark.parametrize("error", [SetupError("the device is held by another program"), NoMemory("no memory on cuda:0")])
def test_a_process_that_cannot_have_the_device_beside_another_is_given_up(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(2)
    first, second = pool.clients
    pool.ahead(100, 200)
    second.met = error
    pool.validate(200)
    pool.ahead(200, 300)
    assert first.validated == [200] and second.asked == [200] and second.is_closed
    assert str(error) in caplog.text


def test_where_memory_ends_beside_another_checkpoint_it_is_tried_again_alone(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(2)
    first, second = pool.clients
    pool.ahead(100, 200)
    first.refuses = [NoMemory("no memory on cuda:0")]
    pool.validate(100)
    assert first.validated == [100] and second.is_closed and "one checkpoint at a time from now on" in caplog.text
    first.refuses = [NoMemory("no memory on cuda:0"), NoMemory("no memory on cuda:0")]
    with pytest.raises(NoMemory):
        pool.validate(300)
    assert len(first.refuses) == 1  # nobody else was there


def test_a_process_that_dies_with_what_it_has_ranked_is_not_asked_for_it() -> None:
    pool = Pool(2)
    first, second = pool.clients
    pool.ahead(100, 200)
    second.finish()
    pool.ahead(100, 200)
    second.is_dead = True
    pool.validate(200)
    assert first.validated == [200] and second.validated == []


def test_the_end_is_told_to_all() -> None:
    pool = Pool(2)
    pool.ahead(100, 200)
    pool.pool.close()
    assert all(client.is_closed for client in pool.clients) and isinstance(pool.clients[1].met, Stopped)
    assert not pool.leased
