"""Whether two checkpoints can be told apart on the same sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dr_validate.estimator.estimate import Estimated, Z, variance_over_queries

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


def differences(one: Estimated, others: Sequence[Estimated]) -> list[Difference]:
    """`one` minus each of the others, all of one sample: what two errors share cancels, and copies differ by exactly 0."""
    errors = [_error(one, other) for other in others]
    chances = holm([_two_sided(one.value - other.value, error) for other, error in zip(others, errors, strict=True)])
    made = []
    for other, error, p in zip(others, errors, chances, strict=True):
        value, queries = one.value - other.value, variance_over_queries(one.per_query - other.per_query)
        half, wide = Z * error, Z * math.sqrt(error**2 + queries)
        low, high = value - half, value + half
        made.append(Difference(value=value, low=low, high=high, population_low=value - wide, population_high=value + wide, p=p))
    return made


def _error(one: Estimated, other: Estimated) -> float:
    """Standard deviation of the difference."""
    alone = one.error**2 + other.error**2
    variance = alone - 2 * float(one.covariance[other.place])
    return math.sqrt(variance) if variance > ROUNDING * alone else 0.0


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
