"""Many runs to one order of documents: what a pool takes from the top of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.sampler.design import UInt64
from dr_validate.sampler.runs import Run
from dr_validate.values import Int64, TestSet

QUERIES_AT_ONCE = 256
RRF_K = 20
_ONE = 1 << 40  # reciprocal ranks as integers: sums do not depend on the order of the runs, and ties are ties
_NOT_A_HIT = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What the runs name beside the judged documents, with the best rank that any query gives each."""

    documents: Int64  # (num_candidates,) ordinals, ascending
    ranks: Int64  # (num_candidates,) from 0 on

    def best(self, count: int, numbers: UInt64) -> Int64:
        """Ordinals of the first `count` by rank, in that order; `numbers` (num_candidates,) orders those of one rank."""
        if count >= len(self.ranks):
            return self.documents[np.lexsort((numbers, self.ranks))]
        cut = np.partition(self.ranks, count)[count]
        near = np.flatnonzero(self.ranks <= cut)  # few of many: sorting all of them would take most of the time
        return self.documents[near[np.lexsort((numbers[near], self.ranks[near]))[:count]]]


def candidates(runs: Sequence[Run], test_set: TestSet) -> Candidates:
    """Reciprocal rank fusion per query (Cormack, Clarke, Buettcher 2009: sum of 1/(20 + rank), rank from 1 on), then each
    document's best fused rank over the queries; documents of equal sum in a query share the better rank.

    Memory: 4 bytes a document of the corpus, and the hits of 256 queries at a time.
    """
    best = np.full(len(test_set.corpus), _NOT_A_HIT, dtype=np.int32)
    for start in range(0, len(test_set.query_ids), QUERIES_AT_ONCE):
        parts = [_of_queries(run, start, start + QUERIES_AT_ONCE) for run in runs]
        documents, ranks = _fused(parts, len(best)) if len(parts) > 1 else (parts[0].documents, parts[0].ranks)
        np.minimum.at(best, documents, ranks.astype(np.int32))
    best[test_set.judged] = _NOT_A_HIT
    documents = np.flatnonzero(best != _NOT_A_HIT)
    return Candidates(documents=documents, ranks=best[documents].astype(np.int64))


def _of_queries(run: Run, start: int, end: int) -> Run:
    part = slice(*np.searchsorted(run.rows, [start, end]))
    return Run(rows=run.rows[part], documents=run.documents[part], ranks=run.ranks[part])


def _fused(parts: Sequence[Run], num_documents: int) -> tuple[Int64, Int64]:
    """Document and fused rank (from 0 on) of every hit of some queries, each (query, document) once."""
    hits = np.concatenate([part.rows * num_documents + part.documents for part in parts])
    votes = np.concatenate([_ONE // (RRF_K + 1 + part.ranks) for part in parts])
    hits, place = np.unique(hits, return_inverse=True)
    sums = np.zeros(len(hits), dtype=np.int64)
    np.add.at(sums, place, votes)
    rows, documents = np.divmod(hits, num_documents)
    order = np.lexsort((-sums, rows))
    rows, sums = rows[order], sums[order]
    first_of_tie = np.r_[True, (np.diff(rows) != 0) | (np.diff(sums) != 0)][: len(rows)]
    places = np.arange(len(rows))
    leaders = np.maximum.accumulate(np.where(first_of_tie, places, 0))
    return documents[order], leaders - np.searchsorted(rows, rows)
