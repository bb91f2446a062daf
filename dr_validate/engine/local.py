"""Encode and search on one device: slices of documents through the model into the running top-k; and what every engine needs
for that: slices, the share of one device, the file of what is done.

Vectors stay on the device. Beside what it computes, a thread reads what is kept of the next slice and tokenizes the rest, and
the store writes what was made; the device is waited for once a slice, for the one before. Imports torch when it is used.
"""

import contextlib
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from dr_validate.component import component
from dr_validate.devices import Landing, hold, resolve_device
from dr_validate.errors import CheckpointError, Interrupted
from dr_validate.files import read_arrays, write_arrays
from dr_validate.stages import Control, Index, Kept, Model, Ranked, Ranker, Search, TextBlocks, Vectors, Workload
from dr_validate.values import Int64, Ranking, Side, TopK

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
SLICE = 2048
SLICE_ON_A_GPU = 8192  # a third of a second there, where a smaller one does not fill it
SLICE_OF_A_BASELINE = 256  # preemptible, on a CPU, where it takes a second, and a fifth longer than as a part of a larger one


@component
class LocalEngine:
    """One device in this process.

    Unfinished work is kept every `save_every_s` and when it is told to stop. `slice_documents` is how many documents are
    encoded between two checks of the control: enough for batches of equal length, few enough to stop soon. None: 2,048, 8,192
    on GPUs, and 256 for a baseline on a CPU, which is preemptible.
    """

    save_every_s: float = Field(default=30, ge=0)
    slice_documents: int | None = Field(default=None, ge=1)

    def find_device(self, wanted: str) -> str:
        """See `Engine.find_device`: one of this machine. Imports torch."""
        return resolve_device(wanted)

    def problems_of_many(self) -> Sequence[str]:
        """See `Engine.problems_of_many`: they take turns on the device."""
        return ()

    def describe(self, device: str) -> str:
        """See `Engine.describe`."""
        return ""

    def start(self, device: str) -> AbstractContextManager[Ranker]:
        """See `Engine.start`."""
        hold(device)
        return contextlib.nullcontext(self)

    def clean_up(self) -> None:
        """See `Engine.clean_up`: progress files are for the next start."""

    def rank(self, model: Model, workload: Workload, index: Index, control: Control, device: str) -> Ranked:
        """See `Ranker.rank`. Raises Interrupted when told to stop; the next call goes on from there, to the same ranking."""
        import torch

        size = slice_size(self.slice_documents, workload, index, device)
        slices = cut(workload.documents, size)
        progress = Progress(workload, index, slices)
        with contextlib.closing(DeviceShare(model, workload, index, device)) as share:
            queries = []
            for piece in cut(workload.queries, size):
                control.check()
                queries.append(share.queries.vectors(piece))
            finished, top = progress.load()
            share.open(torch.cat(queries), top)
            done, num_saved, saved_at = set(finished), len(finished), time.monotonic()
            todo, count = [piece for piece in slices if piece.start not in done], progress.count(done)
            try:
                for piece, following in zip(todo, [*todo[1:], None], strict=False):  # none left after a kill at the end
                    control.check()
                    share.add(piece, following)
                    done.add(piece.start)
                    count += len(piece)
                    control.progress("encoding", count, len(workload.ordinals))
                    if time.monotonic() - saved_at >= self.save_every_s:
                        progress.save(done, share.top())
                        num_saved, saved_at = len(done), time.monotonic()
            except Interrupted:
                if len(done) > num_saved:
                    progress.save(done, share.top())
                raise
            ranking = ranking_of(share.top(), workload)
        progress.clear()
        return Ranked(ranking=ranking, encoded_now=share.documents.encoded_now, seconds=share.seconds)


def slice_size(wanted: int | None, workload: Workload, index: Index, device: str) -> int:
    """Documents between two checks of the control; the same in every engine, so that vectors come from the same batches."""
    if wanted or index.fingerprint():
        # The ranking of an approximate index depends on the slices: they are the same wherever and whyever it is made.
        return wanted or SLICE
    if device.startswith("cuda"):
        return SLICE_ON_A_GPU
    return SLICE_OF_A_BASELINE if workload.preemptible else SLICE


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Consecutive texts of one block: what is encoded between two checks of the control."""

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


class DeviceShare:
    """What one device encodes and searches of a ranking. Documents may be added before the search is open: they are searched as
    soon as it is. To be closed."""

    def __init__(self, model: Model, workload: Workload, index: Index, device: str) -> None:
        self._workload, self._index, self._device = workload, index, device
        every_query = np.arange(len(workload.own_documents))
        self._finite = _Finite(model)
        options = workload.vectors, model, device, self._finite
        self.queries = SideEncoder("query", workload.queries, every_query, *options)
        self.documents = SideEncoder("document", workload.documents, workload.ordinals, *options)
        self._search: Search | None = None
        self._unsearched: list[tuple[Tensor, Slice]] = []
        self._search_s = 0.0

    def close(self) -> None:
        """End the threads, after what they do now."""
        self.documents.close()

    def settle(self) -> None:
        """Wait for the device. Raises CheckpointError for vectors that are not finite."""
        self.documents.wait(0)

    def open(self, queries: Any, top: TopK | None = None) -> None:
        """Open the search for these vectors of all queries, and go on from `top` where there is one."""
        work = self._workload
        self._search = self._index.open(queries, searched_k(work), work.tie_rank, self._device)
        if top is not None:
            self._search.restore(top)
        self._search_all()

    def add(self, piece: Slice, following: Slice | None = None) -> None:
        """Encode a slice of the documents and search it, while a thread prepares the one that follows. Raises CheckpointError
        for vectors that are not finite, on a GPU those of the slice before."""
        self._unsearched.append((self.documents.vectors(piece, following), piece))
        self._search_all()
        self.documents.wait(0 if self._device == "cpu" else 1)

    def top(self) -> TopK:
        """The best documents of those added so far."""
        assert self._search is not None, "asked for the top before the search is open"
        self.settle()
        return self._search.top()

    @property
    def seconds(self) -> Mapping[str, float]:
        """By phase, as this thread spent them: what others did meanwhile is in none."""
        sides = (self.queries.seconds, self.documents.seconds)
        return {phase: sum(seconds[phase] for seconds in sides) for phase in sides[0]} | {"search": self._search_s}

    def _search_all(self) -> None:
        if self._search is None:
            return
        began = time.monotonic()
        for vectors, piece in self._unsearched:
            self._search.add(vectors, self._workload.ordinals[piece.part])
        self._unsearched.clear()
        self._search_s += time.monotonic() - began


class _Finite:
    """How many new vectors are not finite: counted on the device, read when it has long been counted."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.unread: deque[tuple[Side, int, Landing]] = deque()

    def count(self, side: Side, vectors: "Tensor") -> None:
        """Begin with these."""
        broken = (~vectors.isfinite()).any(dim=1).sum()
        self.unread.append((side, len(vectors), Landing().fill(broken)))

    def wait(self, but: int) -> None:
        """For all counts but the last few. Raises CheckpointError where one is not 0."""
        while len(self.unread) > but:
            side, number, landing = self.unread.popleft()
            if broken := int(landing.array()):
                dtype = self._model.contract.get("dtype")
                narrow = "" if dtype == "float32" else ", or the type is too narrow; try encoder.dtype=float32"
                raise CheckpointError(
                    f"{broken} of {number} {side} vectors hold NaN or Inf ({dtype}): the weights diverged{narrow}"
                )


class SideEncoder:
    """The texts of one side of a workload; counts what had to be encoded and adds up the seconds of each phase. Neither the
    model nor the tokens are touched for a slice whose vectors are all kept."""

    def __init__(
        self, side: Side, blocks: TextBlocks, ordinals: Int64, vectors: Vectors, model: Model, device: str, finite: _Finite
    ) -> None:
        self._side, self._blocks, self._ordinals, self._vectors, self._model = side, blocks, ordinals, vectors, model
        self._device, self._finite = device, finite
        self._ahead: tuple[Slice, Future[Kept]] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.encoded_now = 0
        self.seconds = {"encode": 0.0, "tokenize": 0.0, "vectors": 0.0}

    def close(self) -> None:
        """End the thread, after what it does now."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def wait(self, but: int) -> None:
        """See `_Finite.wait`: until the device has encoded so much."""
        if self._finite.unread:
            began = time.monotonic()
            self._finite.wait(but)
            self.seconds["encode"] += time.monotonic() - began

    def vectors(self, piece: Slice, following: Slice | None = None) -> "Tensor":
        """(num_texts, dim) on the device."""
        import torch

        offset = piece.start - self._blocks.positions(piece.block).start
        kept = self._kept(piece)
        elsewhere = 0.0  # seconds in the model and in what it needs first

        def encode(rows: Int64) -> "Tensor":
            nonlocal elsewhere
            asked = time.monotonic()
            _ = self._model.dim  # it is loaded now, which is a phase of its own
            loaded = time.monotonic()
            tokens = self._blocks.block(piece.block).take(rows + offset)
            began = time.monotonic()
            self._begin(following, tokens=True)
            vectors = torch.as_tensor(self._model.encode(tokens, self._side), device=self._device)
            self._finite.count(self._side, vectors)
            self.encoded_now += len(rows)
            self.seconds["tokenize"] += began - loaded
            self.seconds["encode"] += time.monotonic() - began
            elsewhere += time.monotonic() - asked
            return vectors

        began = time.monotonic()
        vectors = self._vectors.get(self._side, self._ordinals[piece.part], encode, self._device, kept)
        self.seconds["vectors"] += time.monotonic() - began - elsewhere
        self._begin(following, tokens=False)
        return vectors

    def _begin(self, following: Slice | None, *, tokens: bool) -> None:
        """Have the thread prepare a slice, if it does not do so already; `tokens`: this one had to be encoded."""
        if following is not None and (self._ahead is None or self._ahead[0] != following):
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="ahead")
            self._ahead = following, self._pool.submit(self._prepare, following, tokens)

    def _kept(self, piece: Slice) -> Kept | None:
        """What the thread found; None where it was not asked."""
        if self._ahead is None or self._ahead[0] != piece:
            return None
        began = time.monotonic()
        kept = self._ahead[1].result()
        phase = "tokenize" if self.encoded_now and not kept.mask.all() else "vectors"
        self.seconds[phase] += time.monotonic() - began
        return kept

    def _prepare(self, piece: Slice, tokens: bool) -> Kept:
        """What is kept, read, and with `tokens` the rest tokenized."""
        kept = self._vectors.look(self._side, self._ordinals[piece.part])
        if tokens and not kept.mask.all():
            self._blocks.block(piece.block)
        return kept


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
    """The file that says what is done of one workload, whose documents are cut into `slices`, on any number of devices."""

    def __init__(self, workload: Workload, index: Index, slices: Sequence[Slice]) -> None:
        self._path, self._slices = workload.progress_file, slices
        # Which weights and texts these are is in the file's name. The slices count: the bits of a vector depend on its batch.
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
