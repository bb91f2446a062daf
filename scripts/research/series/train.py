"""The training of a series: in-batch negatives, a checkpoint at each of the steps asked for. Imports torch."""

import contextlib
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.research.series.docstrings import Collection
from scripts.research.series.model import Kind, Student

log = logging.getLogger(__name__)

SCALE = 20  # of cosines in the loss
LOG_EVERY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a series is trained. `steps` ascend; a checkpoint shows the weights after so many steps of the optimizer."""

    kind: Kind
    base: Path
    steps: tuple[int, ...]
    noise: float
    learning_rate: float
    batch_size: int
    warmup_steps: int
    lengths: tuple[int, int]  # tokens of a query and of a document, special ones included
    seed: int

    def rate(self, step: int) -> float:
        """Up to the learning rate and down to a tenth of it."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * warm * (1 - 0.9 * step / max(1, self.steps[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint, and the mean loss of the steps since the one before; None where there were none."""

    step: int | None
    folder: Path
    loss: float | None


def train(recipe: Recipe, collection: Collection, folder: Path) -> Iterator[Saved]:
    """Write `checkpoint-STEP` folders into `folder`, each when its turn comes: training goes on when the next one is asked for.

    The same recipe and collection give the same weights on one machine, however many threads the caller has.
    """
    torch.manual_seed(recipe.seed)  # noise and dropout
    chance = random.Random(recipe.seed)
    with _one_thread():
        student = Student(recipe.kind, recipe.base, recipe.noise, recipe.lengths)
    queries = _token_ids(student, [query for query, _ in collection.training], recipe.lengths[0])
    documents = _token_ids(student, [collection.documents[place] for _, place in collection.training], recipe.lengths[1])
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.learning_rate, fused=True)
    losses: list[float] = []
    for step in range(recipe.steps[-1] + 1):
        if step in recipe.steps:
            target = folder / f"checkpoint-{step}"
            student.save(target, step)
            random_state = torch.get_rng_state()
            yield Saved(step=step, folder=target, loss=sum(losses) / len(losses) if losses else None)
            torch.set_rng_state(random_state)  # whatever the caller did with it
            losses = []
        if step == recipe.steps[-1]:
            return
        rows = [chance.randrange(len(queries)) for _ in range(recipe.batch_size)]
        losses.append(
            _step(student, optimizer, ([queries[row] for row in rows], [documents[row] for row in rows]), recipe.rate(step))
        )
        if step % LOG_EVERY == 0:
            log.info("step %d: loss %.3f", step, losses[-1])


def _step(
    student: Student, optimizer: torch.optim.Optimizer, batch: tuple[list[list[int]], list[list[int]]], rate: float
) -> float:
    student.model.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    with _one_thread():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            queries, documents = (student.embed(side) for side in batch)
        loss = torch.nn.functional.cross_entropy(queries @ documents.T * SCALE, torch.arange(len(queries)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        optimizer.step()
        student.after_step()
    return float(loss.detach())


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out the same whatever the caller has, and nobody waits: two threads on cores that others use, too, took 3 CPU
    seconds for a step of `minilm3`, one takes 0.5."""
    allowed = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(allowed)


def _token_ids(student: Student, texts: list[str], length: int) -> list[list[int]]:
    found = student.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    return [list(ids) for ids in found]
