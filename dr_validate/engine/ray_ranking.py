"""A ranking by many workers of Ray: who does which slice, and what is merged.

Slices are dealt one at a time. Each worker hands over its running top-k now and then, with its answer to a slice, and what is
in no top that was handed over is not done: a worker that is lost, or does not answer, costs just that. Imports ray when it is
used.
"""

import contextlib
import logging
import statistics
import time
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.devices import is_out_of_memory
from dr_validate.engine.local import Progress, Slice, cut, ranking_of, slice_size
from dr_validate.engine.ray_workers import (
    Call,
    Elsewhere,
    FolderMissing,
    Handed,
    RankingJob,
    Wanted,
    Worker,
    Workers,
    machine,
    sent_files,
)
from dr_validate.errors import DrValidateError, Interrupted
from dr_validate.files import is_disk_full, is_read_only
from dr_validate.stages import Control, Index, Model, Ranked, Workload
from dr_validate.values import Float32, Int64, TopK

LOOK_EVERY_S = 0.1
SETTLE_S = 5.0  # for the last tops when told to stop; the watcher kills a process that takes thrice as long
SILENT_S, SILENT = 300.0, 50.0  # at least, and times the usual duration of a slice: then a worker is replaced
SAY_SO_EVERY_S = 60.0
LATE = 2.0  # times the usual duration of a slice: then others do it as well
MERGING_SHARE = 0.1  # of the time of this process: with so many workers that it would be more, tops come less often
ROWS_AT_ONCE = 256  # merged: stays in the processor's cache
log = logging.getLogger(__name__)


class RayRanker:
    """`stages.Ranker`; keeps the workers between rankings. To be closed."""

    def __init__(self, wanted: Wanted) -> None:
        self.workers = Workers(wanted)
        self.merge_s = 0.0  # of the latest merge
        self._jobs = 0

    def close(self) -> None:
        """End the workers at once."""
        self.workers.close()

    def rank(self, model: Model, workload: Workload, index: Index, control: Control, device: str) -> Ranked:
        """See `Ranker.rank`. Raises what any worker raises of a checkpoint, and DeviceFailure when all are lost for good."""
        assert isinstance(workload.elsewhere, Elsewhere), "nobody says how other processes come to this work"
        self._jobs += 1
        job = RankingJob(number=self._jobs, elsewhere=workload.elsewhere, index=index, machine=machine())
        ranking = _Ranking(self, job, workload, control)
        try:
            return ranking.run()
        finally:
            self.workers.end()


class _Ranking:
    """One call of `rank`."""

    def __init__(self, ranker: RayRanker, job: RankingJob, workload: Workload, control: Control) -> None:
        self._ranker, self._job, self._workload, self._control = ranker, job, workload, control
        self._workers = ranker.workers
        size = slice_size(self._wanted.slice_documents, workload, job.index, self._wanted.device)
        self._slices = cut(workload.documents, size)
        self._progress = Progress(workload, job.index, self._slices)
        finished, top = self._progress.load()
        covered = set(finished)
        if len(covered) == len(self._slices):
            covered.discard(max(covered, default=0))  # once more: so there is somebody who says what the model is
        self._covered, self._top = covered, top
        self._queries: deque[Slice] = deque(cut(workload.queries, size))
        self._num_queries = len(self._queries)
        self._vectors: dict[int, Float32] = {}  # of queries, by first position
        self._sent: Any = None  # reference to all of them
        self._dealer = Dealer(piece for piece in self._slices if piece.start not in covered)
        self._durations: deque[float] = deque(maxlen=99)
        self._copied: set[int] = set()
        self._finished = set(covered)  # also what is only with its worker
        self._count = self._progress.count(covered)  # documents in those
        self._num_needed = len(workload.ordinals) - self._count
        self._saved_at, self._num_saved = time.monotonic(), len(finished)
        self._alone_since = time.monotonic()
        for worker in ranker.workers.all:
            worker.finished, worker.handed, worker.is_new = [], [], True
            worker.busy_s, worker.num_slices, worker.num_lost, worker.losses = 0.0, 0, 0, 0
            worker.handed_at = time.monotonic()

    def run(self) -> Ranked:
        try:
            while len(self._covered) < len(self._slices):
                self._control.check()
                self._workers.tend()
                self._replace_silent()
                self._say_if_nobody_is_there()
                for worker in self._workers.all:
                    if worker.where and worker.call is None and worker.actor is not None:
                        self._deal(worker)
                self._listen()
        except Interrupted:
            self._settle()
            self._save()
            raise
        assert self._top is not None, "a ranking without a slice"
        ranked = self._ranked()
        self._progress.clear()
        return ranked

    def _deal(self, worker: Worker) -> None:
        """Give the worker its next slice, of the queries as long as there are any."""
        if self._queries:
            query_slice = self._queries.popleft()
            self._ask(worker, "query_vectors", query_slice, query_slice)
        elif (piece := self._next(worker)) is not None:
            every_s = max(self._wanted.save_every_s, len(self._workers.all) * self._ranker.merge_s / MERGING_SHARE)
            is_near_the_end = len(self._dealer) < len(self._workers.all)
            hand_over = is_near_the_end or time.monotonic() - worker.handed_at >= every_s
            self._ask(worker, "add", piece, self._sent, piece, self._dealer.following(worker.number), hand_over)
        elif self._sent is not None and self._uncovered(worker):
            self._ask(worker, "top", None, self._sent)
        elif self._sent is not None and (piece := self._late(worker)) is not None:
            self._ask(worker, "add", piece, self._sent, piece, None, True)

    def _next(self, worker: Worker) -> Slice | None:
        piece = self._dealer.next(worker.number)
        while piece is not None and piece.start in self._covered:  # another has done it meanwhile
            piece = self._dealer.next(worker.number)
        return piece

    def _ask(self, worker: Worker, kind: str, piece: Slice | None, *arguments: Any) -> None:
        self._workers.ask(worker, kind, self._job.number, self._job, *arguments, piece=piece)

    def _late(self, worker: Worker) -> Slice | None:
        """A slice of another worker's that it should have handed over by now."""
        if not self._durations:
            return None
        limit_s = LATE * statistics.median(self._durations)
        for other in self._workers.all:
            call = other.call
            if other is worker or call is None or call.job != self._job.number or time.monotonic() - call.began < limit_s:
                continue
            for piece in [*self._uncovered(other), *([call.piece] if call.kind == "add" and call.piece else [])]:
                if piece.start not in self._covered | self._copied:
                    log.info("%s is late: its slice from %d on is done by %s as well", other.name, piece.start, worker.name)
                    self._copied.add(piece.start)
                    return piece
        return None

    def _say_if_nobody_is_there(self) -> None:
        now = time.monotonic()
        if any(worker.where for worker in self._workers.all):
            self._alone_since = now
        elif now - self._alone_since >= SAY_SO_EVERY_S:
            self._alone_since = now
            needs = ", ".join(f"{number:g} {name}" for name, number in self._wanted.resources.items())
            log.warning("waiting for workers: none of %d is there yet, each needs %s", len(self._workers.all), needs)

    def _replace_silent(self) -> None:
        """A process that hangs holds its device for ever; one that begins may have much to load."""
        if not self._durations:
            return
        limit_s = max(SILENT_S, SILENT * statistics.median(self._durations))
        for worker in self._workers.all:
            call = worker.call
            if call is not None and call.kind != "hello" and worker.num_slices and time.monotonic() - call.began > limit_s:
                self._lose(worker, call, TimeoutError(f"it has not answered for {limit_s:.0f} s"))

    def _lose(self, worker: Worker, call: Call, reason: BaseException) -> None:
        gone = [piece for piece in self._uncovered(worker) if piece.start not in self._copied]
        self._finished -= {piece.start for piece in gone}
        self._count -= sum(map(len, gone))
        self._back(worker, call, gone)
        self._workers.lose(worker, reason)

    def _uncovered(self, worker: Worker) -> list[Slice]:
        """What it has finished that is in no top that was handed over."""
        return [piece for piece in worker.finished if piece.start not in self._covered]

    def _listen(self) -> None:
        """Wait a moment for answers, and act on them."""
        for worker, call, answer in self._workers.answers(LOOK_EVERY_S):
            if isinstance(answer, FolderMissing):
                self._send_files()
                self._back(worker, call)
            elif isinstance(answer, BaseException):
                if not _is_the_checkpoints(answer) or call.kind == "hello":
                    self._lose(worker, call, answer)
                elif call.job == self._job.number:  # or else it is about a checkpoint that was given up
                    raise answer
            elif call.job == self._job.number:
                worker.losses = 0
                self._take(worker, call, answer)

    def _back(self, worker: Worker, call: Call, gone: Iterable[Slice] = ()) -> None:
        """What this worker was at, and has not handed over, is for others."""
        back = list(gone)
        if call.job == self._job.number and call.piece is not None:
            if call.kind == "query_vectors":
                self._queries.appendleft(call.piece)
            elif call.piece.start not in self._covered:
                back.append(call.piece)
        self._copied -= {piece.start for piece in back}
        self._dealer.give_back(worker.number, back)

    def _send_files(self) -> None:
        import ray

        if not self._job.files:
            self._job = replace(self._job, files=sent_files(self._job.elsewhere.folder, ray.put))

    def _take(self, worker: Worker, call: Call, answer: Any) -> None:
        if call.kind == "query_vectors":
            assert call.piece is not None
            self._take_queries(call.piece, answer)
            return
        if call.kind == "add":
            assert call.piece is not None
            took_s = time.monotonic() - call.began
            self._durations.append(took_s)
            worker.busy_s += took_s
            worker.num_slices += 1
            worker.finished.append(call.piece)
            if call.piece.start not in self._finished:
                self._finished.add(call.piece.start)
                self._count += len(call.piece)
        if isinstance(answer, Handed):
            self._merge(worker, answer)
        self._control.progress("encoding", self._count, len(self._workload.ordinals))

    def _take_queries(self, piece: Slice, vectors: Float32) -> None:
        import ray

        self._vectors[piece.start] = vectors
        if len(self._vectors) == self._num_queries:
            self._sent = ray.put(np.concatenate([self._vectors[start] for start in sorted(self._vectors)]))

    def _merge(self, worker: Worker, handed: Handed) -> None:
        began = time.monotonic()
        self._top = merge([*([] if self._top is None else [self._top]), handed.top], self._workload.tie_rank)
        self._ranker.merge_s = time.monotonic() - began
        self._covered |= {piece.start for piece in handed.slices}
        worker.handed_at = time.monotonic()
        worker.handed = [*(worker.handed if worker.is_new else worker.handed[:-1]), handed]
        worker.is_new = False
        if time.monotonic() - self._saved_at >= self._wanted.save_every_s:
            self._save()

    def _save(self) -> None:
        if self._top is not None and len(self._covered) > self._num_saved:
            self._progress.save(self._covered, self._top)
            self._num_saved = len(self._covered)
        self._saved_at = time.monotonic()

    def _settle(self) -> None:
        """Have what is finished handed over, as far as that takes no time."""
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end:
            for worker in self._workers.all:
                if self._sent is not None and worker.actor is not None and worker.call is None and self._uncovered(worker):
                    self._ask(worker, "top", None, self._sent)
            if not any(worker.call is not None and worker.call.job == self._job.number for worker in self._workers.all):
                return
            with contextlib.suppress(DrValidateError, RuntimeError, OSError):  # the next call meets it again
                self._listen()

    def _ranked(self) -> Ranked:
        assert self._top is not None
        handed = [one for worker in self._workers.all for one in worker.handed]
        busy = [worker for worker in self._workers.all if worker.num_slices]
        for worker in busy:
            speed = worker.num_slices / max(worker.busy_s, 1e-9)
            log.info("%s: %d slices, %.2f/s, lost %d times", worker.name, worker.num_slices, speed, worker.num_lost)
        return Ranked(
            ranking=ranking_of(self._top, self._workload),
            encoded_now=min(sum(one.encoded_now for one in handed), self._num_needed),  # what two did, was needed once
            # The mean: what devices do at the same time takes as long as one of them.
            seconds={phase: sum(one.seconds[phase] for one in handed) / max(1, len(busy)) for phase in handed[0].seconds},
            contract=handed[-1].contract,
            workers=[_account(worker) for worker in self._workers.all],
        )

    @property
    def _wanted(self) -> Wanted:
        return self._workers.wanted


def _account(worker: Worker) -> Mapping[str, Any]:
    numbers = {"slices": worker.num_slices, "busy_s": round(worker.busy_s, 3), "lost": worker.num_lost}
    return {"worker": worker.number, "where": worker.where, **numbers}


def _is_the_checkpoints(error: BaseException) -> bool:
    """Whether every worker would meet it: it ends the ranking, and no worker is at fault."""
    return isinstance(error, DrValidateError) or is_out_of_memory(error) or is_disk_full(error) or is_read_only(error)


class Dealer:
    """Gives each slice to exactly one of several workers, to whoever asks first; workers come and go.

    A worker has a block to itself as long as there are untouched ones: two that took turns in one block would both tokenize
    it, and wait for each other's kept vectors. After that it takes the last slice of whoever has most left.
    """

    def __init__(self, slices: Iterable[Slice]) -> None:
        self._untouched: deque[deque[Slice]] = deque(_by_block(slices))
        self._own: dict[Hashable, deque[Slice]] = {}
        self._left = sum(map(len, self._untouched))

    def __len__(self) -> int:
        return self._left

    def next(self, worker: Hashable) -> Slice | None:
        """What this worker is to do next; None when nothing is left."""
        own = self._own.setdefault(worker, deque())
        if not own and self._untouched:
            own.extend(self._untouched.popleft())
        self._left -= self._left > 0
        if own:
            return own.popleft()
        richest = max(self._own.values(), key=len)
        return richest.pop() if richest else None

    def following(self, worker: Hashable) -> Slice | None:
        """What it would be given after that, as far as can be known."""
        block = self._own.get(worker) or (self._untouched[0] if self._untouched else ())
        return block[0] if block else None

    def give_back(self, worker: Hashable, slices: Iterable[Slice]) -> None:
        """This worker is gone: what it had not begun, and `slices`, are for others, before all else."""
        begun = list(slices)
        self._left += len(begun)
        mine = [*self._own.pop(worker, ()), *begun]
        self._untouched.extendleft(reversed(_by_block(sorted(mine, key=lambda piece: piece.start))))


def merge(tops: Sequence[TopK], tie_rank: Int64) -> TopK:
    """The best of all of them, in the order of `TopK`. A document counts once, with its best score, in however many it is: so
    a part may be merged again when it has grown, and two may hold the same documents."""
    starts = range(0, len(tops[0].scores), ROWS_AT_ONCE)
    parts = [_merge_rows(tops, slice(start, start + ROWS_AT_ONCE), tie_rank) for start in starts]
    documents, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return TopK(documents=documents, scores=scores)


def _by_block(slices: Iterable[Slice]) -> list[deque[Slice]]:
    return [deque(group) for _, group in groupby(slices, key=lambda piece: piece.block)]


def _merge_rows(tops: Sequence[TopK], rows: slice, tie_rank: Int64) -> tuple[Int64, Float32]:
    documents = np.concatenate([top.documents[rows] for top in tops], axis=1)
    scores = np.concatenate([top.scores[rows] for top in tops], axis=1)
    # A stable sort is a merge of sorted runs, which these are: four times as fast as another one.
    order = np.argsort(_places(documents, scores, tie_rank), axis=1, kind="stable")
    documents, scores = np.take_along_axis(documents, order, axis=1), np.take_along_axis(scores, order, axis=1)
    again = _again(documents)
    documents, scores = np.where(again, np.int64(-1), documents), np.where(again, np.float32(-np.inf), scores)
    best = np.argsort(documents < 0, axis=1, kind="stable")[:, : tops[0].scores.shape[1]]
    return np.take_along_axis(documents, best, axis=1), np.take_along_axis(scores, best, axis=1)


def _again(documents: Int64) -> NDArray[np.bool_]:
    """Where a row has a document that it had before."""
    order = np.argsort(documents, axis=1, kind="stable")
    ordered = np.take_along_axis(documents, order, axis=1)
    found = np.zeros(documents.shape, dtype=bool)
    found[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    again = np.empty_like(found)
    np.put_along_axis(again, order, found, axis=1)
    return again


def _places(documents: Int64, scores: Float32, tie_rank: Int64) -> Int64:
    """Numbers that ascend as scores descend and, where those are equal, as tie ranks ascend; one sort instead of two."""
    bits = np.ascontiguousarray(scores).view(np.int32).astype(np.int64)
    ascending = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # as integers, floats below zero run backwards
    ties = np.where(documents < 0, np.int64(2**32 - 1), tie_rank[documents])
    places: Int64 = -ascending * 2**32 + ties
    return places
