"""The running top-k behind every index: a library proposes, this decides, so every exact index gives the same ranking.

A library (faiss, torch) names the candidates of a block by its own float32 scores. Those that can enter are scored
canonically (`canonical.py`) and merged by score, then tie rank. Where the library may have left out something that
belongs in - near-ties at the cut, thousands of equal documents - the block is scored again for that query, completely.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dr_validate.index import keys as hits
from dr_validate.index.canonical import Vectors, products, round_sums, score_pairs, uncertainty
from dr_validate.values import Float32, Float64, Int64, TopK

log = logging.getLogger(__name__)

QUERIES_AT_ONCE = 1024
DOCUMENTS_AT_ONCE = 8192  # with the line above: what bounds memory, whatever the size of a block
SCORES_AT_ONCE = 1 << 22  # of one complete rescan, 32 MiB
MARGIN = 32  # candidates beyond top_k, so that rounding at the cut seldom asks for a rescan
LOW_PRECISION = 2.0**-7  # covers libraries that silently multiply in bfloat16 or TF32


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Candidates of one block for some queries; whatever is not in it scores at most `rest` by the library's own scores."""

    rows: Int64  # (num_candidates,) ascending, counted from the first of those queries
    positions: Int64  # (num_candidates,) in the block
    scores: Float32  # (num_candidates,) the library's
    rest: Float32  # (num_queries,)


class Library(Protocol):
    """What a search library does for the running top-k."""

    def load(self, vectors: Float32) -> None:
        """Take the next block, (n, dim)."""
        ...

    def propose(self, queries: slice, count: int, floor: Float32) -> Proposal:
        """The best `count` documents of the block, or more, for each of these queries.

        Those that the library scores under `floor` (num_queries,) may be missing.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    vectors: Vectors
    tie_ranks: NDArray[np.uint64]


class RunningTopK:
    """The `Search` protocol. With `exact` false, what the library does not propose is lost."""

    def __init__(self, queries: Float32, top_k: int, tie_rank: Int64, library: Library, *, exact: bool = True) -> None:
        assert len(tie_rank) < 2**32 - 1, "keys hold 32 bits of tie rank"
        self._queries = Vectors.of(queries)
        self._tie_rank = tie_rank
        self._document_of = np.empty(len(tie_rank), dtype=np.int64)
        self._document_of[tie_rank] = np.arange(len(tie_rank))
        self._library = library
        self._exact = exact
        self._keys = np.full((len(queries), top_k), hits.NOTHING)
        self._slack = (queries.shape[1] + 2) * 2.0**-24  # error of a float32 sum per |q||d|, see `canonical.uncertainty`

    def add(self, vectors: Float32, ordinals: Int64) -> None:
        """See `Search.add`. An exact search cuts big blocks into parts; an approximate one indexes them as they come."""
        size = DOCUMENTS_AT_ONCE if self._exact else max(1, len(vectors))
        for part in _parts(len(vectors), size):
            block = _Block(vectors=Vectors.of(vectors[part]), tie_ranks=self._tie_rank[ordinals[part]].astype(np.uint64))
            self._library.load(block.vectors.single)
            for rows in _parts(len(self._queries), QUERIES_AT_ONCE):
                self._keys[rows] = self._merged(rows, block)

    def top(self) -> TopK:
        """See `Search.top`."""
        return hits.to_top(self._keys, self._document_of)

    def restore(self, top: TopK) -> None:
        """See `Search.restore`."""
        assert top.documents.shape == self._keys.shape, "restored top-k is of another search"
        self._keys = hits.from_top(top, self._tie_rank)

    def _merged(self, rows: slice, block: _Block) -> hits.Keys:
        queries, keys = self._queries.part(rows), self._keys[rows]
        num_documents = len(block.vectors)
        slack = self._slack * queries.norms * block.vectors.norms.max()
        floor = np.full(len(queries), -np.inf) if not self._exact else hits.scores_of(keys[:, -1]) - slack
        count = min(keys.shape[1] + (MARGIN if self._exact else 0), num_documents)
        proposal = self._library.propose(rows, count, _rounded_down(floor))
        scores = score_pairs(queries, block.vectors, proposal.rows, proposal.positions)
        merged = hits.merge(keys, proposal.rows, hits.encode(scores, block.tie_ranks[proposal.positions]))
        if not self._exact:
            return merged
        if np.any(np.abs(proposal.scores.astype(np.float64) - scores) > slack[proposal.rows]):
            return self._distrust(rows, block)
        left_out = np.isfinite(proposal.rest)
        incomplete = np.flatnonzero(left_out & (proposal.rest + slack >= hits.scores_of(merged[:, -1])))
        if len(incomplete):
            merged[incomplete] = self._rescan(rows.start + incomplete, block, merged[incomplete, -1])
        return merged

    def _distrust(self, rows: slice, block: _Block) -> hits.Keys:
        """Scores further off than float32 can be: believe the library less from here on, and here not at all if need be."""
        if self._slack < LOW_PRECISION:
            log.warning("the search library computes less precisely than float32; its scores are checked more widely")
            self._slack = LOW_PRECISION
            return self._merged(rows, block)
        everyone = np.arange(rows.start, rows.start + len(self._keys[rows]))
        return self._rescan(everyone, block, self._keys[everyone, -1])

    def _rescan(self, rows: Int64, block: _Block, bound: hits.Keys) -> hits.Keys:
        """Keys of these queries after every document of the block was looked at; nothing after `bound` can enter."""
        result = self._keys[rows]
        documents = block.vectors
        for part in _parts(len(rows), max(1, SCORES_AT_ONCE // len(documents))):
            queries = _pick(self._queries, rows[part])
            sums = products(queries, documents)
            error = uncertainty(queries, documents) * documents.norms.max()
            kth = hits.scores_of(bound[part]).astype(np.float64)
            # Half a float32 step below the k-th score still rounds up to it.
            least = np.nextafter(kth.astype(np.float32), np.float32(-np.inf)).astype(np.float64) - error
            found, positions = np.nonzero(sums >= least[:, None])
            scores = round_sums(queries, documents, (found, positions), sums[found, positions])
            result[part] = hits.merge(result[part], found, hits.encode(scores, block.tie_ranks[positions]))
        return result


def _pick(vectors: Vectors, rows: Int64) -> Vectors:
    return Vectors(single=vectors.single[rows], double=vectors.double[rows], norms=vectors.norms[rows])


def _rounded_down(values: Float64) -> Float32:
    with np.errstate(over="ignore"):
        return np.nextafter(values.astype(np.float32), np.float32(-np.inf))


def _parts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
