"""Linear layers through oneDNN with weights laid out in advance: the same arithmetic, up to twice as fast on some CPUs.

PyTorch gives float32 products to MKL, which on processors not from Intel takes a slow path (AMD EPYC, a core: Zen 5 99 against
214 GFLOP/s, Zen 4 96 against 109), and lays bfloat16 weights out anew for every product. Imports torch: only imported when a
model is loaded.
"""

import functools
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

# Relative to the largest output of a layer; both ways round, they do not differ in kind.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
PROBE_TOKENS, PROBE_ROUNDS = 512, 5
PAYS = 0.9  # of the time of the plain layer: where both take about as long, chance must not choose, for they round differently
CHECK_TOKENS = 4


class PackedLinear(nn.Module):
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


def pack_linears(model: nn.Module) -> int:
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
    done: dict[int, PackedLinear] = {}  # a shared layer stays shared
    replaced = 0
    while places:
        parent, name, linear = places.pop()
        packed = done.get(id(linear)) or _packed(linear)
        if packed is not None:
            done[id(linear)] = packed
            setattr(parent, name, packed)
            replaced += 1
    return replaced


def _packed(linear: nn.Linear) -> PackedLinear | None:
    try:
        packed = PackedLinear(linear)
        inputs = _inputs(CHECK_TOKENS, linear.in_features, linear.weight.dtype)
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
    """Whether the packed layer is faster on one thread, by a race of a fraction of a second."""
    inputs = _inputs(PROBE_TOKENS, in_features, dtype)
    linear = linear_of(_inputs(out_features, in_features, dtype), torch.zeros(out_features, dtype=dtype))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runners = {"plain": linear, "packed": PackedLinear(linear)}
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


def _inputs(tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    """Numbers that look like hidden states, the same each time and without the global generator."""
    return torch.sin(torch.arange(tokens * width, dtype=torch.float32)).reshape(tokens, width).to(dtype)
