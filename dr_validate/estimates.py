"""From the ranking of a sample to corrected metrics: the crossings of every checkpoint of a spec are kept and learnt from."""

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_validate.metrics.crossings import Crossings, can_be_estimated, crossings
from dr_validate.metrics.differences import differences
from dr_validate.metrics.estimate import Estimated, estimate
from dr_validate.values import Estimate, Float64, Ranking, Sample, Scores, TestSet

MOST_CHECKPOINTS = 32  # the latest: more add little and cost time
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a Report says: `per_query` corrected (num_queries,) by metric, `notes` JSON values."""

    metrics: Mapping[str, Estimate]
    per_query: Mapping[str, Float64]
    notes: Mapping[str, Any]


class Estimates:
    """One per spec: `folder` keeps one file for each checkpoint."""

    def __init__(self, folder: Path, test_set: TestSet, sample: Sample, top_k: int) -> None:
        self._folder, self._test_set, self._sample, self._top_k = folder, test_set, sample, top_k
        self._possible = not sample.is_full and can_be_estimated(sample)

    def of(self, digest: str, ranking: Ranking, scores: Scores) -> Outcome:
        """Corrected by all that is known so far; where the sample says nothing of the rest, the value is an upper bound."""
        if not self._possible:
            return self._uncorrected(scores)
        id_hash = self._test_set.corpus.id_hash[self._sample.ordinals]
        mine = crossings(ranking, self._test_set.qrels, self._sample, id_hash)
        mine.save(self._folder / f"{digest.replace(':', '-')}.npz")
        earlier = self._earlier(digest)
        history = [*earlier.values(), mine]
        made = {name: estimate(history, self._test_set.qrels, name, self._top_k) for name in scores.per_query}
        return Outcome(
            metrics={name: _as_estimate(estimated[-1], scores.mean(name)) for name, estimated in made.items()},
            per_query={name: estimated[-1].per_query for name, estimated in made.items()},
            notes={"estimate": _notes(made, list(earlier))},
        )

    def _uncorrected(self, scores: Scores) -> Outcome:
        # Leaving documents out can only lift the judged ones: the sampled value is a certain upper bound, and where nothing is
        # known of the documents left out, nothing but 0 is a certain lower one.
        full = self._sample.is_full
        means = {name: scores.mean(name) for name in scores.per_query}
        metrics = {name: Estimate(value=v, low=v if full else 0.0, high=v, naive=v) for name, v in means.items()}
        return Outcome(metrics=metrics, per_query=scores.per_query, notes={})

    def _earlier(self, digest: str) -> dict[str, Crossings]:
        """The latest other checkpoints, oldest first, by digest."""
        own = f"{digest.replace(':', '-')}.npz"
        files = sorted(
            (path for path in self._folder.glob("*.npz") if path.name != own), key=lambda path: path.stat().st_mtime_ns
        )
        found = {}
        for path in files[-(MOST_CHECKPOINTS - 1) :]:
            try:
                found[path.stem.replace("-", ":", 1)] = Crossings.load(path)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                log.warning("%s is damaged (%s) and left out of the estimates", path, error)
        return found


def _as_estimate(estimated: Estimated, naive: float) -> Estimate:
    low, high = estimated.interval
    value = min(estimated.value, naive)
    return Estimate(value=value, low=min(low, value), high=min(max(high, value), naive), naive=naive)


def _notes(made: Mapping[str, Sequence[Estimated]], earlier: Sequence[str]) -> dict[str, Any]:
    """How much stands behind the numbers, and what the first metric says of this checkpoint against the others."""
    first = next(iter(made.values()))
    against = {
        digest: {
            "value": difference.value,
            "low": difference.low,
            "high": difference.high,
            "population": [difference.population_low, difference.population_high],
            "p": difference.p,
        }
        for digest, difference in zip(earlier, differences(first[-1], first[:-1]), strict=True)
    }
    return {
        "checkpoints": len(first),
        "crossings": {name: estimated[-1].crossed for name, estimated in made.items()},
        "population": {name: list(estimated[-1].population_interval) for name, estimated in made.items()},
        "metric": next(iter(made)),
        "differences": against,
    }
