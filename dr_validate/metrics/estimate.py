"""What a metric would be on the whole corpus, and how far off that may be, from a sample with known odds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.metrics.calibration import Calibration, calibrate, features, own_intercept, shape
from dr_validate.metrics.crossings import NUM_FOLDS, Crossings
from dr_validate.metrics.gains import Gains, gains
from dr_validate.values import Float64, Int64, Qrels

Z = 1.96
MISFIT, OWN_MISFIT = 0.08, 0.05  # standard deviations of the correction's error, as shares of it: all alike, and one alone
TOGETHER = 0.5  # how much of two checkpoints' own errors is the same: they see the same documents
PULL = 0.15  # how much a correction may differ from the others before it is believed, as a share of their mean
BLOCK = 4_000_000  # numbers held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """One metric of one checkpoint. `shared` and `own` are standard deviations: of what all checkpoints of the sample have in
    common (the calibration), and of what is this one's alone."""

    value: float
    naive: float
    shared: float
    own: float
    per_query: Float64  # (num_queries,) corrected; NaN for a query without a relevant document
    crossed: int  # sampled documents above relevant ones: the evidence behind the correction

    @property
    def interval(self) -> tuple[float, float]:
        """95%, for these queries. The sampled value is a certain upper bound."""
        return self._around(self.shared**2 + self.own**2)

    @property
    def population_interval(self) -> tuple[float, float]:
        """95%, for the population that the queries come from; not bounded by the value on these."""
        known = self.per_query[~np.isnan(self.per_query)]
        variance = self.shared**2 + self.own**2 + (float(known.var(ddof=1)) / len(known) if len(known) > 1 else 0.0)
        half = Z * variance**0.5
        return max(0.0, self.value - half), min(1.0, self.value + half)

    def _around(self, variance: float) -> tuple[float, float]:
        half = Z * variance**0.5
        return max(0.0, self.value - half), min(self.naive, self.value + half)


def estimate(history: Sequence[Crossings], qrels: Qrels, name: str, depth: int) -> list[Estimated]:
    """One metric of every checkpoint in `history`, all over the same sample; `depth` is top_k.

    The more checkpoints, the better each is known: estimates of earlier ones change as later ones come.
    """
    tables = [_Table.of(each, qrels, name, depth) for each in history]
    fits: Mapping[int, Calibration] = {}
    if len(history[0].odds):
        fits = {cutoff: calibrate(history, cutoff) for cutoff in {table.cutoff for table in tables}}
    made = [_estimate(each, table, fits.get(table.cutoff)) for each, table in zip(history, tables, strict=True)]
    return _drawn_together(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The rows of one checkpoint that a metric looks at."""

    gains: Gains
    rows: Int64  # (num_rows,) of the crossings
    cutoff: int
    num_queries: int

    @classmethod
    def of(cls, crossings: Crossings, qrels: Qrels, name: str, depth: int) -> "_Table":
        relevant = np.flatnonzero(crossings.gain > 0)
        found = gains(name, crossings.query[relevant], crossings.gain[relevant], qrels, depth)
        cutoff = int(found.cutoff.max(initial=1))
        return cls(gains=found, rows=relevant[found.rows], cutoff=cutoff, num_queries=len(qrels.offsets) - 1)

    def per_query(self, values: Float64, query: Int64) -> Float64:
        """(num_queries,) sums; NaN where there is nothing relevant."""
        sums = np.full(self.num_queries, np.nan)
        sums[self.gains.scored] = np.bincount(query, values, self.num_queries)[self.gains.scored]
        return sums


def _estimate(crossings: Crossings, table: _Table, calibration: Calibration | None) -> Estimated:
    query = crossings.query[table.rows]
    first = crossings.rank[table.rows] + 1
    kept = first <= table.gains.cutoff
    naive = table.gains.weight * np.where(kept, table.gains.value(first.astype(np.float64)), 0)
    naive_mean = float(np.nanmean(table.per_query(naive, query)))
    above = int(crossings.crossed[:, :, table.rows[kept]].sum())
    if calibration is None:
        per_query = table.per_query(naive, query)
        return Estimated(value=naive_mean, naive=naive_mean, shared=0.0, own=0.0, per_query=per_query, crossed=0)
    strata = range(len(crossings.odds))
    owns = [own_intercept(crossings, stratum, calibration, table.cutoff) for stratum in strata]
    predictor = _Predictor(crossings, table, calibration, [own for own, _ in owns])
    mean, sd = predictor.expect(0.0)
    per_query = table.per_query(mean, query)
    value = float(np.nanmean(per_query))
    common, mine = predictor.spread(), float(np.mean([spread for _, spread in owns]))
    slope = 0.0
    if common > 0:  # how the value answers to the intercept
        lower, higher = (float(np.nanmean(table.per_query(predictor.expect(s)[0], query))) for s in (-0.3, 0.3))
        slope = (higher - lower) / 0.6
    scattered = table.per_query(sd, query)
    scatter = float(np.sqrt(np.nansum(scattered**2))) / max(1, len(table.gains.scored))
    corrected = naive_mean - value
    own = float(np.sqrt(scatter**2 + (slope * mine) ** 2 + (OWN_MISFIT * corrected) ** 2))
    shared = float(np.hypot(slope * common, MISFIT * corrected))
    return Estimated(value=value, naive=naive_mean, shared=shared, own=own, per_query=per_query, crossed=above)


class _Predictor:
    """Means of the rows' contributions when the documents left out are added as the calibration predicts them."""

    def __init__(self, crossings: Crossings, table: _Table, calibration: Calibration, own: Sequence[float]) -> None:
        self._crossings, self._table, self._calibration, self._own = crossings, table, calibration, own

    def spread(self) -> float:
        """Standard deviation of the common part of the linear predictor at a typical relevant document."""
        variances = []
        for stratum in range(len(self._crossings.odds)):
            typical = features(self._crossings, stratum, 0, self._table.rows).mean(axis=0) if len(self._table.rows) else None
            if typical is not None:
                variances.append(float(typical @ self._calibration.covariance[stratum] @ typical))
        return float(np.sqrt(np.mean(variances))) if variances else 0.0

    def expect(self, shift: float) -> tuple[Float64, Float64]:
        """(num_rows,) mean and standard deviation of each contribution, with the intercepts moved by `shift`."""
        first, second = np.zeros(len(self._table.rows)), np.zeros(len(self._table.rows))
        for fold in range(NUM_FOLDS):
            mean, form = self._unsampled(fold, shift)
            once, squared = self._moments(mean, form)
            first += once / NUM_FOLDS
            second += squared / NUM_FOLDS
        return first, np.sqrt(np.maximum(second - first**2, 0))

    def _unsampled(self, fold: int, shift: float) -> tuple[Float64, Float64]:
        """Mean and shape of the number of documents above that were not sampled, given those of the fold that were."""
        rows, total, square = self._table.rows, np.zeros(len(self._table.rows)), np.zeros(len(self._table.rows))
        for stratum, odds in enumerate(self._crossings.odds):
            predictor = features(self._crossings, stratum, fold, rows) @ self._calibration.coefficients[stratum]
            mean = np.exp(np.clip(predictor + self._own[stratum] + shift, -12, 9))
            form = shape(mean, float(odds))
            seen = self._crossings.crossed[stratum, fold, rows]
            # Gamma and Poisson are conjugate: the fold showed odds / NUM_FOLDS of the stratum, 1 - odds is not sampled.
            left = (1 - odds) * (form + seen) / (form / mean + odds / NUM_FOLDS)
            total += left
            square += left**2 / (form + seen)
        return total, total**2 / np.maximum(square, 1e-300)

    def _moments(self, mean: Float64, form: Float64) -> tuple[Float64, Float64]:
        """Mean of a contribution and of its square under a negative binomial number of further documents above."""
        gained, rank = self._table.gains, self._crossings.rank[self._table.rows] + 1
        first, second = np.zeros(len(rank)), np.zeros(len(rank))
        deepest = int(np.max(gained.cutoff - rank, initial=-1)) + 1
        size = max(1, BLOCK // max(1, deepest))
        for start in range(0, len(rank), size):
            part = slice(start, start + size)
            further = np.arange(deepest)
            chances = negative_binomial(mean[part], form[part], deepest)
            ranks = rank[part, None] + further
            value = np.where(ranks <= gained.cutoff[part, None], gained.value(ranks.astype(np.float64)), 0)
            first[part] = gained.weight[part] * (chances * value).sum(axis=1)
            second[part] = gained.weight[part] ** 2 * (chances * value**2).sum(axis=1)
        return first, second


def negative_binomial(mean: Float64, form: Float64, number: int) -> Float64:
    """(num_rows, number) chances of 0, 1, ... by the recursion p(u + 1) = p(u) (form + u) / (u + 1) mean / (mean + form)."""
    share = mean / (mean + form)
    steps = np.empty((len(mean), number))
    if number:
        steps[:, 0] = np.exp(form * np.log1p(-np.minimum(share, 1 - 1e-15)))
        further = np.arange(number - 1)
        steps[:, 1:] = (form[:, None] + further) / (further + 1) * share[:, None]
    return np.asarray(np.cumprod(steps, axis=1), dtype=np.float64)


def _drawn_together(made: Sequence[Estimated]) -> list[Estimated]:
    """Corrections that differ less between checkpoints than their own error are drawn towards their mean (James and Stein)."""
    corrections = np.array([each.naive - each.value for each in made])
    mean, naive = float(corrections.mean()), float(np.mean([each.naive for each in made]))
    if len(made) < 4 or mean <= 0 or naive <= 0:
        return list(made)
    noise = PULL * (1 - mean / naive) * mean
    kept = max(0.0, 1 - noise**2 / max(float(corrections.var(ddof=1)), 1e-300))
    return [
        _moved(each, each.naive - mean - kept * (correction - mean)) for each, correction in zip(made, corrections, strict=True)
    ]


def _moved(estimated: Estimated, value: float) -> Estimated:
    value = min(max(value, 0.0), estimated.naive)
    scale = value / estimated.value if estimated.value > 0 else 1.0
    return Estimated(
        value=value,
        naive=estimated.naive,
        shared=estimated.shared,
        own=estimated.own,
        per_query=estimated.per_query * scale,
        crossed=estimated.crossed,
    )
