"""Exact search with torch on the given device: the same ranking for whoever has no faiss, or none for the GPU."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dr_validate.component import component
from dr_validate.index.running import Proposal, RunningTopK
from dr_validate.stages import Search
from dr_validate.values import Float32, Int64

if TYPE_CHECKING:
    import torch


@component
class TorchIndex:
    """Exact inner products: one matrix product a block, then whatever can still enter the top-k."""

    def open(self, queries: Float32, top_k: int, tie_rank: Int64, device: str) -> Search:
        """See `Index.open`."""
        return RunningTopK(queries, top_k, tie_rank, _MatrixProduct(queries, device))

    def check(self) -> str:
        """See `Index.check`: torch is always there."""
        return ""

    def fingerprint(self) -> Mapping[str, Any]:
        """Empty: exact."""
        return {}


class _MatrixProduct:
    def __init__(self, queries: Float32, device: str) -> None:
        self._device = device
        self._queries = self._moved(queries)
        self._vectors = self._queries[:0]

    def load(self, vectors: Float32) -> None:
        self._vectors = self._moved(vectors)

    def propose(self, queries: slice, count: int, floor: Float32) -> Proposal:
        import torch

        with torch.inference_mode(), _full_precision():
            scores = self._queries[queries] @ self._vectors.T  # (num_queries, num_documents)
            if count < len(self._vectors) and not np.isfinite(floor).all():
                return self._best(scores, count, floor)
            rows, positions = torch.nonzero(scores >= self._moved(floor)[:, None], as_tuple=True)
            found = scores[rows, positions]
        rest = np.full(len(floor), -np.inf, dtype=np.float32)  # all that reaches the floor is in
        return Proposal(rows=rows.cpu().numpy(), positions=positions.cpu().numpy(), scores=found.cpu().numpy(), rest=rest)

    def _best(self, scores: "torch.Tensor", count: int, floor: Float32) -> Proposal:
        values, indices = scores.topk(count, dim=1)
        best = values.cpu().numpy()
        rows, columns = np.nonzero(best >= floor[:, None])
        positions = indices.cpu().numpy()[rows, columns]
        return Proposal(rows=rows, positions=positions, scores=best[rows, columns], rest=best[:, -1])

    def _moved(self, array: Float32) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self._device)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in float32 even where the encoder allowed TF32 or bfloat16 for its own."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
