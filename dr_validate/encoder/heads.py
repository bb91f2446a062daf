"""The modules after pooling, in float32. Imports torch: only imported when a model is loaded."""

from collections.abc import Callable, Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from dr_validate.encoder.spec import Head
from dr_validate.errors import CheckpointError

Step = Callable[[Tensor], Tensor]
ACTIVATIONS: Mapping[str, Step] = {
    "GELU": functional.gelu,
    "Identity": lambda vectors: vectors,
    "ReLU": functional.relu,
    "Tanh": torch.tanh,
}


def load_heads(heads: Sequence[Head], device: str) -> tuple[Step, ...]:
    """One function for each head, weights on `device`. Raises CheckpointError for weights that are missing or misshapen."""
    return tuple(_load(head, device) for head in heads)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector stays zero."""
    return functional.normalize(vectors, p=2, dim=-1)


def _load(head: Head, device: str) -> Step:
    if head.kind == "normalize":
        return unit
    path = head.folder / "model.safetensors"
    try:
        with torch.device("meta"):  # no memory before the sizes are known to be those of the file
            module = _LayerNorm(head) if head.kind == "layer_norm" else _Dense(head)
        weights = load_file(path)
        if prefix := head.weights_prefix:
            weights = {f"linear.{key.removeprefix(prefix)}": weights[key] for key in weights if key.startswith(prefix)}
        module.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True, assign=True)
    except (RuntimeError, TypeError, OverflowError, SafetensorError) as error:
        raise CheckpointError(f"{path}: does not fit {head.describe()}: {error}") from error
    return module.to(device).eval().requires_grad_(False)


class _Dense(nn.Module):
    """linear (+ activation, + residual); names as sentence-transformers saves them."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.linear = nn.Linear(head.in_features, head.out_features, bias=head.bias)
        self.activation = ACTIVATIONS[head.activation]
        self.has_residual = head.residual
        if head.residual and head.in_features != head.out_features:
            self.residual = nn.Linear(head.in_features, head.out_features, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        out = self.activation(self.linear(vectors))
        if not self.has_residual:
            return out
        return out + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class _LayerNorm(nn.Module):
    def __init__(self, head: Head) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(head.out_features)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.norm(vectors)  # type: ignore[no-any-return]  # torch types every module call as Any
