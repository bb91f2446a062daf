"""A model and its tokens that are only there once something asks for them: vectors that are kept need neither."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from dr_validate.stages import Model, TextBlocks, Tokenizer
from dr_validate.values import Float32, Side, TokenBlock


class LazyModel:
    """The `Model` protocol; `load` is entered when it is first used and left with the block. `load_s`: what that took."""

    def __init__(self, load: Callable[[], AbstractContextManager[Model]], when_loaded: Callable[[], None]) -> None:
        self._load, self._when_loaded = load, when_loaded
        self._stack = ExitStack()
        self._model: Model | None = None
        self.load_s = 0.0

    def __enter__(self) -> "LazyModel":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._model = None
        self._stack.__exit__(*exc_info)

    @property
    def dim(self) -> int:
        """See `Model.dim`."""
        return self._loaded().dim

    @property
    def contract(self) -> Mapping[str, Any]:
        """See `Model.contract`."""
        return self._loaded().contract

    def tokenizer(self, side: Side) -> Tokenizer:
        """See `Model.tokenizer`."""
        return self._loaded().tokenizer(side)

    def encode(self, tokens: TokenBlock, side: Side) -> Float32:
        """See `Model.encode`."""
        return self._loaded().encode(tokens, side)

    def _loaded(self) -> Model:
        if self._model is None:
            began = time.monotonic()
            self._model = self._stack.enter_context(self._load())
            self.load_s = time.monotonic() - began
            self._when_loaded()
        return self._model


class LazyBlocks:
    """The `TextBlocks` protocol; `open` is called for the first block. `tokenize_s`: seconds that making them took."""

    def __init__(self, open: Callable[[], TextBlocks], *, num_texts: int, block_size: int) -> None:
        self._open, self._num_texts, self._size = open, num_texts, block_size
        self._blocks: TextBlocks | None = None
        self.tokenize_s = 0.0

    def __len__(self) -> int:
        return -(-self._num_texts // self._size)

    def positions(self, number: int) -> slice:
        """See `TextBlocks.positions`."""
        return slice(number * self._size, min((number + 1) * self._size, self._num_texts))

    def block(self, number: int) -> TokenBlock:
        """See `TextBlocks.block`."""
        if self._blocks is None:
            self._blocks = self._open()
        began = time.monotonic()
        block = self._blocks.block(number)
        self.tokenize_s += time.monotonic() - began
        return block
