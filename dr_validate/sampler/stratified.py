"""The judged documents and the pool for certain, a ring around the pool with high odds, the rest with low ones."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from dr_validate.component import NameOrPath, component
from dr_validate.errors import SetupError
from dr_validate.sampler.drawing import drawn, epoch_seed, fraction_for, num_documents, others, sample_of
from dr_validate.sampler.epochs import content_of, drift, run_of
from dr_validate.sampler.fusion import Candidates, candidates
from dr_validate.sampler.levels import Decide, draw_at_levels, early_rules
from dr_validate.sampler.named_run import NamedRun
from dr_validate.sampler.runs import Run
from dr_validate.sampler.strata import LEAST_REST, Population, Shares, divide
from dr_validate.values import Ranking, Sample, TestSet

DRIFT = 0.3
log = logging.getLogger(__name__)


@component
class StratifiedSampler:
    """`fraction` of the whole corpus, judged documents included: those for certain, then `pool_share` of what is left for the
    pool, for certain, `ring_share` for the ring (the next in pool order, each with odds `ring_inclusion`), the remainder for
    a simple random sample of all other documents.

    Pool order fuses the runs of `pool`: `bm25` (built in, 1000 deep), paths of TREC or MS MARCO runs, `ranxhub:ID`. Strata
    depend on the runs alone, the seed only draws within them, and a document's odds are exactly n/N of its stratum.

    Over `fraction`, for equal seed, runs and shares, the judged documents and the pool are nested exactly, and so is the
    rest sample: what it holds for a smaller fraction is in the pool or the rest sample of a larger one, unless it is in that
    one's ring. A ring's sample is not: the larger fraction's ring has other members, and so another cut in the same numbers.
    Without a ring (`ring_share=0`) all is nested.

    `precision` ends the encoding of a checkpoint at a quarter or half of the budget where the 95% interval of the first metric
    is at most that much to either side; `decide=best` where it is surely worse than the best so far. Both change scores.

    `epochs=drift` has a full-corpus baseline redraw the pool once more than `drift` of its first 10 places are held by
    documents that the sample does not hold for certain; checkpoints validated later meet the new sample.
    """

    fraction: float = Field(default=0.01, gt=0, le=1)
    pool: tuple[Annotated[NameOrPath, Field(min_length=1)], ...] = Field(default=("bm25",), min_length=1)
    pool_share: float = Field(default=0.7, gt=0, lt=1)
    ring_share: float = Field(default=0.0, ge=0, lt=1)  # a ring gained nothing (scripts/STUDY.md)
    ring_inclusion: float = Field(default=1 / 3, gt=0, lt=1)
    precision: float | None = Field(default=None, gt=0)
    decide: Decide = "never"
    epochs: Literal["never", "drift"] = "never"
    drift: float = Field(default=DRIFT, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pool_share + self.ring_share >= 1:
            raise ValueError(
                f"pool_share and ring_share: got {self.pool_share} and {self.ring_share}, which leaves nothing for the rest of "
                "the corpus; their sum must be below 1"
            )
        if len(set(self.pool)) < len(self.pool):
            raise ValueError(f"pool: got {list(self.pool)}, name each run once")
        if self.drift != DRIFT and self.epochs == "never":
            raise ValueError(f"drift: got {self.drift}, which has no effect with epochs=never; set epochs=drift")
        return self

    def draw(self, test_set: TestSet, seed: int, cache: Path) -> Sample:
        """See `Sampler.draw`. Raises SetupError for a run that cannot be read and for a fraction that leaves fewer than 40
        documents for the rest, naming the smallest one that works."""
        return self.draw_from(self._candidates(test_set, cache), test_set, seed)

    def draw_from(self, found: Candidates, test_set: TestSet, seed: int) -> Sample:
        """`draw` with the candidates of `pool` as they were found before: for whoever draws many times."""
        return self._sample(test_set, seed, found, {"seed": seed})

    def draw_levels(self, test_set: TestSet, seed: int, cache: Path) -> Mapping[int, Sample]:
        """Samples by level, smaller ones first; the deepest is that of `draw`. Raises as `draw` does."""
        found = self._candidates(test_set, cache)
        return draw_at_levels(self, self.rules(), lambda part: part.draw_from(found, test_set, seed))

    def check(self, test_set: TestSet) -> None:
        """See `Sampler.check`."""
        if num_documents(test_set, self.fraction) < len(test_set.judged):
            raise self._too_small(test_set, _population(test_set, len(test_set.corpus) - len(test_set.judged)))

    def redraw(self, test_set: TestSet, seed: int, cache: Path, baseline: Ranking, epoch: int = 1) -> Sample:
        """The sample of a later epoch (1, 2, ...): `baseline`, the full-corpus ranking of an earlier checkpoint, joins the
        runs, and the draw is a fresh one. `seed` is that of the run. Values of two epochs compare through the baseline only.

        Raises as `draw` does.
        """
        return list(self.redraw_levels(test_set, seed, cache, baseline, epoch).values())[-1]

    def redraw_levels(
        self, test_set: TestSet, seed: int, cache: Path, baseline: Ranking, epoch: int = 1
    ) -> Mapping[int, Sample]:
        """Samples of a later epoch by level; the deepest is that of `redraw`."""
        assert epoch >= 1, f"redraw: epoch {epoch} is drawn without a baseline"
        assert len(baseline.documents) == len(test_set.query_ids), "redraw: the baseline has other queries"
        found = self._candidates(test_set, cache, run_of(baseline))
        provenance = {"seed": seed, "epoch": epoch, "baseline": content_of(baseline)}
        fresh = epoch_seed(seed, epoch)
        return draw_at_levels(self, self.rules(), lambda part: part._sample(test_set, fresh, found, provenance))

    def drifted(self, sample: Sample, baseline: Ranking) -> float | None:
        """The drift (see `sampler.epochs`) where `baseline` calls for a new epoch, None where it does not."""
        if self.epochs == "never":
            return None
        found = drift(sample, baseline)
        return found if found > self.drift else None

    def rules(self) -> Mapping[str, Any]:
        """JSON values for the spec beside the first sample: what may end a checkpoint early, or redraw. Empty by default."""
        rules = early_rules(self.precision, self.decide)
        return rules if self.epochs == "never" else {**rules, "epochs": self.epochs, "drift": self.drift}

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values of the draw; of a file its content counts, not its place. Raises SetupError if there is no such file."""
        return {
            "sampler": "stratified",
            "fraction": self.fraction,
            "pool": [run.content() for run in self._named],
            "pool_share": self.pool_share,
            "ring_share": self.ring_share,
            "ring_inclusion": self.ring_inclusion,
        }

    @property
    def _named(self) -> list[NamedRun]:
        return [NamedRun(name=name, key="sampler.pool") for name in self.pool]

    def _candidates(self, test_set: TestSet, cache: Path, *further: Run) -> Candidates:
        self.check(test_set)  # before minutes of BM25
        return candidates([*(run.read(test_set, cache) for run in self._named), *further], test_set)

    def _sample(self, test_set: TestSet, seed: int, found: Candidates, provenance: Mapping[str, Any]) -> Sample:
        population = _population(test_set, len(found.documents))
        strata = divide(num_documents(test_set, self.fraction), population, self._shares)
        if strata is None:
            raise self._too_small(test_set, population)
        log.info("stratified sample of %s: %d judged documents, %s", test_set.name, population.judged, strata)
        if strata.pool + strata.ring == population.candidates and strata.rest_drawn < strata.rest:
            log.warning(
                "the runs %s end in pool or ring, after %d documents that are not judged: the room left goes to the rest",
                *(", ".join(self.pool), population.candidates),
            )
        # The hash orders equal ranks, not the numbers that draw: who is in a stratum must not depend on those.
        order = found.best(strata.pool + strata.ring, test_set.corpus.id_hash[found.documents])
        pool, ring = np.split(order, [strata.pool])
        rest = others(test_set, order)
        parts = [pool, drawn(ring, strata.ring_drawn, test_set, seed), drawn(rest, strata.rest_drawn, test_set, seed)]
        odds = np.repeat(strata.odds, [len(part) for part in parts])
        return sample_of(test_set, np.concatenate(parts), odds, {**self.fingerprint(), **provenance})

    @property
    def _shares(self) -> Shares:
        return Shares(pool=self.pool_share, ring=self.ring_share, ring_inclusion=self.ring_inclusion)

    def _too_small(self, test_set: TestSet, population: Population) -> SetupError:
        """The whole corpus always works, so there is a smallest fraction above ours that does."""
        documents, total = num_documents(test_set, self.fraction), len(test_set.corpus)
        larger = (fraction_for(test_set, number) for number in range(max(documents, population.judged), total + 1))
        least = next(f for f in larger if divide(num_documents(test_set, f), population, self._shares))
        return SetupError(
            f"sampler.fraction: got {self.fraction}, which is {documents} of {total} documents of {test_set.name}; its "
            f"{population.judged} judged documents are always in, and at least {LEAST_REST} of those beyond pool and ring must "
            f"be, to know what the sample leaves out; set sampler.fraction={least} or more"
        )


def _population(test_set: TestSet, num_candidates: int) -> Population:
    judged = len(test_set.judged)
    return Population(judged=judged, others=len(test_set.corpus) - judged, candidates=num_candidates)
