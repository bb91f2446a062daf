"""The Model of one loaded checkpoint. Imports torch: only imported when a model is loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dr_validate.encoder.checks import weight_files
from dr_validate.encoder.forward import Chosen, choose_forward, choose_static
from dr_validate.encoder.spec import Contract, TowerSpec
from dr_validate.encoder.threads import keep_heap
from dr_validate.encoder.tokenizer import FastTokenizer
from dr_validate.encoder.tower import LoadedTower, or_cannot
from dr_validate.encoder.weights import load_transformer
from dr_validate.errors import CheckpointError
from dr_validate.values import Side, TokenBlock


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
        self._contract: dict[str, Any] = {"dtype": dtype, "append_eos": append_eos} | contract.describe()
        if device == "cpu":
            keep_heap()
        self._towers: dict[Side, LoadedTower] = {}
        self._chosen: dict[tuple[object, ...], Chosen]
        chosen = self._chosen = {} if weights_of is None else dict(weights_of._chosen)
        for side in _SIDES:
            tower = contract.tower(side)
            place = (tower.weights, tower.adapter, tower.weights_prefix)
            if place not in chosen:
                chosen[place] = _choose(tower, getattr(torch, dtype), device)
            tokenizer = FastTokenizer(tower, append_eos)
            self._towers[side] = LoadedTower(tower, chosen[place], tokenizer, device, max_tokens)
        self._contract |= chosen[place].describe()
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
        self._chosen.clear()

    def encode(self, tokens: TokenBlock, side: Side) -> Tensor:
        """(len(tokens), dim) float32 on the device, in the order given; a text without any token is the zero vector."""
        return self._towers[side].encode(tokens)


_SIDES: tuple[Side, Side] = ("query", "document")


def _choose(tower: TowerSpec, dtype: torch.dtype, device: str) -> Chosen:
    def choose() -> Chosen:
        if tower.static:
            return choose_static(
                {k: v for file in weight_files(tower.weights) for k, v in load_file(file).items()}, dtype, device
            )
        return choose_forward(lambda: load_transformer(tower, dtype, device), dtype, device)

    return or_cannot(choose, tower, device)
