"""Exact search with faiss, a block at a time: no index that grows with the corpus. And faiss itself, or the way to get it."""

import functools
import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from dr_validate.component import component
from dr_validate.errors import SetupError
from dr_validate.index.torch import TorchIndex
from dr_validate.stages import Search
from dr_validate.values import Float32, Int64

if TYPE_CHECKING:
    from torch import Tensor

WAY_OUT = "pip install 'dr_validate[cpu]' or pip install 'dr_validate[gpu]'"
MOST_ON_A_GPU = 2048  # hits of a query, faiss' own limit there
TEMPORARY_BYTES = 64 << 20  # that faiss keeps on a GPU; without a limit it takes a part of all that is free
log = logging.getLogger(__name__)


def has_faiss() -> bool:
    """Whether it is installed; not imported for that."""
    try:
        return importlib.util.find_spec("faiss") is not None
    except ValueError:  # something else stands in its place
        return False


def import_faiss() -> Any:
    """The module. Raises SetupError where it is not installed: neither of its two packages can be a base dependency."""
    try:
        import faiss
    except (ImportError, RuntimeError, OSError) as error:  # faiss-gpu raises the latter where a library of CUDA is missing
        raise SetupError(
            f"index: faiss cannot be imported ({error}); {WAY_OUT}, or set index=torch, which gives the ranking of index=flat"
        ) from error
    return faiss


@functools.cache
def gpu_resources(faiss: Any) -> Any:
    """What faiss needs to work on GPUs, on torch's tensors and stream; None where this is a build for the CPU."""
    if not hasattr(faiss, "StandardGpuResources"):
        return None
    importlib.import_module("faiss.contrib.torch_utils")  # lets faiss take torch's tensors
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(TEMPORARY_BYTES)
    return resources


@functools.cache
def say_once(message: str, level: int = logging.INFO) -> None:
    """Log it the first time in this process, not for every checkpoint."""
    log.log(level, "%s", message)


@component
class FlatIndex(TorchIndex):
    """Exact inner products by `faiss.knn` on a CPU and `faiss.knn_gpu` on a GPU; by torch, with the same ranking, where there
    is no faiss, or none for that device."""

    def open(self, queries: "Tensor | Float32", top_k: int, tie_rank: Int64, device: str) -> Search:
        """See `Index.open`."""
        try:
            faiss = import_faiss()
        except SetupError as error:
            say_once(f"{error}: index=torch searches", logging.WARNING if has_faiss() else logging.DEBUG)
            return super().open(queries, top_k, tie_rank, device)
        from dr_validate.index.topk import MARGIN, RunningTopK

        if device.startswith("cuda") and (gpu_resources(faiss) is None or top_k + MARGIN > MOST_ON_A_GPU):
            why = f"more than {MOST_ON_A_GPU - MARGIN} documents" if gpu_resources(faiss) else "this build of faiss"
            say_once(f"index=flat: {why} cannot be searched by faiss on {device}, so index=torch searches there, as exactly")
            return super().open(queries, top_k, tie_rank, device)
        return RunningTopK(queries, top_k, tie_rank, device, _Knn(faiss, queries, device))

    def check(self) -> str:
        """See `Index.check`."""
        if has_faiss():
            return ""
        return f"index=flat: faiss is not installed, so index=torch searches, with the same ranking (for faiss: {WAY_OUT})"


class _Knn:
    """`topk.Library`."""

    def __init__(self, faiss: Any, queries: "Tensor | Float32", device: str) -> None:
        import torch

        self._faiss, self._device = faiss, torch.device(device)
        self._queries = torch.as_tensor(queries, dtype=torch.float32, device=device).contiguous()

    def load(self, block: "Tensor") -> None:
        self._block = block

    def propose(self, rows: slice, count: int) -> tuple["Tensor", "Tensor"]:
        import torch

        queries, metric = self._queries[rows], self._faiss.METRIC_INNER_PRODUCT
        if self._device.type == "cuda":
            number, resources = torch.cuda.current_device(), gpu_resources(self._faiss)
            found = self._faiss.knn_gpu(resources, queries, self._block, count, metric=metric, device=number)
            return found[0], found[1]
        scores, positions = self._faiss.knn(queries.numpy(), self._block.numpy(), count, metric=metric)
        return torch.from_numpy(scores), torch.from_numpy(positions)
