"""What makes a CPU fast: batches side by side, a heap that is not given back, linear layers with weights laid out in advance.

Two forwards on one thread each beat one forward on two (measured: +31%): nobody waits for the slowest part of a layer. PyTorch
gives float32 products to MKL, which on processors not from Intel takes a slow path (AMD EPYC, a core: Zen 5 99 against 214
GFLOP/s, Zen 4 96 against 109), and lays bfloat16 weights out anew for every product; oneDNN does the same arithmetic without.
Imports torch: only imported when a model is loaded.
"""

import ctypes
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
log = logging.getLogger(__name__)
# mallopt(3). glibc refuses a larger threshold; with the defaults each large intermediate result is mapped and zeroed anew.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MMAP_BYTES, TRIM_BYTES, PAD_BYTES = 32 << 20, 1 << 30, 16 << 20
# Relative to the largest output of a layer; both ways round, they do not differ in kind.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
PROBE_TOKENS, PROBE_ROUNDS = 512, 5
# Where oneDNN took 0.9 to 1.15 of the time, and a race would end otherwise in one process of many, on cores that others use.
NO_RACE = ("AVX2", "DEFAULT")
PAYS = 0.9  # of the time of the plain layer: where both take about as long, chance must not choose, for they round differently
CHECK_TOKENS = 4


def for_each(batches: Sequence[T], work: Callable[[T], None]) -> None:
    """Call `work` for every batch, begun in the order given, on as many threads as torch may use in this process.

    Whatever `work` raises ends all of them and is raised here. `work` must be safe to call from several threads.
    """
    allowed = torch.get_num_threads()  # OMP_NUM_THREADS, else the cores
    if min(allowed, len(batches)) <= 1:
        for batch in batches:
            work(batch)
        return
    waiting = deque(batches)

    def run() -> None:
        torch.set_num_threads(1)
        try:
            while (batch := _next(waiting)) is not None:
                work(batch)
        finally:
            waiting.clear()  # an error in one thread leaves nothing to do for the others

    try:
        with ThreadPoolExecutor(min(allowed, len(batches)), thread_name_prefix="encode") as pool:
            running = [pool.submit(run) for _ in range(min(allowed, len(batches)))]
        for future in running:
            future.result()
    finally:
        torch.set_num_threads(allowed)  # parts of the count are the process's, not the thread's


def _next(waiting: deque[T]) -> T | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


def keep_heap() -> None:
    """Let this process keep the memory of intermediate results for the next ones; without effect beside glibc's malloc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, size in ((M_MMAP_THRESHOLD, MMAP_BYTES), (M_TRIM_THRESHOLD, TRIM_BYTES), (M_TOP_PAD, PAD_BYTES)):
            library.mallopt(parameter, size)


def release_heap() -> None:
    """Give what `keep_heap` kept back to the system."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


class PrepackedLinear(nn.Module):
    """A frozen nn.Linear for the CPU; holds only the re-ordered weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Some models look at the type of `weight`; none may compute with it.
        self.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        operators: Any = torch.ops.mkldnn
        self._packed = operators._reorder_linear_weight(linear.weight.detach(), None)
        self._apply_linear = operators._linear_pointwise

    def forward(self, inputs: Tensor) -> Tensor:
        return self._apply_linear(inputs, self._packed, self.bias, "none", [], "")  # type: ignore[no-any-return]  # torch.ops is untyped


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer around weights that exist: the constructor would draw random ones first, and on "meta" import a compiler."""
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def prepack_linears(model: nn.Module) -> int:
    """Replace the linear layers of `model` in place where that pays on this processor; how many.

    One layer at a time, so that there are never two copies of all weights. A layer whose output changes stays as it is; that
    the model as a whole still runs is for the caller to see.
    """
    backends: Any = torch.backends.mkldnn  # untyped in torch
    if not backends.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return 0
    places = list(_linears(model))
    if not places or not packing_pays(*_most_common([linear for _, _, linear in places])):
        return 0
    done: dict[int, PrepackedLinear] = {}  # a shared layer stays shared
    replaced = 0
    while places:
        parent, name, linear = places.pop()
        packed = done.get(id(linear)) or _packed(linear)
        if packed is not None:
            done[id(linear)] = packed
            setattr(parent, name, packed)
            replaced += 1
    return replaced


def _packed(linear: nn.Linear) -> PrepackedLinear | None:
    try:
        packed = PrepackedLinear(linear)
        inputs = _like_hidden_states(CHECK_TOKENS, linear.in_features, linear.weight.dtype)
        with torch.inference_mode():
            before, after = linear(inputs), packed(inputs)
    except RuntimeError as error:
        log.info("a linear layer stays as it is: %s", error)
        return None
    largest = before.abs().max().clamp(min=1e-6)
    return packed if bool((after - before).abs().max() <= TOLERANCES[linear.weight.dtype] * largest) else None


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in model.modules():
        for name, child in parent._modules.items():  # named_children() leaves out the second place of a shared layer
            # Only the class itself: a subclass may do more.
            if type(child) is nn.Linear and child.weight.dtype in TOLERANCES:
                yield parent, name, child


def _most_common(linears: list[nn.Linear]) -> tuple[int, int, torch.dtype]:
    shapes = [(linear.in_features, linear.out_features, linear.weight.dtype) for linear in linears]
    return max(set(shapes), key=lambda shape: (shapes.count(shape) * shape[0] * shape[1], shape[0]))


@functools.lru_cache(maxsize=16)  # a processor does not change between two checkpoints
def packing_pays(in_features: int, out_features: int, dtype: torch.dtype) -> bool:
    """Whether the packed layer is faster on one thread, by a race of a fraction of a second; never where it is close."""
    if torch.backends.cpu.get_cpu_capability() in NO_RACE:
        return False
    inputs = _like_hidden_states(PROBE_TOKENS, in_features, dtype)
    linear = linear_of(_like_hidden_states(out_features, in_features, dtype), torch.zeros(out_features, dtype=dtype))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runners = {"plain": linear, "packed": PrepackedLinear(linear)}
        best = dict.fromkeys(runners, float("inf"))
        with torch.inference_mode():
            for _ in range(PROBE_ROUNDS):
                for name, run in runners.items():
                    began = time.thread_time()  # not the clock on the wall: others may be computing, too
                    run(inputs)
                    best[name] = min(best[name], time.thread_time() - began)
    except RuntimeError as error:
        log.info("linear layers stay as they are: %s", error)
        return False
    finally:
        torch.set_num_threads(threads)
    gain = best["plain"] / best["packed"]
    log.debug("linear layers of %dx%d in %s: oneDNN is %.2f times as fast here", in_features, out_features, dtype, gain)
    return best["packed"] <= PAYS * best["plain"]


def _like_hidden_states(tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    """Numbers that look like hidden states, the same each time and without the global generator."""
    return torch.sin(torch.arange(tokens * width, dtype=torch.float32)).reshape(tokens, width).to(dtype)
