"""The Model of a loaded checkpoint: two towers, each tokens to vectors by transformer, pooling and the modules after it.

Imports torch: only imported when a model is loaded.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from dr_validate.devices import free_memory, is_out_of_memory, to_device
from dr_validate.encoder.checks import weight_files
from dr_validate.encoder.cpu import for_each, keep_heap
from dr_validate.encoder.forward import Batch, Chosen, choose_forward, choose_static, plan, take
from dr_validate.encoder.spec import Contract, Head, PoolingName, TowerSpec
from dr_validate.encoder.tokenizer import FastTokenizer
from dr_validate.encoder.weights import load_transformer
from dr_validate.errors import CheckpointError, NoMemory
from dr_validate.values import SIDES, Int64, Side, TokenBlock

log = logging.getLogger(__name__)
T = TypeVar("T")
Step = Callable[[Tensor], Tensor]
ACTIVATIONS: Mapping[str, Step] = {
    "GELU": functional.gelu,
    "Identity": lambda vectors: vectors,
    "ReLU": functional.relu,
    "Sigmoid": torch.sigmoid,
    "SiLU": functional.silu,
    "Tanh": torch.tanh,
}


class TransformerModel:
    """Both sides of a checkpoint on one device; towers with the same weights share them."""

    def __init__(
        self,
        contract: Contract,
        *,
        dtype: str,
        device: str,
        append_eos: bool | None,
        max_tokens: int,
        weights_of: "TransformerModel | None" = None,
    ) -> None:
        if device == "cpu":
            keep_heap()
        self._towers: dict[Side, LoadedTower] = {}
        self._chosen: dict[tuple[object, ...], Chosen] = {} if weights_of is None else dict(weights_of._chosen)
        for side in SIDES:
            tower = contract.tower(side)
            place = (tower.weights, tower.adapter, tower.weights_prefix)
            if place not in self._chosen:
                self._chosen[place] = _choose(tower, getattr(torch, dtype), device)
            tokenizer = FastTokenizer(tower, append_eos)
            self._towers[side] = LoadedTower(tower, self._chosen[place], tokenizer, device, max_tokens)
        how = self._chosen[place].describe()  # of the documents, which are nearly all texts
        self.contract: Mapping[str, Any] = {"dtype": dtype, "append_eos": append_eos, **contract.describe(), **how}
        self.dim, other = self._towers["query"].dim, self._towers["document"].dim
        if self.dim != other:
            raise CheckpointError(
                f"query vectors have {self.dim} dimensions, document vectors {other}: they cannot be compared"
            )

    def tokenizer(self, side: Side) -> FastTokenizer:
        """The tokenizer of one side."""
        return self._towers[side].tokenizer

    def close(self) -> None:
        """Let go of the weights, whoever still holds the model."""
        self._towers.clear()
        self._chosen.clear()

    def encode(self, tokens: TokenBlock, side: Side) -> Tensor:
        """See `LoadedTower.encode`."""
        return self._towers[side].encode(tokens)


def _choose(tower: TowerSpec, dtype: torch.dtype, device: str) -> Chosen:
    def choose() -> Chosen:
        if not tower.static:
            return choose_forward(lambda: load_transformer(tower, dtype, device), dtype, device)
        weights = {name: weight for file in weight_files(tower.weights) for name, weight in load_file(file).items()}
        return choose_static(weights, dtype, device)

    return or_cannot(choose, tower, device)


class LoadedTower:
    """Transformer, pooling and heads of one side on one device."""

    def __init__(self, tower: TowerSpec, chosen: Chosen, tokenizer: FastTokenizer, device: str, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self._tower = tower
        self._forward = chosen.forward
        self._device = device
        self._max_tokens = max_tokens
        self._skip = 0 if tower.include_prompt else tokenizer.prefix_length
        self._heads: tuple[Step, ...] = tuple(_load_head(head, device) for head in tower.heads)
        self._vocabulary_size = chosen.vocabulary_size
        self.dim = self._probe()

    def encode(self, tokens: TokenBlock) -> Tensor:
        """(len(tokens), dim) float32 on the device, in the order given; a text without any token is the zero vector.

        Beside the result it needs what `max_tokens` tokens need in the model: on a CPU once for each thread.
        """
        self._check_ids(tokens)
        out = torch.zeros((len(tokens), self.dim), dtype=torch.float32, device=self._device)
        threads = torch.get_num_threads() if self._device == "cpu" else 1
        batches = plan(tokens.lengths, self._max_tokens, threads, pad=self._forward.pads)
        if self._device == "cpu":
            for_each(batches, lambda rows: self._encode_rows(tokens, rows, out))
        else:
            for rows in batches:  # a GPU is asked ahead: while it computes, the next batch is prepared here
                self._encode_rows(tokens, rows, out)
        return out

    def _check_ids(self, tokens: TokenBlock) -> None:
        worst = int(tokens.ids.max(initial=0))
        if worst >= self._vocabulary_size:  # on a GPU this would end the process, not the checkpoint
            raise CheckpointError(
                f"token id {worst}, but the model in {self._tower.weights} has {self._vocabulary_size}: the tokenizer in "
                f"{self._tower.tokenizer} is of another model; set encoder.tokenizer"
            )

    def _encode_rows(self, tokens: TokenBlock, rows: Int64, out: Tensor) -> None:
        """Encode some texts into `out`: one batch, or several where memory has run out since it was planned."""
        for part in plan(tokens.lengths[rows], self._max_tokens, 1, pad=self._forward.pads):
            if not self._fits(tokens, rows[part], out):
                self._encode_rows(tokens, rows[part], out)

    def _fits(self, tokens: TokenBlock, rows: Int64, out: Tensor) -> bool:
        """Encode one batch into `out`; False after memory ran out and the budget was halved."""
        try:
            with torch.inference_mode():
                out[to_device(rows, self._device)] = self._vectors(take(tokens, rows))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise NoMemory(
                    f"no memory on {self._device} for one text of {tokens.lengths[rows[0]]} tokens; lower "
                    "encoder.document_max_length or encoder.query_max_length, or use encoder.dtype=bfloat16"
                ) from error
            self._max_tokens = max(1, min(self._max_tokens, int(tokens.lengths[rows].sum())) // 2)
        else:
            return True
        log.warning("out of memory on %s: going on with at most %d tokens in a batch", self._device, self._max_tokens)
        free_memory(self._device)
        return False

    def _vectors(self, batch: Batch) -> Tensor:
        """(num_texts, dim) float32 on the device."""
        lengths = to_device(batch.lengths, self._device)
        vectors = _pool(self._forward(batch), lengths, self._tower.pooling, self._skip)
        for head in self._heads:
            vectors = head(vectors)
        if self._tower.truncate_dim is not None:
            vectors = vectors[:, : self._tower.truncate_dim]
        return unit(vectors) if self._tower.normalize else vectors

    def _probe(self) -> int:
        """Dimensions of a vector, from one text of one token."""
        one = Batch(rows=np.zeros(1, dtype=np.int64), lengths=np.ones(1, dtype=np.int64), ids=np.ones(1, dtype=np.int64))
        with torch.inference_mode():
            return or_cannot(lambda: int(self._vectors(one).shape[1]), self._tower, self._device)


def _pool(hidden: Tensor, lengths: Tensor, modes: Sequence[PoolingName], skip: int) -> Tensor:
    """(num_texts, len(modes) * width) float32 from hidden (num_tokens, width) of one text after the other. Formulas as in
    sentence_transformers 6.2 (`modules/pooling.py`); no operation here waits for a GPU.

    `lengths` (num_texts,) are at least 1; the first `skip` tokens of each text are left out.
    """
    hidden = hidden.float()
    ends = lengths.cumsum(0)
    text = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths, output_size=len(hidden))
    places = torch.arange(len(hidden), device=hidden.device) - (ends - lengths)[text]
    return torch.cat([_pool_one(hidden, (lengths, ends, places), mode, skip) for mode in modes], dim=-1)


def _pool_one(hidden: Tensor, layout: tuple[Tensor, Tensor, Tensor], mode: PoolingName, skip: int) -> Tensor:
    lengths, ends, places = layout
    if mode == "cls":
        return hidden[ends - lengths + torch.where(lengths > skip, skip, 0)]
    if mode == "last":
        return hidden[ends - 1]
    inside = places >= skip  # (num_tokens,)
    if mode == "max":
        return _reduce(hidden.masked_fill(~inside[:, None], float("-inf")) if skip else hidden, lengths, "max")
    weights = inside.float()
    if mode == "weighted_mean":  # SGPT (Muennighoff 2022): weight = position, counted from 1
        weights = weights * (places + 1)
    total = _reduce(hidden * weights[:, None] if skip or mode == "weighted_mean" else hidden, lengths, "sum")
    count = _reduce(weights[:, None], lengths, "sum").clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len" else count)


def _reduce(values: Tensor, lengths: Tensor, how: str) -> Tensor:
    reduce: Any = torch.segment_reduce
    return reduce(values, how, lengths=lengths, unsafe=True)  # type: ignore[no-any-return]  # the checks would wait for a GPU


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector stays zero."""
    return functional.normalize(vectors, p=2, dim=-1)


def _load_head(head: Head, device: str) -> Step:
    """Its weights on `device`. Raises CheckpointError for weights that are missing or misshapen."""
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
        return {key: stream.get_tensor(key) for key in stream.keys() if key.startswith(prefix)}  # noqa: SIM118  # no mapping


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


def or_cannot(run: Callable[[], T], tower: TowerSpec, device: str) -> T:
    """What `run` gives. Raises CheckpointError where a module or type cannot work on this device, or has no room there."""
    try:
        return run()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise NoMemory(
                f"{tower.weights}: no memory on {device} for its weights ({error}); end what else runs there, set device to "
                "another one, or use encoder.dtype=bfloat16"
            ) from error
        raise CheckpointError(f"{tower.weights}: cannot encode on {device}: {error}; try encoder.dtype=float32") from error
