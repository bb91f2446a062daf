"""The judged documents and a pool for certain, and a simple random sample of the rest."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from dr_validate.component import NameOrPath, component
from dr_validate.errors import SetupError
from dr_validate.sampler.design import (
    LEAST_REST,
    Population,
    divide,
    drawn,
    fraction_for,
    num_documents,
    others,
    sample_of,
)
from dr_validate.sampler.runs import Candidates, NamedRun, candidates, resolved
from dr_validate.values import Sample, TestSet

log = logging.getLogger(__name__)


@component
class StratifiedSampler:
    """`fraction` of the whole corpus: the judged documents for certain, then `pool_share` of what is left for the pool, for
    certain, the remainder for a simple random sample of all other documents.

    Pool order fuses the runs of `pool`: `bm25` (built in, 1000 deep), `shipped` (the collection's own, such as MS MARCO's
    top1000.dev, else `bm25`), `baseline` (a checkpoint's on the full corpus), paths of TREC or MS MARCO runs, `ranxhub:ID`.
    Strata depend on the runs alone, the seed only draws within them, and the inclusion probability of a document is exactly
    n/N of its stratum. For equal seed, runs and share, the sample of a smaller fraction lies within that of a larger one.
    """

    fraction: float = Field(default=0.01, gt=0, le=1)
    pool: tuple[Annotated[NameOrPath, Field(min_length=1)], ...] = Field(default=("bm25",), min_length=1)
    pool_share: float = Field(default=0.7, gt=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.pool)) < len(self.pool):
            raise ValueError(f"pool: got {list(self.pool)}, name each run once")
        return self

    def draw(self, test_set: TestSet, seed: int, cache: Path) -> Sample:
        """See `Sampler.draw`. Raises SetupError for a run that cannot be read and for a fraction that leaves fewer than 40
        documents for the rest, naming the smallest one that works."""
        self.check(test_set)  # before minutes of BM25
        runs = resolved(self._named, test_set)
        return self._draw_from(candidates([run.read(test_set, cache) for run in runs], test_set), runs, test_set, seed)

    def draw_from(self, found: Candidates, test_set: TestSet, seed: int) -> Sample:
        """`draw` with the candidates of `pool` as they were found before: for whoever draws many times."""
        return self._draw_from(found, resolved(self._named, test_set), test_set, seed)

    def _draw_from(self, found: Candidates, runs: Sequence[NamedRun], test_set: TestSet, seed: int) -> Sample:
        population = _population(test_set, len(found.documents))
        strata = divide(num_documents(test_set, self.fraction), population, self.pool_share)
        if strata is None:
            raise self._too_small(test_set, population)
        log.info("stratified sample of %s: %d judged documents, %s", test_set.name, population.judged, strata)
        if strata.pool == population.candidates and strata.rest_drawn < strata.rest:
            log.warning(
                "the runs %s end in the pool, after %d documents that are not judged: the room left goes to the rest",
                *(", ".join(run.name for run in runs), population.candidates),
            )
        # The hash orders equal ranks, not the numbers that draw: who is in a stratum must not depend on those.
        pool = found.best(strata.pool, test_set.corpus.id_hash[found.documents])
        rest = drawn(others(test_set, pool), strata.rest_drawn, test_set, seed)
        inclusion = np.repeat([1.0, strata.rest_inclusion], [len(pool), len(rest)])
        return sample_of(test_set, np.concatenate([pool, rest]), inclusion, {**self._fingerprint(runs), "seed": seed})

    def check(self, test_set: TestSet) -> None:
        """See `Sampler.check`."""
        if num_documents(test_set, self.fraction) < len(test_set.judged):
            raise self._too_small(test_set, _population(test_set, len(test_set.corpus) - len(test_set.judged)))

    def check_files(self) -> None:
        """Raise SetupError where a run is not at its place; nothing is read."""
        for run in self._named:
            run.find()

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values of the draw; of a file its content counts, not its place. Raises SetupError if there is no such file."""
        return self._fingerprint(self._named)

    def _fingerprint(self, runs: Sequence[NamedRun]) -> Mapping[str, Any]:
        pool = [run.content() for run in runs]
        return {"sampler": "stratified", "fraction": self.fraction, "pool": pool, "pool_share": self.pool_share}

    @property
    def _named(self) -> list[NamedRun]:
        return [NamedRun(name=name, key="sampler.pool") for name in self.pool]

    def _too_small(self, test_set: TestSet, population: Population) -> SetupError:
        """The whole corpus always works, so there is a smallest fraction above ours that does."""
        documents, total = num_documents(test_set, self.fraction), len(test_set.corpus)
        larger = (fraction_for(test_set, number) for number in range(max(documents, population.judged), total + 1))
        least = next(f for f in larger if divide(num_documents(test_set, f), population, self.pool_share))
        return SetupError(
            f"sampler.fraction: got {self.fraction}, which is {documents} of {total} documents of {test_set.name}; its "
            f"{population.judged} judged documents are always in, and at least {LEAST_REST} of those beyond the pool must "
            f"be, to know what the sample leaves out; set sampler.fraction={least} or more"
        )


def _population(test_set: TestSet, num_candidates: int) -> Population:
    judged = len(test_set.judged)
    return Population(judged=judged, others=len(test_set.corpus) - judged, candidates=num_candidates)
