"""The Model of one loaded checkpoint. Imports torch: only imported when a model is loaded."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dr_validate.encoder.batches import batch_size, longest_first, padded
from dr_validate.encoder.heads import Step, load_heads, unit
from dr_validate.encoder.pooling import pool
from dr_validate.encoder.terms import Contract, Tower
from dr_validate.encoder.tokenizer import FastTokenizer
from dr_validate.encoder.weights import load_transformer
from dr_validate.errors import CheckpointError
from dr_validate.values import Float32, Int64, Side, TokenBlock

log = logging.getLogger(__name__)


class TransformerModel:
    """Both sides of a checkpoint on one device; towers with the same weights share them."""

    def __init__(self, contract: Contract, *, dtype: str, device: str, append_eos: bool | None, max_tokens: int) -> None:
        self._contract = {"kind": contract.kind, "dtype": dtype, "append_eos": append_eos} | {
            side: contract.tower(side).describe() for side in _SIDES
        }
        self._towers: dict[Side, _LoadedTower] = {}
        transformers: dict[tuple[object, object], Any] = {}
        for side in _SIDES:
            tower = contract.tower(side)
            place = (tower.weights, tower.adapter)
            if place not in transformers:
                transformers[place] = load_transformer(tower, getattr(torch, dtype), device)
            tokenizer = FastTokenizer(tower, append_eos)
            self._towers[side] = _LoadedTower(tower, transformers[place], tokenizer, device, max_tokens)
        if self._towers["query"].dim != self._towers["document"].dim:
            dims = [self._towers[side].dim for side in _SIDES]
            raise CheckpointError(
                f"query vectors have {dims[0]} dimensions, document vectors {dims[1]}: they cannot be compared"
            )

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._towers["query"].dim

    @property
    def contract(self) -> Mapping[str, Any]:
        """What was read or stated, as JSON values."""
        return self._contract

    def tokenizer(self, side: Side) -> FastTokenizer:
        """The tokenizer of one side."""
        return self._towers[side].tokenizer

    def close(self) -> None:
        """Let go of the weights, whoever still holds the model."""
        self._towers.clear()

    def encode(self, tokens: TokenBlock, side: Side) -> Float32:
        """(len(tokens), dim) float32 in the order given; a text without any token is the zero vector."""
        vectors = self._towers[side].encode(tokens)
        broken = int(np.count_nonzero(~np.isfinite(vectors).all(axis=1)))
        if broken:
            raise CheckpointError(
                f"{broken} of {len(vectors)} {side} vectors hold NaN or Inf ({self._contract['dtype']}): the weights diverged, "
                "or the type is too narrow; try encoder.dtype=float32"
            )
        return vectors


_SIDES: tuple[Side, Side] = ("query", "document")


class _LoadedTower:
    def __init__(self, tower: Tower, transformer: Any, tokenizer: FastTokenizer, device: str, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self._tower = tower
        self._transformer = transformer
        self._device = device
        self._max_tokens = max_tokens
        self._skip = 0 if tower.include_prompt else tokenizer.prefix_length
        self._heads: tuple[Step, ...] = load_heads(tower.heads, device)
        self._vocabulary_size = int(transformer.get_input_embeddings().num_embeddings)
        pad_id = getattr(transformer.config, "pad_token_id", None)
        self._pad_id = pad_id if isinstance(pad_id, int) and 0 <= pad_id < self._vocabulary_size else 0
        self.dim = self._probe()

    def encode(self, tokens: TokenBlock) -> Float32:
        self._check_ids(tokens)
        lengths = tokens.lengths
        out = torch.zeros((len(tokens), self.dim), dtype=torch.float32, device=self._device)
        order = longest_first(lengths)
        order = order[lengths[order] > 0]
        start = 0
        with torch.inference_mode():
            while start < len(order):
                size = batch_size(int(lengths[order[start]]), self._max_tokens)
                rows = order[start : start + size]
                if self._fits(tokens, rows, out):
                    start += len(rows)
        return out.cpu().numpy()

    def _check_ids(self, tokens: TokenBlock) -> None:
        worst = int(tokens.ids.max(initial=0))
        if worst >= self._vocabulary_size:  # on a GPU this would end the process, not the checkpoint
            raise CheckpointError(
                f"token id {worst}, but the model in {self._tower.weights} has {self._vocabulary_size}: the tokenizer in "
                f"{self._tower.tokenizer} is of another model; set encoder.tokenizer"
            )

    def _fits(self, tokens: TokenBlock, rows: Int64, out: Tensor) -> bool:
        """Encode one batch into `out`; False after memory ran out and the budget was halved."""
        try:
            ids, lengths = padded(tokens, rows, self._pad_id)
            out[torch.from_numpy(rows).to(self._device)] = self._forward(torch.from_numpy(ids), torch.from_numpy(lengths))
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU allocator has no class of its own
            if not _is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise CheckpointError(
                    f"no memory on {self._device} for one text of {ids.shape[1]} tokens; lower encoder.document_max_length "
                    "or encoder.query_max_length, or use encoder.dtype=bfloat16"
                ) from error
            self._max_tokens = max(1, min(self._max_tokens, ids.size) // 2)
        else:
            return True
        log.warning("out of memory on %s: going on with at most %d tokens in a batch", self._device, self._max_tokens)
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()
        return False

    def _forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(num_texts, dim) float32 from ids (num_texts, longest) padded on the right."""
        ids, lengths = ids.to(self._device), lengths.to(self._device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        hidden = self._transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors = pool(hidden, lengths, self._tower.pooling, self._skip)
        for head in self._heads:
            vectors = head(vectors)
        if self._tower.truncate_dim is not None:
            vectors = vectors[:, : self._tower.truncate_dim]
        return unit(vectors) if self._tower.normalize else vectors

    def _probe(self) -> int:
        """Dimensions of a vector, from one text of one token: also the first sign of a type or module that cannot work."""
        try:
            with torch.inference_mode():
                return int(self._forward(torch.ones((1, 1), dtype=torch.long), torch.ones(1, dtype=torch.long)).shape[1])
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"{self._tower.weights}: cannot encode on {self._device}: {error}; try encoder.dtype=float32"
            ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
