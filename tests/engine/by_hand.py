"""A small real model, token embeddings summed, so that no batch can change a vector; its work, and controls that end it."""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.engine.local import LocalEngine
from dr_validate.errors import CheckpointError, Stopped
from dr_validate.index.torch import TorchIndex
from dr_validate.stages import Ranked, Tokenizer, Workload
from dr_validate.store.embeddings import NothingKept
from dr_validate.values import Float32, Int64, Side, TokenBlock
from tests.processes import wait_for

NUM_DOCUMENTS, NUM_QUERIES, VOCABULARY = 200, 7, 50


@dataclass
class SumOfEmbeddings:
    """A model without a batch: text -> sum of its tokens' vectors, of small integers so that many scores tie."""

    dim: int = 4
    texts_encoded: int = 0

    @property
    def contract(self) -> Mapping[str, Any]:
        return {"pooling": "sum"}

    def tokenizer(self, side: Side) -> Tokenizer:
        raise NotImplementedError("texts come tokenized here")

    def encode(self, tokens: TokenBlock, side: Side) -> Float32:
        table = np.random.default_rng(7).integers(-2, 3, (VOCABULARY, self.dim)).astype(np.float32)
        if side == "document":
            self.texts_encoded += len(tokens)
        rows = [table[tokens.ids[a:b]].sum(axis=0) for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]
        return np.array(rows, dtype=np.float32).reshape(len(tokens), self.dim)


@dataclass
class Blocks:
    tokens: TokenBlock
    size: int

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.size)

    def positions(self, number: int) -> slice:
        return slice(number * self.size, min((number + 1) * self.size, len(self.tokens)))

    def block(self, number: int) -> TokenBlock:
        place = self.positions(number)
        first, last = self.tokens.offsets[place.start], self.tokens.offsets[place.stop]
        return TokenBlock(ids=self.tokens.ids[first:last], offsets=self.tokens.offsets[place.start : place.stop + 1] - first)


@dataclass
class StopAfter:
    """Lets `slices` slices through, then says stop."""

    slices: int = 10**9
    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def check(self) -> None:
        if len(self.seen) >= self.slices:
            raise Stopped("enough")

    def progress(self, phase: str, done: int, total: int) -> None:
        self.seen.append((phase, done, total))


class Killed(BaseException):
    """Nothing that the engine may catch."""


@dataclass
class ByHand:
    """A clock that stands still until somebody moves it."""

    seconds: float = 0.0


@dataclass
class KillAfter(StopAfter):
    """Dies after `slices` slices, each of which takes 10 s by `clock`."""

    clock: ByHand = field(default_factory=ByHand)

    def check(self) -> None:
        if len(self.seen) >= self.slices:
            raise Killed

    def progress(self, phase: str, done: int, total: int) -> None:
        super().progress(phase, done, total)
        self.clock.seconds += 10


@dataclass(frozen=True, kw_only=True)
class OpenedByHand:
    model: SumOfEmbeddings
    workload: Workload
    load_s: float = 0.0

    def contract(self) -> Mapping[str, Any]:
        return {"pooling": "sum", "process": os.getpid()}


@dataclass(frozen=True, kw_only=True)
class ByHandElsewhere:
    """The same workload in another process. A file in `orders` is an order for whoever finds it first, at its slice of that
    number: `kill-3` (of itself), `hang-3` (until there is a file `go`), `slow-3` (from then on each takes as long as ten of the
    others'), `fail-3` (a wrong checkpoint), `break-3` (a wrong device); `kill-always` is for everybody."""

    orders: Path
    options: Mapping[str, Any]
    folder: Path
    is_seen_elsewhere: bool = True

    def __reduce__(self) -> Any:
        folder = self.folder if self.is_seen_elsewhere else self.folder / "not there"
        return ByHandElsewhere._made, (self.orders, self.options, folder)

    @staticmethod
    def _made(orders: Path, options: Mapping[str, Any], folder: Path) -> "ByHandElsewhere":
        return ByHandElsewhere(orders=orders, options=options, folder=folder)

    @contextlib.contextmanager
    def open(self, folder: Path, device: str, *, keep: bool) -> Iterator[OpenedByHand]:
        assert (folder / "weights").read_text() == "these"
        yield OpenedByHand(model=Troubled(orders=self.orders), workload=workload_of(self.orders, **self.options))


@dataclass
class Troubled(SumOfEmbeddings):
    orders: Path = Path()
    slices: int = 0
    is_slow: bool = False

    def encode(self, tokens: TokenBlock, side: Side) -> Float32:
        self.slices += side == "document"
        if self._is_told("kill") or (self.orders / "kill-always").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if self._is_told("hang"):
            wait_for((self.orders / "go").exists)
        self._take_as_long_as_told(side)
        if self._is_told("fail"):
            raise CheckpointError("it is wrong")
        if self._is_told("break"):
            raise RuntimeError("the device is wrong")
        return super().encode(tokens, side)

    def _take_as_long_as_told(self, side: Side) -> None:
        """One that is not slow says when it is at a slice."""
        done = self.orders / "done"
        self.is_slow |= self._is_told("slow")
        if self.is_slow:
            before = size_of(done)
            wait_for(lambda: size_of(done) >= before + 10 or (self.orders / "go").exists())
        elif side == "document":
            with done.open("ab") as stream:
                stream.write(b".")

    def _is_told(self, order: str) -> bool:
        try:
            (self.orders / f"{order}-{self.slices}").unlink()
        except FileNotFoundError:
            return False
        return True


def size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def tokens_of(num_texts: int, seed: int) -> TokenBlock:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 9, num_texts))])
    return TokenBlock(ids=rng.integers(0, VOCABULARY, int(offsets[-1])).astype(np.uint16), offsets=offsets)


def workload_of(folder: Path, *, block: int = 64, top_k: int = 20, own: Int64 | None = None) -> Workload:
    num_corpus = NUM_DOCUMENTS * 3
    return Workload(
        queries=Blocks(tokens_of(NUM_QUERIES, 1), NUM_QUERIES),
        documents=Blocks(tokens_of(NUM_DOCUMENTS, 2), block),
        vectors=NothingKept(),
        ordinals=np.sort(np.random.default_rng(3).choice(num_corpus, NUM_DOCUMENTS, replace=False)),
        own_documents=np.full(NUM_QUERIES, -1) if own is None else own,
        tie_rank=np.random.default_rng(4).permutation(num_corpus),
        top_k=top_k,
        progress_file=folder / "progress" / "work.npz",
    )


def rank(workload: Workload, engine: LocalEngine | None = None, control: StopAfter | None = None) -> Ranked:
    return (engine or LocalEngine()).rank(SumOfEmbeddings(), workload, TorchIndex(), control or StopAfter(), "cpu")


def assert_same(found: Ranked, expected: Ranked) -> None:
    np.testing.assert_array_equal(found.ranking.documents, expected.ranking.documents)
    np.testing.assert_array_equal(found.ranking.scores, expected.ranking.scores)
