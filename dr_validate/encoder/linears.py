"""Linear layers through oneDNN with weights laid out in advance: the same float32 arithmetic, twice as fast on some CPUs.

PyTorch gives matrix products to MKL, which on processors not from Intel takes a slow path (measured on an AMD EPYC: 210
against 480 GFLOP/s). Imports torch: only imported when a model is loaded.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # relative to the largest hidden value; both ways round, they do not differ in kind


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


def pack_linears(model: nn.Module, run: Callable[[], Tensor]) -> bool:
    """Replace the float32 linear layers of `model` in place; whether that was done.

    `run` gives hidden states of some text. If they are not the same afterwards, or the model cannot run, all is put back.
    """
    backends: Any = torch.backends.mkldnn  # untyped in torch
    if not backends.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    before = run()
    originals = list(_linears(model))
    try:
        for parent, name, linear in originals:
            setattr(parent, name, PackedLinear(linear))
        after = run()
        same = bool((after - before).abs().max() <= TOLERANCE * before.abs().max().clamp(min=1e-6))
    except RuntimeError as error:
        log.info("linear layers stay as they are: %s", error)
        same = False
    if not same:
        for parent, name, linear in originals:
            setattr(parent, name, linear)
    return same


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            # Only the class itself: a subclass may do more. Shared layers appear once for each place.
            if type(child) is nn.Linear and child.weight.dtype == torch.float32:
                yield parent, name, child
