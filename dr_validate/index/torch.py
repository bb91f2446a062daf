"""Exact search with torch on the given device: the same ranking for whoever has no faiss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dr_validate.component import component
from dr_validate.stages import Search
from dr_validate.values import Float32, Int64

if TYPE_CHECKING:
    from torch import Tensor


@component
class TorchIndex:
    """Exact inner products: one matrix product a block, then whatever can still enter the top-k."""

    def open(self, queries: "Tensor | Float32", top_k: int, tie_rank: Int64, device: str) -> Search:
        """See `Index.open`."""
        from dr_validate.index.topk import RunningTopK

        return RunningTopK(queries, top_k, tie_rank, device)

    def check(self) -> str:
        """See `Index.check`: torch is always there."""
        return ""

    def fingerprint(self) -> Mapping[str, Any]:
        """Empty: exact."""
        return {}
