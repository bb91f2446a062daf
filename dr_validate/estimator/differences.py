"""Whether two checkpoints can be told apart on the same sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.estimator.estimate import Estimated, Z
from dr_validate.values import Float64

ROUNDING = 1e-12  # of variances that cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Corrected value of one checkpoint minus another's, with its 95% interval for these queries, and for the population of
    queries; `p` is two-sided and corrected (Holm) over all that were compared with the same checkpoint."""

    value: float
    low: float
    high: float
    population_low: float
    population_high: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One checkpoint minus another: `error` is a standard deviation, `change` (num_queries,) that of each query."""

    value: float
    error: float
    change: Float64


def gap(one: Estimated, other: Estimated) -> Gap:
    """`one` minus `other`, estimated together: what their errors share cancels, and copies differ by exactly 0."""
    alone = one.error**2 + other.error**2
    variance = alone - 2 * float(one.covariance[other.place])
    error = math.sqrt(variance) if variance > ROUNDING * alone else 0.0
    return Gap(value=one.value - other.value, error=error, change=one.per_query - other.per_query)


def differences(one: Estimated, others: Sequence[Estimated]) -> list[Difference]:
    """`one` against each of the others, over one sample."""
    return judged([gap(one, other) for other in others])


def judged(gaps: Sequence[Gap]) -> list[Difference]:
    """What can be said of each gap where all of them were looked at."""
    chances = holm([_two_sided(each.value, each.error) for each in gaps])
    made = []
    for each, p in zip(gaps, chances, strict=True):
        value, change = each.value, each.change[~np.isnan(each.change)]
        queries = float(change.var(ddof=1)) / len(change) if len(change) > 1 else 0.0
        half, wide = Z * each.error, Z * math.sqrt(each.error**2 + queries)
        low, high = value - half, value + half
        made.append(Difference(value=value, low=low, high=high, population_low=value - wide, population_high=value + wide, p=p))
    return made


def _two_sided(value: float, error: float) -> float:
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return math.erfc(abs(value) / error / math.sqrt(2))


def holm(chances: Sequence[float]) -> list[float]:
    """Holm (1979): multiplied by the number of those not smaller, never falling."""
    corrected, most = [0.0] * len(chances), 0.0
    for place, number in enumerate(sorted(range(len(chances)), key=lambda n: chances[n])):
        most = max(most, min(1.0, chances[number] * (len(chances) - place)))
        corrected[number] = most
    return corrected
