"""What ranking a checkpoint takes: its kept vectors, its model and its tokens, none of them touched before it is used."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_validate.config import Run
from dr_validate.epochs import NotKept
from dr_validate.lazy import LazyBlocks, LazyModel
from dr_validate.plans import Plan
from dr_validate.stages import Model, TextBlocks, Vectors, Workload
from dr_validate.tokens import TokenCache
from dr_validate.values import Sample, Side, TestSet

SIDES: tuple[Side, Side] = ("query", "document")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """A checkpoint in hand: its kept vectors and its model, lazy."""

    digest: str
    vectors: Vectors
    model: LazyModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A checkpoint and one of the samples: its model and the tokens, lazy, and what is to be ranked with them."""

    model: LazyModel
    texts: Mapping[Side, LazyBlocks]
    workload: Workload

    def contract(self) -> Mapping[str, Any]:
        """The model's, as it was when the first of its vectors was made."""
        return dict(self.workload.vectors.contract(lambda: self.model.contract))

    @property
    def tokenize_s(self) -> float:
        """Seconds that it took so far."""
        return sum(blocks.tokenize_s for blocks in self.texts.values())


class Bench:
    """Lays out the work of a run; what checkpoints share, tokens above all, stays between them."""

    def __init__(self, run: Run, device: str, test_set: TestSet) -> None:
        self._run, self._device, self._test_set = run, device, test_set
        self._state_dir = run.settings.state_dir
        self._tokens = TokenCache(self._state_dir / "tokens")

    @contextlib.contextmanager
    def in_hand(self, digest: str, folder: Path | None, when_loaded: Callable[[], None] = lambda: None) -> Iterator[Hand]:
        """`folder`: None where the kept vectors must do; raises NotKept as soon as they do not. `when_loaded` is called once
        the model is there, if it is needed at all."""

        def load() -> AbstractContextManager[Model]:
            if folder is None:
                raise NotKept
            model: AbstractContextManager[Model] = self._run.encoder.load(folder, self._device)
            return model

        terms = {"encoder": dict(self._run.encoder.fingerprint()), "test_set": self._test_set.fingerprint}
        counts: dict[Side, int] = {"query": len(self._test_set.query_ids), "document": len(self._test_set.corpus)}
        with self._run.store.vectors(digest, terms, counts, self._state_dir) as vectors, LazyModel(load, when_loaded) as model:
            yield Hand(digest=digest, vectors=vectors, model=model)

    def work(self, hand: Hand, plan: Plan) -> Work:
        """The checkpoint on one sample."""
        texts = {side: self._texts(side, plan.sample, hand.model) for side in SIDES}
        workload = Workload(
            queries=texts["query"],
            documents=texts["document"],
            vectors=hand.vectors,
            ordinals=plan.sample.ordinals,
            own_documents=self._test_set.own_documents,
            tie_rank=self._test_set.corpus.tie_rank,
            top_k=self._run.settings.top_k,
            progress_file=self._state_dir / "progress" / f"{plan.name}-{hand.digest.replace(':', '-')}.npz",
        )
        return Work(model=hand.model, texts=texts, workload=workload)

    def _texts(self, side: Side, sample: Sample, model: Model) -> LazyBlocks:
        test_set = self._test_set
        if side == "query":
            key, number, block_size = f"queries-{test_set.fingerprint}", len(test_set.query_ids), len(test_set.query_ids)
        else:
            part = "full" if sample.is_full else sample.fingerprint
            key, number = f"documents-{test_set.fingerprint}-{part}", len(sample.ordinals)
            block_size = self._run.settings.block_documents

        def read(part: slice) -> Sequence[str] | Sequence[list[int]]:
            return test_set.query_texts[part] if side == "query" else test_set.corpus.texts(sample.ordinals[part])

        def open_blocks() -> TextBlocks:
            tokenizer = model.tokenizer(side)
            return self._tokens.open(tokenizer=tokenizer, texts_key=key, num_texts=number, read=read, block_size=block_size)

        return LazyBlocks(open_blocks, num_texts=number, block_size=block_size)
