"""Exact search with faiss, a block at a time: no index that grows with the corpus."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from dr_validate.component import component
from dr_validate.errors import SetupError
from dr_validate.index.fetch_faiss import WAY_OUT, has_faiss, import_faiss
from dr_validate.index.running import Proposal, RunningTopK
from dr_validate.index.torch import TorchIndex
from dr_validate.stages import Search
from dr_validate.values import Float32, Int64

log = logging.getLogger(__name__)


@component
class FlatIndex:
    """Exact inner products by `faiss.knn` on the processor, the fastest there for thousands of queries; by torch, with the same
    ranking, where there is no faiss."""

    def open(self, queries: Float32, top_k: int, tie_rank: Int64, device: str) -> Search:
        """See `Index.open`. The device plays no part with faiss: vectors arrive on the processor."""
        try:
            faiss = import_faiss()
        except SetupError as error:
            log.log(logging.WARNING if has_faiss() else logging.DEBUG, "%s: index=torch searches", error)
            return TorchIndex().open(queries, top_k, tie_rank, device)
        return RunningTopK(queries, top_k, tie_rank, _Knn(faiss, queries))

    def check(self) -> str:
        """See `Index.check`."""
        if has_faiss():
            return ""
        return f"index=flat: faiss is not installed, so index=torch searches, with the same ranking (for faiss: {WAY_OUT})"

    def fingerprint(self) -> Mapping[str, Any]:
        """Empty: exact."""
        return {}


class _Knn:
    def __init__(self, faiss: Any, queries: Float32) -> None:
        self._faiss = faiss
        self._queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._vectors = self._queries[:0]

    def load(self, vectors: Float32) -> None:
        self._vectors = vectors

    def propose(self, queries: slice, count: int, floor: Float32) -> Proposal:
        metric = self._faiss.METRIC_INNER_PRODUCT
        scores, positions = self._faiss.knn(self._queries[queries], self._vectors, count, metric=metric)
        return proposal_of(scores, positions, floor, complete=count == len(self._vectors))


def proposal_of(scores: Float32, positions: Int64, floor: Float32, *, complete: bool) -> Proposal:
    """From faiss' answer, (num_queries, count) by descending score, -1 where an index found fewer."""
    rows, columns = np.nonzero((positions >= 0) & (scores >= floor[:, None]))
    rest = np.full(len(scores), -np.inf, dtype=np.float32) if complete else scores[:, -1]
    return Proposal(rows=rows, positions=positions[rows, columns], scores=scores[rows, columns], rest=rest)
