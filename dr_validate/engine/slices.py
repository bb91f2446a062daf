"""A ranking in parts: texts cut into slices, who takes which next, the tops of parts merged, the file of what is done."""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Hashable, Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from dr_validate.files import read_arrays, write_arrays
from dr_validate.stages import Index, TextBlocks, Workload
from dr_validate.values import Float32, Int64, Ranking, TopK

ROWS_AT_ONCE = 256  # stays in the processor's cache
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Consecutive texts of one block: what is encoded between two looks at the control."""

    block: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def part(self) -> slice:
        """Positions among all texts."""
        return slice(self.start, self.stop)


def cut(blocks: TextBlocks, size: int) -> list[Slice]:
    """All texts, at most `size` at a time; a slice never crosses the border of a block."""
    slices = []
    for number in range(len(blocks)):
        block = blocks.positions(number)
        for start in range(block.start, block.stop, size):
            slices.append(Slice(block=number, start=start, stop=min(start + size, block.stop)))
    return slices


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


def ranking_of(top: TopK, workload: Workload) -> Ranking:
    """Own documents dropped, everything below them one place up, cut to top_k."""
    own = (top.documents == workload.own_documents[:, None]) & (top.documents >= 0)
    order = np.argsort(own, axis=1, kind="stable")[:, : workload.top_k]
    documents = np.take_along_axis(top.documents, order, axis=1)
    return Ranking(documents=documents, scores=np.take_along_axis(top.scores, order, axis=1))


def searched_k(workload: Workload) -> int:
    """How deep to search: the document that is the query itself takes a place until it is dropped."""
    return workload.top_k + int(np.any(workload.own_documents >= 0))


class Progress:
    """The file of one workload, whose documents are cut into `slices`. On how many devices the work began plays no part."""

    def __init__(self, workload: Workload, index: Index, slices: Sequence[Slice]) -> None:
        self._path, self._slices = workload.progress_file, slices
        # Which weights and texts these are is in the file's name: the vectors' bits depend on the batches they were in.
        key = {
            "digest": hashlib.sha256(workload.ordinals.tobytes() + workload.own_documents.tobytes()).hexdigest(),
            "top_k": searched_k(workload),
            "slices": hashlib.sha256(str([(piece.start, piece.stop) for piece in slices]).encode()).hexdigest(),
            "index": dict(index.fingerprint()),
        }
        self._key = json.dumps(key, sort_keys=True)

    def save(self, done: Set[int], top: TopK) -> None:
        """Write atomically that the slices which begin at `done` are finished and in `top`."""
        starts = np.array(sorted(done), dtype=np.int64)
        write_arrays(self._path, key=self._key, done=starts, documents=top.documents, scores=top.scores)

    def load(self) -> tuple[frozenset[int], TopK | None]:
        """The slices of this very work that are done, by their first position, and the best documents of them; nothing where
        there is no file, or a damaged or foreign one, which is logged."""
        try:
            key, starts, documents, scores = read_arrays(self._path, "key", "done", "documents", "scores")
            done, top = frozenset(starts.tolist()), TopK(documents=documents, scores=scores)
        except FileNotFoundError:
            return frozenset(), None
        except (OSError, ValueError, TypeError, AssertionError) as error:
            log.warning("%s cannot be used (%s): encoding starts from the first document", self._path, error)
            return frozenset(), None
        if str(key) != self._key:
            log.warning("%s belongs to other work: encoding starts from the first document", self._path)
            return frozenset(), None
        log.info("ranking goes on after %d of %d documents", self.count(done), sum(map(len, self._slices)))
        return done, top

    def count(self, done: Set[int]) -> int:
        """Documents in these slices."""
        return sum(len(piece) for piece in self._slices if piece.start in done)

    def clear(self) -> None:
        """The work is finished."""
        self._path.unlink(missing_ok=True)


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
