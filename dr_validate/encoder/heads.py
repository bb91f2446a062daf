"""The modules after pooling, in float32. Imports torch: only imported when a model is loaded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from dr_validate.encoder.checks import weight_files
from dr_validate.encoder.spec import Head
from dr_validate.errors import CheckpointError

Step = Callable[[Tensor], Tensor]
ACTIVATIONS: Mapping[str, Step] = {
    "GELU": functional.gelu,
    "Identity": lambda vectors: vectors,
    "ReLU": functional.relu,
    "Sigmoid": torch.sigmoid,
    "SiLU": functional.silu,
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
    path = head.folder / (head.file or "model.safetensors")
    files = [path] if path.is_file() or head.file else weight_files(head.folder)
    try:
        with torch.device("meta"):  # no memory before the sizes are known to be those of the file
            module = _LayerNorm(head) if head.kind == "layer_norm" else _Dense(head)
        weights = {key: weight for file in files for key, weight in _read(file, head.weights_prefix).items()}
        if prefix := head.weights_prefix:
            own = "norm" if head.kind == "layer_norm" else "linear"
            weights = {f"{own}.{key.removeprefix(prefix)}": weight for key, weight in weights.items()}
        module.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True, assign=True)
    except (RuntimeError, TypeError, OverflowError, SafetensorError) as error:
        raise CheckpointError(f"{path}: does not fit {head.describe()}: {error}") from error
    return module.to(device).eval().requires_grad_(False)


def _read(file: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names begin with `prefix`."""
    with safe_open(file, "pt") as stream:
        return {key: stream.get_tensor(key) for key in stream.keys() if key.startswith(prefix)}  # noqa: SIM118


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
