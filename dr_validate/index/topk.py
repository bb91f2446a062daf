"""The running exact top-k behind every index, on the device of its vectors. Imports torch: imported when a search is opened.

A score is a product in float64, rounded once to float32; a hit is one int64 key, so one sort orders scores and ties. What a
library (faiss, or torch in float32) names is scored so before it counts. Sums added in another order differ by about 1e-16
of |q||d|: where that lies on a rounding border of float32, one pair in some 1e8, equal documents in other blocks, or the same
in another index, may get neighbouring scores and change places. No test can promise more; all others order by document.

On one H200, 8,192 documents x 6,980 queries x 768 took 6 ms by torch, 16 by faiss' knn_gpu for 1,024 queries at a time (k=100).
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dr_validate.devices import free_memory, is_out_of_memory, to_device
from dr_validate.errors import NoMemory
from dr_validate.values import Float32, Int64, TopK

log = logging.getLogger(__name__)

NOTHING = 2**63 - 1  # sorts after every hit
LOW = 2**32 - 1
QUERIES_AT_ONCE, DOCUMENTS_AT_ONCE = 1024, 8192  # what bounds memory, whatever the size of a block
PROPOSED_AT_ONCE = 8192  # queries of which a library on a GPU names candidates: its time is mostly one of launching and waiting
FEWEST_QUERIES = 16  # at once: with less memory than for these there is none to speak of
MARGIN = 32  # candidates asked of a library beyond top_k: near-ties at the cut seldom make it be asked in vain
DENSE_FROM = 1 / 64  # one product over everything is faster than single pairs from about this share of pairs on
PAIRS_AT_ONCE = {"cpu": 256, "cuda": 1 << 14}  # by kind of device; on a CPU both sides stay in the cache


class Library(Protocol):
    """What a search library does for the running top-k."""

    def load(self, block: Tensor) -> None:
        """Take the next block, (n, dim) float32 on the device."""
        ...

    def propose(self, rows: slice, count: int) -> tuple[Tensor, Tensor]:
        """(num_rows, count) float32 scores and int64 positions in the block for some queries, best first, -1 for none."""
        ...


def sort_keys(scores: Tensor, ties: Tensor) -> Tensor:
    """int64 keys: ascending is float32 scores descending, then tie ranks ascending. Score bits lie in the high half."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes 0.0 of -0.0
    return (torch.where(bits < 0, bits & 0x7FFFFFFF, ~bits).long() << 32) | ties


def scores_of(keys: Tensor) -> Tensor:
    """The float32 scores, -inf where there is no hit."""
    high = (keys >> 32).int()
    bits = torch.where(high < 0, ~high, high | -(2**31))
    return bits.view(torch.float32).masked_fill(keys == NOTHING, -torch.inf)


def top_of(keys: Tensor, document_of: Int64) -> TopK:
    """Documents and scores of sorted keys; `document_of[tie_rank]` is the ordinal."""
    found, ties = (keys != NOTHING).cpu().numpy(), (keys & LOW).cpu().numpy()
    documents = np.where(found, document_of[np.where(found, ties, 0)], np.int64(-1))
    return TopK(documents=documents, scores=scores_of(keys).cpu().numpy())


@dataclass(frozen=True, kw_only=True)
class _Block:
    single: Tensor  # (n, dim) float32
    ties: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.single)

    @cached_property
    def double(self) -> Tensor:
        return self.single.double()

    @cached_property
    def longest(self) -> Tensor:
        """The largest Euclidean norm."""
        norms: Tensor = torch.linalg.vector_norm(self.single, dim=1, dtype=torch.float64)
        return norms.max()


class RunningTopK:
    """The `Search` protocol. Without a library torch names the candidates; with `exact` false, what it leaves out is lost."""

    def __init__(
        self,
        queries: "Tensor | Float32",
        top_k: int,
        tie_rank: Int64,
        device: str,
        library: Library | None = None,
        *,
        exact: bool = True,
    ) -> None:
        assert len(tie_rank) < LOW, "keys hold 32 bits of tie rank"
        self._device, self._library, self._exact, self._top_k = device, library, exact, top_k
        self._single = torch.as_tensor(queries, dtype=torch.float32, device=device).contiguous()
        self._double = self._single.double()
        # Bound on the error of a float32 sum per unit of the document's norm, whatever the order of adding.
        self._slack = self._double.norm(dim=1) * ((self._single.shape[1] + 2) * 2.0**-24)
        self._tie_rank = tie_rank
        self._document_of = np.empty(len(tie_rank), dtype=np.int64)
        self._document_of[tie_rank] = np.arange(len(tie_rank))
        self._keys = torch.full((len(self._single), top_k), NOTHING, dtype=torch.int64, device=device)
        self._least = 0  # hits that each query has at least
        self._at_once = PROPOSED_AT_ONCE if library is not None and device.startswith("cuda") else QUERIES_AT_ONCE

    def add(self, vectors: "Tensor | Float32", ordinals: Int64) -> None:
        """See `Search.add`. An exact search cuts big blocks into parts; an approximate one indexes them as they come."""
        single = torch.as_tensor(vectors, dtype=torch.float32, device=self._device)
        ties = to_device(self._tie_rank[ordinals], self._device)
        size = DOCUMENTS_AT_ONCE if self._exact else max(1, len(single))
        for start in range(0, len(single), size):
            part = slice(start, start + size)
            self._add(_Block(single=single[part].contiguous(), ties=ties[part]))

    def top(self) -> TopK:
        """See `Search.top`."""
        return top_of(self._keys, self._document_of)

    def restore(self, top: TopK) -> None:
        """See `Search.restore`."""
        assert top.documents.shape == tuple(self._keys.shape), "restored top-k is of another search"
        found = top.documents >= 0
        ties = torch.from_numpy(self._tie_rank[np.where(found, top.documents, 0)])
        keys = sort_keys(torch.tensor(top.scores), ties).masked_fill(torch.from_numpy(~found), NOTHING)
        self._keys = keys.sort(dim=1).values.to(self._device)
        self._least = int(found.sum(axis=1).min())

    def _add(self, block: _Block) -> None:
        """Merge a block for all queries, for fewer of them at a time where memory runs out."""
        if self._library is not None:
            self._library.load(block.single)
        start = 0
        while start < len(self._keys):
            rows = slice(start, start + self._at_once)
            try:
                self._keys[rows] = self._merged(rows, block)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error)
            else:
                start = rows.stop
        self._least += len(block)

    def _halve(self, error: RuntimeError) -> None:
        if self._at_once <= FEWEST_QUERIES:
            raise NoMemory(
                f"no memory on {self._device} to search ({error}); end what else runs there, or lower top_k or "
                "encoder.max_tokens_per_batch"
            ) from error
        self._at_once //= 2
        free_memory(self._device)
        log.warning("out of memory on %s: searching for at most %d queries at once", self._device, self._at_once)

    def _merged(self, rows: slice, block: _Block) -> Tensor:
        """(num_rows, top_k) keys of these queries after the block."""
        keys = self._keys[rows]
        pairs = self._candidates(rows, block, keys)
        if pairs is None:
            last = min(rows.stop, len(self._keys))
            parts = [slice(start, min(start + QUERIES_AT_ONCE, last)) for start in range(rows.start, last, QUERIES_AT_ONCE)]
            every = [torch.cat([self._keys[part], self._all(part, block)], dim=1) for part in parts]
            return torch.cat([_first(keys, self._top_k) for keys in every])
        row, position = pairs
        queries, scores = self._double[rows], torch.empty(len(row), dtype=torch.float32, device=row.device)
        size = PAIRS_AT_ONCE[row.device.type]
        for start in range(0, len(row), size):
            part = slice(start, start + size)
            scores[part] = (queries[row[part]] * block.single[position[part]]).sum(dim=1).float()
        return _merge(keys, row, sort_keys(scores, block.ties[position]))

    def _candidates(self, rows: slice, block: _Block, keys: Tensor) -> tuple[Tensor, Tensor] | None:
        """Queries (counted from the first) and positions of all that can enter, ascending; None: too many to look at singly.

        On a GPU torch needs none: sorting all of a block there is cheaper than to wait for their number.
        """
        if self._library is not None and not self._exact:
            positions = self._library.propose(rows, min(self._top_k, len(block)))[1]
            row, column = torch.nonzero(positions >= 0, as_tuple=True)
            return row, positions[row, column]
        if self._least * DENSE_FROM < self._top_k or (self._library is None and keys.is_cuda):
            return None  # about so many of the documents enter while few were seen
        kth = scores_of(keys[:, -1]).double() - self._slack[rows] * block.longest
        floor = torch.nextafter(kth.float(), torch.tensor(-torch.inf, device=kth.device))
        if self._library is None:
            allowed = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")  # whatever somebody allowed: the slack is that of float32
            try:
                found = self._single[rows] @ block.single.T >= floor[:, None]
            finally:
                torch.set_float32_matmul_precision(allowed)
            row, position = torch.nonzero(found, as_tuple=True)
        else:
            count = min(self._top_k + MARGIN, len(block))
            scores, positions = self._library.propose(rows, count)
            if count < len(block) and bool((scores[:, -1] >= floor).any()):
                return None  # more may reach the floor than were named
            row, column = torch.nonzero(scores >= floor[:, None], as_tuple=True)
            position = positions[row, column]
        return None if len(row) > DENSE_FROM * len(keys) * len(block) else (row, position)

    def _all(self, rows: slice, block: _Block) -> Tensor:
        """Keys of the best documents of the block, in any order."""
        keys = sort_keys((self._double[rows] @ block.double.T).float(), block.ties)
        return keys if len(block) <= self._top_k else keys.topk(self._top_k, dim=1, largest=False, sorted=False).values


def _merge(keys: Tensor, row: Tensor, entering: Tensor) -> Tensor:
    """The smallest of each row of sorted `keys` and of what enters it; `row` ascends."""
    better = entering < keys[row, -1]
    row, entering = row[better], entering[better]
    if not len(row):
        return keys
    changed, place, counts = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    padded = torch.full((len(changed), int(counts.max())), NOTHING, dtype=torch.int64, device=keys.device)
    padded[place, torch.arange(len(row), device=keys.device) - first[place]] = entering
    merged = keys.clone()
    merged[changed] = _first(torch.cat([keys[changed], padded], dim=1), keys.shape[1])
    return merged


def _first(keys: Tensor, count: int) -> Tensor:
    """The smallest `count` of each row, ascending."""
    if keys.is_cuda:
        return keys.sort(dim=1).values[:, :count]
    return torch.from_numpy(np.sort(keys.numpy(), axis=1)[:, :count])  # with vector instructions, which torch's has not
