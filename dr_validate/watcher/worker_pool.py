"""Several worker processes (`watch.at_once`): one validates what is next, the others rank what comes after it.

Only what is next has an attempt and a line in the ledger. What is ranked ahead is asked for again when its turn comes, of the
process that has it, and is lost without harm until then. So checkpoints end in the order in which they would with one process,
corrected by the same evidence, each once.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dr_validate.errors import DrValidateError, Interrupted, NoMemory, SetupError
from dr_validate.values import Checkpoint, RankingKey, Report
from dr_validate.watcher.worker_process import Activity, Tick, WorkerClient

MOST_RANKED = 4  # finished rankings that a process keeps: some ten to a hundred MB each
MOST_FAILURES = 3  # in a row, of a process that ranks ahead: then it is not asked again
log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Worker:
    client: WorkerClient
    held: ExitStack = field(default_factory=ExitStack)  # the copy of the checkpoint that it ranks ahead
    failures: int = 0
    is_given_up: bool = False

    def jobs(self) -> list[RankingKey]:
        """What it has ranked ahead, and is at."""
        return [*self.client.ranked, *([] if self.client.ranking is None else [self.client.ranking])]

    def digests(self) -> set[str]:
        return {digest for digest, _, _ in self.jobs()}


class WorkerPool:
    """`start`, `validate`, `activity`, `close`: see `WorkerClient`. `lease`: from a digest to the folder of its copy."""

    def __init__(self, clients: Sequence[WorkerClient], lease: Callable[[str], AbstractContextManager[Path]]) -> None:
        self._workers = [_Worker(client) for client in clients]
        self._current = self._workers[0]  # that has the device for what is next
        self._lease = lease
        self._failed: set[RankingKey] = set()  # ahead: they are left to their attempts

    def start(self, tick: Tick) -> Any:
        """See `WorkerClient.start`: of the first; the others start when there is something for them."""
        told = self._current.client.start(tick)
        for worker in self._others():
            worker.client.specs = self._current.client.specs
        return told

    def activity(self) -> Activity | None:
        """See `WorkerClient.activity`: of the process that validates."""
        return self._current.client.activity()

    def close(self) -> None:
        """End all of them; what is ranked ahead goes on from there at the next start."""
        for worker in self._others():
            worker.client.interrupt_ranking("stopped")
        for worker in self._workers:
            worker.client.close()
            worker.held.close()

    def validate(self, checkpoint: Checkpoint, folder: Path, *, full: bool, tick: Tick, **which: Any) -> Report:
        """See `WorkerClient.validate`. Where memory ends beside other checkpoints it is tried again alone."""
        job = (checkpoint.digest, which.get("collection", 0), full)
        self._choose(job, tick)
        try:
            return self._current.client.validate(checkpoint, folder, full=full, tick=tick, **which)
        except NoMemory as error:
            helpers = [worker for worker in self._others() if not worker.is_given_up]
            if not helpers:
                raise
            for worker in helpers:
                self._give_up(worker, str(error))
            return self._current.client.validate(checkpoint, folder, full=full, tick=tick, **which)

    def look_ahead(self, now: str, work: Iterable[tuple[Checkpoint, int, bool]]) -> str:
        """Have the other processes rank `work` (checkpoint, collection, whether on the full corpus), the next one first: a
        checkpoint each, beside the one with the digest `now`. What is not among it is preempted. What they do, in words."""
        self._take_answers()
        free = [one for one in self._others() if not one.is_given_up and now not in one.digests()]
        jobs = {(checkpoint.digest, collection, full): checkpoint for checkpoint, collection, full in work}
        digests = list(dict.fromkeys(digest for digest, _, _ in jobs))[: len(free)]
        for worker in free:
            if worker.client.ranking is not None and worker.client.ranking[0] not in digests:
                worker.client.interrupt_ranking("preempted")
        taken = {job for worker in self._workers for job in worker.jobs()} | self._failed
        for job, checkpoint in jobs.items():
            if job[0] in digests and job not in taken:
                owner = next((worker for worker in free if job[0] in worker.digests()), None)
                owner = owner or next((worker for worker in free if worker.digests().isdisjoint(digests)), None)
                if owner is not None and owner.client.ranking is None:
                    self._begin(owner, job, checkpoint, jobs)
        return self._words(jobs)

    def _words(self, jobs: Mapping[RankingKey, Checkpoint]) -> str:
        ranked = {job for worker in self._others() for job in worker.client.ranked}
        ranking = {worker.client.ranking for worker in self._others()}
        told: dict[str, Collection[RankingKey | None]] = {"ranking": ranking, "ranked": ranked}
        labels = {word: dict.fromkeys(jobs[job].label for job in jobs if job in found) for word, found in told.items()}
        return "".join(f"; {word} ahead: {', '.join(names)}" for word, names in labels.items() if names)

    def _others(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker is not self._current]

    def _begin(self, worker: _Worker, job: RankingKey, checkpoint: Checkpoint, wanted: Collection[RankingKey]) -> None:
        keep = sorted(worker.client.ranked, key=lambda one: one in wanted)[-MOST_RANKED:]
        if len(keep) == MOST_RANKED and keep[0] in wanted:
            return
        try:
            folder = worker.held.enter_context(self._lease(job[0]))
            worker.client.rank_ahead(checkpoint, folder, collection=job[1], full=job[2], keep=keep[-MOST_RANKED + 1 :])
        except OSError as error:  # no copy, or no further process
            log.debug("%s is not ranked ahead: %s", checkpoint.label, error)
            self._failed.add(job)
            worker.client.kill()
            worker.held.close()

    def _take_answers(self) -> None:
        for worker in self._others():
            worker.client.forget_the_dead()
            job = worker.client.ranking
            if job is not None:
                self._take_answer(worker, job, worker.client.has_ranked)

    def _take_answer(self, worker: _Worker, job: RankingKey, ask: Callable[[], Any]) -> None:
        """What became of a job that was ranked ahead. A failure costs nothing; several in a row end the help."""
        try:
            ask()
            worker.failures = 0 if worker.client.ranking is None else worker.failures
        except Interrupted:
            pass
        except (SetupError, NoMemory) as error:
            self._give_up(worker, str(error))
        except (DrValidateError, RuntimeError, OSError) as error:
            log.debug("%s could not be ranked ahead: %s", job, error)
            self._failed.add(job)
            worker.failures += 1
            if worker.failures >= MOST_FAILURES:
                self._give_up(worker, f"failed {worker.failures} times in a row, last: {error}")
        if worker.client.ranking is None:
            worker.held.close()

    def _give_up(self, worker: _Worker, reason: str) -> None:
        worker.is_given_up = True
        worker.client.close()
        worker.held.close()
        left = sum(not one.is_given_up for one in self._workers)
        many = "one checkpoint" if left == 1 else f"{left} checkpoints"
        log.warning("%s at a time from now on (watch.at_once=%d): %s", many, len(self._workers), reason)

    def _choose(self, job: RankingKey, tick: Tick) -> None:
        """Whoever has ranked it, or is at it; else whoever is idle."""
        idle, raised = self._current, list[Interrupted]()

        def watched(progress: Mapping[str, Any] | None) -> None:
            try:
                tick(progress)
            except Interrupted as error:
                raised.append(error)
                raise

        self._take_answers()
        worker = next((one for one in self._others() if job in one.jobs()), None)
        if worker is None:
            return
        at = worker.client.ranking
        if at is not None and (at != job or not worker.client.has_begun):
            worker.client.interrupt_ranking("preempted")  # at another collection, or not there yet: whoever is idle is faster
        if at == job and not worker.client.has_begun:
            return
        self._current = worker
        if at is not None:
            self._take_answer(worker, at, lambda: worker.client.wait_until_ranked(watched))
        if raised:
            raise raised[0]
        if worker.is_given_up:
            self._current = idle
