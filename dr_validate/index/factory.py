"""Any index that faiss' factory can build, for those who want to see what their serving index would rank."""

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dr_validate.component import component
from dr_validate.errors import SetupError
from dr_validate.index.flat import MOST_ON_A_GPU, WAY_OUT, gpu_resources, has_faiss, import_faiss, say_once
from dr_validate.stages import Search
from dr_validate.values import Float32, Int64

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


@component
class FactoryIndex:
    """Inner products by `faiss.index_factory(dim, spec)`; each block is trained on, indexed, searched and dropped by itself.

    Candidates come from the index, their scores are exact. A block too small to train on (fewer documents than clusters)
    is searched exactly. On a GPU where this faiss and this spec can be there (IVF, PQ and the like), else on the CPU.
    """

    spec: str = Field(min_length=1)  # e.g. Flat, IVF256,Flat, HNSW32, PQ48, SQ8

    def open(self, queries: "Tensor | Float32", top_k: int, tie_rank: Int64, device: str) -> Search:
        """See `Index.open`. Raises SetupError without faiss or for a spec that faiss does not know."""
        faiss = import_faiss()
        _make(faiss, queries.shape[1], self.spec)
        from dr_validate.index.topk import MARGIN, RunningTopK

        library = _Factory(faiss, queries, self.spec, device if top_k + MARGIN <= MOST_ON_A_GPU else "cpu")
        return RunningTopK(queries, top_k, tie_rank, device, library, exact=self.spec == "Flat")

    def check(self) -> str:
        """See `Index.check`. Raises SetupError without faiss."""
        if not has_faiss():
            raise SetupError(f"index: index=factory needs faiss, which is not installed; {WAY_OUT}, or set index=torch")
        return ""

    def fingerprint(self) -> Mapping[str, Any]:
        """Empty for the exact `Flat`."""
        return {} if self.spec == "Flat" else {"index": self.spec}


class _Factory:
    """`topk.Library`. On a GPU, of all specs only `Flat` was tried."""

    def __init__(self, faiss: Any, queries: "Tensor | Float32", spec: str, device: str) -> None:
        import torch

        self._faiss, self._spec, self._device = faiss, spec, device
        self._queries = torch.as_tensor(queries, dtype=torch.float32)
        self._on_gpu = device.startswith("cuda") and gpu_resources(faiss) is not None

    def load(self, block: "Tensor") -> None:
        index = self._placed(_make(self._faiss, block.shape[1], self._spec))
        vectors = self._given(block)
        if not index.is_trained:
            try:
                index.train(vectors)
            except RuntimeError as error:  # faiss has no narrower one
                log.info(
                    "index %s cannot be trained on %d documents (%s): searched exactly", self._spec, len(vectors), _said(error)
                )
                index = self._placed(_make(self._faiss, block.shape[1], "Flat"))
        index.add(vectors)
        self._index, self._place = index, block.device

    def propose(self, rows: slice, count: int) -> tuple["Tensor", "Tensor"]:
        import torch

        scores, positions = self._index.search(self._given(self._queries[rows]), count)
        return torch.as_tensor(scores, device=self._place), torch.as_tensor(positions, device=self._place)

    def _given(self, vectors: "Tensor") -> Any:
        """As an index takes them where it is."""
        return vectors.to(self._device).contiguous() if self._on_gpu else vectors.cpu().numpy()

    def _placed(self, index: Any) -> Any:
        """On the GPU if it can be there."""
        if self._on_gpu:
            import torch

            try:
                return self._faiss.index_cpu_to_gpu(gpu_resources(self._faiss), torch.cuda.current_device(), index)
            except RuntimeError as error:
                say_once(f"index {self._spec} is searched on the CPU: faiss has none on a GPU ({_said(error)})")
                self._on_gpu = False
        return index


def _make(faiss: Any, dim: int, spec: str) -> Any:
    try:
        return faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise SetupError(
            f"index.spec: got {spec!r}, which faiss cannot build for {dim} dimensions ({_said(error)}); "
            "see https://github.com/facebookresearch/faiss/wiki/The-index-factory"
        ) from error


def _said(error: RuntimeError) -> str:
    """What faiss says, without the function and the line of its C++ that say it."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error).strip().splitlines()[-1])
