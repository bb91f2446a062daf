"""One side of a loaded checkpoint: tokens to vectors. Imports torch: only imported when a model is loaded."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dr_validate.devices import free_memory, is_out_of_memory, to_device
from dr_validate.encoder.batches import Batch, plan, take
from dr_validate.encoder.forward import Chosen
from dr_validate.encoder.heads import Step, load_heads, unit
from dr_validate.encoder.pooling import pool
from dr_validate.encoder.spec import TowerSpec
from dr_validate.encoder.threads import for_each
from dr_validate.encoder.tokenizer import FastTokenizer
from dr_validate.errors import CheckpointError, NoMemory
from dr_validate.values import Int64, TokenBlock

T = TypeVar("T")
log = logging.getLogger(__name__)


class LoadedTower:
    """Transformer, pooling and heads of one side on one device."""

    def __init__(self, tower: TowerSpec, chosen: Chosen, tokenizer: FastTokenizer, device: str, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self._tower = tower
        self._forward = chosen.forward
        self._device = device
        self._max_tokens = max_tokens
        self._skip = 0 if tower.include_prompt else tokenizer.prefix_length
        self._heads: tuple[Step, ...] = load_heads(tower.heads, device)
        self._vocabulary_size = chosen.vocabulary_size
        self.dim = self._probe()

    def encode(self, tokens: TokenBlock) -> Tensor:
        """(len(tokens), dim) float32 on the device, in the order given; a text without any token is the zero vector.

        Beside the result it needs what `max_tokens` tokens need in the model: on a CPU once for each thread.
        """
        self._check_ids(tokens)
        out = torch.zeros((len(tokens), self.dim), dtype=torch.float32, device=self._device)
        batches = self._plan(tokens.lengths)
        if self._device == "cpu":
            for_each(batches, lambda rows: self._encode_rows(tokens, rows, out))
        else:
            for rows in batches:  # a GPU is asked ahead: while it computes, the next batch is prepared here
                self._encode_rows(tokens, rows, out)
        return out

    def _plan(self, lengths: Int64) -> Sequence[Int64]:
        threads = torch.get_num_threads() if self._device == "cpu" else 1
        return plan(lengths, self._max_tokens, threads, pad=self._forward.pads)

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
        vectors = pool(self._forward(batch), lengths, self._tower.pooling, self._skip)
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
