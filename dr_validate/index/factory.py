"""Any index that faiss' factory can build, for those who want to see what their serving index would rank."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from dr_validate.component import component
from dr_validate.errors import SetupError
from dr_validate.index.fetch_faiss import WAY_OUT, has_faiss, import_faiss
from dr_validate.index.flat import proposal_of
from dr_validate.index.running import Proposal, RunningTopK
from dr_validate.stages import Search
from dr_validate.values import Float32, Int64

log = logging.getLogger(__name__)


@component
class FactoryIndex:
    """Inner products by `faiss.index_factory(dim, spec)`; each block is trained on, indexed, searched and dropped by itself.

    Candidates come from the index, their scores are exact. A block too small to train on (fewer documents than clusters)
    is searched exactly.
    """

    spec: str = Field(min_length=1)  # e.g. Flat, IVF256,Flat, HNSW32, PQ48, SQ8

    def open(self, queries: Float32, top_k: int, tie_rank: Int64, device: str) -> Search:
        """See `Index.open`. Raises SetupError without faiss or for a spec that faiss does not know."""
        faiss = import_faiss()
        _make(faiss, queries.shape[1], self.spec)
        return RunningTopK(queries, top_k, tie_rank, _Factory(faiss, queries, self.spec), exact=self._is_exact)

    def check(self) -> str:
        """See `Index.check`. Raises SetupError without faiss."""
        if not has_faiss():
            raise SetupError(f"index: index=factory needs faiss, which is not installed; {WAY_OUT}, or set index=torch")
        return ""

    def fingerprint(self) -> Mapping[str, Any]:
        """Empty for the exact `Flat`."""
        return {} if self._is_exact else {"index": self.spec}

    @property
    def _is_exact(self) -> bool:
        return self.spec == "Flat"


class _Factory:
    def __init__(self, faiss: Any, queries: Float32, spec: str) -> None:
        self._faiss = faiss
        self._queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._spec = spec
        self._index: Any = None

    def load(self, vectors: Float32) -> None:
        index = _make(self._faiss, vectors.shape[1], self._spec)
        if not index.is_trained:
            try:
                index.train(vectors)
            except RuntimeError as error:  # faiss has no narrower one
                log.info("index %s cannot be trained on %d documents (%s): searched exactly", self._spec, len(vectors), error)
                index = _make(self._faiss, vectors.shape[1], "Flat")
        index.add(vectors)
        self._index = index

    def propose(self, queries: slice, count: int, floor: Float32) -> Proposal:
        scores, positions = self._index.search(self._queries[queries], count)
        return proposal_of(scores, positions, floor, complete=count == self._index.ntotal)


def _make(faiss: Any, dim: int, spec: str) -> Any:
    try:
        return faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise SetupError(
            f"index.spec: got {spec!r}, which faiss cannot build for {dim} dimensions ({reason}); "
            "see https://github.com/facebookresearch/faiss/wiki/The-index-factory"
        ) from error
