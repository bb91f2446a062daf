"""What one device does of a ranking: slices of texts through the model, documents on into a running top-k.

Vectors stay on the device. Beside what it computes, a thread reads what is kept of the next slice and tokenizes the rest, and
the store writes what was made; the device is waited for once a slice, for the one before. Imports torch when it is used.
"""

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from dr_validate.devices import Landing
from dr_validate.engine.slices import Slice, searched_k
from dr_validate.errors import CheckpointError
from dr_validate.stages import Index, Kept, Model, Search, TextBlocks, Vectors, Workload
from dr_validate.values import Int64, Side, TokenBlock, TopK

if TYPE_CHECKING:
    from torch import Tensor


class Share:
    """Documents may be added before the search is open: they are searched as soon as it is. To be closed."""

    def __init__(self, model: Model, workload: Workload, index: Index, device: str) -> None:
        self._workload, self._index, self._device = workload, index, device
        every_query = np.arange(len(workload.own_documents))
        self._finite = _Finite(model)
        options = workload.vectors, model, device, self._finite
        self.queries = Texts("query", workload.queries, every_query, *options)
        self.documents = Texts("document", workload.documents, workload.ordinals, *options)
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
                raise CheckpointError(
                    f"{broken} of {number} {side} vectors hold NaN or Inf ({self._model.contract.get('dtype')}): the weights "
                    "diverged, or the type is too narrow; try encoder.dtype=float32"
                )


class Texts:
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
            assert self._model.dim > 0  # it is loaded now, which is a phase of its own
            loaded = time.monotonic()
            tokens = pick(self._blocks.block(piece.block), rows + offset)
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


def pick(tokens: TokenBlock, rows: Int64) -> TokenBlock:
    """Some texts of a block, in the order of `rows`."""
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):  # nothing needs to be copied
        first, last = int(tokens.offsets[rows[0]]), int(tokens.offsets[rows[-1] + 1])
        return TokenBlock(ids=tokens.ids[first:last], offsets=tokens.offsets[rows[0] : rows[-1] + 2] - first)
    lengths = tokens.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(int(offsets[-1])) + np.repeat(tokens.offsets[rows] - offsets[:-1], lengths)
    return TokenBlock(ids=np.asarray(tokens.ids)[places], offsets=offsets)
