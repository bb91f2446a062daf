"""From the `device` key to a device that exists, and what differs between them: memory, and how arrays get there."""

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dr_validate.errors import DeviceFailure, SetupError

if TYPE_CHECKING:
    from torch import Tensor

NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "can't allocate memory")


class Landing:
    """Room in host memory for a tensor that a device is still computing; used again for the next. On a CPU a plain copy."""

    def __init__(self) -> None:
        self._host: Tensor | None = None
        self._number, self._copied = 0, None

    def fill(self, tensor: "Tensor") -> "Landing":
        """Copy a tensor here when the device has come to it; does not wait. What was here must not be in use any more."""
        import torch

        size = tensor.numel()
        if self._host is None or self._host.numel() < size or self._host.dtype != tensor.dtype:
            self._host = torch.empty(size, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._number, self._shape = size, tensor.shape
        self._host[:size].view(tensor.shape).copy_(tensor, non_blocking=True)
        if tensor.is_cuda:
            self._copied = torch.cuda.current_stream(tensor.device).record_event()
        return self

    def array(self) -> NDArray[Any]:
        """What was copied, once it is: a view, good until the next `fill`."""
        assert self._host is not None, "asked before anything was copied"
        if self._copied is not None:
            self._copied.synchronize()
        array: NDArray[Any] = self._host[: self._number].view(self._shape).numpy()
        return array


def check_device(wanted: Any) -> str:
    """The `device` key as it was given. Raises ValueError for several."""
    if not isinstance(wanted, str):
        raise ValueError("expected one device, such as auto, cpu or cuda:1; several are engine=ray engine.workers=2")
    return wanted


def resolve_device(wanted: str) -> str:
    """`auto` becomes `cuda:0` where there is one, else `cpu`. Raises SetupError naming what exists. Imports torch."""
    import torch

    count = torch.cuda.device_count()
    known = ["cpu", *(f"cuda:{number}" for number in range(count))]
    if wanted == "auto":
        return known[1] if count else "cpu"
    device = "cuda:0" if wanted == "cuda" else wanted
    if device not in known:
        why = "" if torch.version.cuda or count else " (this torch is a CPU build)"
        raise SetupError(f"device: got {wanted!r}, but this machine has {known}{why}; set device=auto or one of these")
    return device


def hold(place: str) -> None:
    """Make this the device of what names none, or each process would take memory of the first GPU as well."""
    if place.startswith("cuda"):
        import torch

        torch.cuda.set_device(place)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory left, as torch, cuBLAS, cuDNN, faiss or the allocator of the CPU say it."""
    is_library_s = isinstance(error, RuntimeError) and not isinstance(error, DeviceFailure)
    return is_library_s and any(words in str(error) for words in NO_MEMORY)


def to_device(array: NDArray[Any], device: str) -> "Tensor":
    """A tensor of it on the device; to a GPU from pinned memory and without waiting for it."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor


def free_memory(device: str) -> None:
    """Let others on a GPU have what torch holds and does not use; what a CPU holds comes back by itself."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
