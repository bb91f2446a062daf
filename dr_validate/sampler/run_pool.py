"""The judged documents and the top of somebody's run for each query: what Asyncval does."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from dr_validate.component import NameOrPath, component
from dr_validate.sampler.design import budget, permanent_random_numbers, sample_of
from dr_validate.sampler.runs import BM25, BM25_DEPTH, Candidates, NamedRun, candidates
from dr_validate.values import Sample, TestSet

log = logging.getLogger(__name__)

DEFAULT_DEPTH = 100


@component
class RunPoolSampler:
    """`run`: the path of a TREC or MS MARCO run, `ranxhub:ID`, `bm25` (built in), or `shipped`: the collection's own, such as
    MS MARCO's top1000.dev, else `bm25`. The pool is its top `depth` per query, or as deep as `fraction` of the whole corpus
    allows, judged documents included; one of the two, a depth of 100 if neither.

    A pool is no random draw: nothing is known about what is not in it. `bm25_depth` (1000 if not set) is how deep the built-in
    run goes. Of a run without an order (MS MARCO's `top1000.dev.tsv`) `depth` takes that many hits of a query, the highest ids,
    and `fraction` any of them, by the seed.
    """

    run: NameOrPath = Field(default=BM25, min_length=1)
    depth: int | None = Field(default=None, ge=1)
    fraction: float | None = Field(default=None, gt=0, le=1)
    bm25_depth: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.depth is not None and self.fraction is not None:
            raise ValueError(
                f"depth and fraction: got {self.depth} and {self.fraction}, set one of them and leave the other null"
            )
        if self.bm25_depth is not None and self.run != BM25:
            raise ValueError(f"bm25_depth: got {self.bm25_depth}, which has no effect on run {self.run!r}; leave it null")
        if self.run == BM25 and (self.depth or 0) > self._bm25_depth:
            raise ValueError(f"depth: got {self.depth}, but bm25_depth is {self._bm25_depth}; raise bm25_depth to it")
        return self

    def draw(self, test_set: TestSet, seed: int, cache: Path) -> Sample:
        """See `Sampler.draw`. Raises SetupError for a run that cannot be read or names no query of the test set.

        With `fraction`, the seed decides which documents of the last, partial depth come in.
        """
        self.check(test_set)
        run = self._run.of(test_set).read(test_set, cache)
        return self.draw_from(candidates([run if self.fraction else run.first(self._depth)], test_set), test_set, seed)

    def draw_from(self, pool: Candidates, test_set: TestSet, seed: int) -> Sample:
        """`draw` with the candidates of `run` as they were found before: for whoever draws many times."""
        room = None if self.fraction is None else budget(test_set, self.fraction) - len(test_set.judged)
        if room is None:
            chosen = pool.documents[pool.ranks < self._depth]
        else:
            numbers = permanent_random_numbers(test_set.corpus.id_hash[pool.documents], seed)
            chosen = pool.best(room, numbers)
            if len(chosen) < room:
                log.warning(
                    "run %s ends before the budget: %d documents fewer than sampler.fraction", self.run, room - len(chosen)
                )
        log.info("run pool of %s: %d judged and %d other documents", test_set.name, len(test_set.judged), len(chosen))
        return sample_of(test_set, chosen, 1.0, {**self._fingerprint(self._run.of(test_set)), "seed": seed})

    def check(self, test_set: TestSet) -> None:
        """See `Sampler.check`."""
        if self.fraction is not None:
            budget(test_set, self.fraction)

    def check_files(self) -> None:
        """Raise SetupError where a run is not at its place; nothing is read."""
        self._run.find()

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values for the spec; of a file its content counts, not its place. Raises SetupError if there is no such file."""
        return self._fingerprint(self._run)

    def _fingerprint(self, run: NamedRun) -> Mapping[str, Any]:
        limit = {"depth": self._depth} if self.fraction is None else {"fraction": self.fraction}
        return {"sampler": "run_pool", "run": run.content(), **limit}

    @property
    def _depth(self) -> int:
        return DEFAULT_DEPTH if self.depth is None else self.depth

    @property
    def _bm25_depth(self) -> int:
        return BM25_DEPTH if self.bm25_depth is None else self.bm25_depth

    @property
    def _run(self) -> NamedRun:
        return NamedRun(name=self.run, key="sampler.run", bm25_depth=self._bm25_depth)
