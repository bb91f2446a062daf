"""The matrix products of one BERT-shaped layer, as fast as they go here: what encoding cannot exceed."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

TOKENS = 2048
SECONDS = 1.0  # for each kernel, all shapes together


def rates(width: int, inner: int, device: str) -> dict[str, dict[str, float]]:
    """GFLOP/s by kernel: `cpu` for a CPU second of one thread (of the GPU, on one), `wall` for a second on all threads."""
    shapes = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
    if device != "cpu":
        return {name: {"cpu": rate, "wall": rate} for name, rate in _on_gpu(shapes, device).items()}
    threads = torch.get_num_threads()
    found: dict[str, dict[str, float]] = {}
    for way, count, clock in (("cpu", 1, time.process_time), ("wall", threads, time.perf_counter)):
        torch.set_num_threads(count)
        for name, kernel in _kernels().items():
            try:
                rate = _rate(kernel, shapes, clock)
                found.setdefault(name, {})[way] = rate
            except RuntimeError as error:  # bfloat16 through oneDNN needs AVX-512 or AVX_NE_CONVERT
                print(f"{name}: not on this processor ({error})", file=sys.stderr)
    torch.set_num_threads(threads)
    return found


Kernel = Callable[[int, int], Callable[[], Any]]


def _kernels() -> Mapping[str, Kernel]:
    operators: Any = torch.ops.mkldnn

    def onednn(dtype: torch.dtype) -> Kernel:
        def prepare(wide_in: int, wide_out: int) -> Callable[[], Any]:
            inputs, weight, bias = _operands(wide_in, wide_out, dtype)
            packed = operators._reorder_linear_weight(weight, None)
            return lambda: operators._linear_pointwise(inputs, packed, bias, "none", [], "")

        return prepare

    return {
        "float32, torch": _plain(torch.float32),
        "float32, oneDNN": onednn(torch.float32),
        "bfloat16, oneDNN": onednn(torch.bfloat16),
    }


def _plain(dtype: torch.dtype, device: str = "cpu") -> Kernel:
    def prepare(wide_in: int, wide_out: int) -> Callable[[], Any]:
        operands = [tensor.to(device) for tensor in _operands(wide_in, wide_out, dtype)]
        return lambda: torch.nn.functional.linear(*operands)

    return prepare


def _operands(wide_in: int, wide_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(wide_in)
    shapes = ((TOKENS, wide_in), (wide_out, wide_in), (wide_out,))
    inputs, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return inputs, weight, bias


@torch.inference_mode()
def _rate(kernel: Kernel, shapes: list[tuple[int, int]], clock: Callable[[], float]) -> float:
    """The best of many rounds for each shape, weighed by its work."""
    best = 0.0
    for shape in shapes:
        run = kernel(*shape)
        times: list[float] = []
        end = time.perf_counter() + SECONDS / len(shapes)
        while not times or time.perf_counter() < end:
            began = clock()
            run()
            times.append(clock() - began)
        best += min(times)
    return _work(shapes) / best


@torch.inference_mode()
def _on_gpu(shapes: list[tuple[int, int]], device: str) -> dict[str, float]:
    cuda: Any = torch.cuda  # untyped in part
    found = {}
    for name, dtype in (("float32, torch", torch.float32), ("bfloat16, torch", torch.bfloat16)):
        best = 0.0
        for shape in shapes:
            run = _plain(dtype, device)(*shape)
            times: list[float] = []
            for _ in range(50):
                events = [cuda.Event(enable_timing=True) for _ in range(2)]
                events[0].record()
                run()
                events[1].record()
                events[1].synchronize()
                times.append(events[0].elapsed_time(events[1]) / 1000)
            best += min(times)
        found[name] = _work(shapes) / best
    return found


def _work(shapes: list[tuple[int, int]]) -> float:
    """GFLOP of one product in each shape."""
    return sum(2 * TOKENS * wide_in * wide_out for wide_in, wide_out in shapes) / 1e9
