"""What a metric would be on the whole corpus, and how far off that may be, from a sample with known odds."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dr_validate.metrics.calibration import Calibration, features, own_intercept
from dr_validate.metrics.crossings import NUM_FOLDS, Crossings
from dr_validate.metrics.from_baselines import taught
from dr_validate.metrics.gains import Gains, gains, moved
from dr_validate.metrics.unsampled import added, left_out, negative_binomial
from dr_validate.values import Float64, Int64, Qrels

Z = 1.96
# Standard deviations of what is wrong with the correction of all checkpoints alike, as shares of it: the first number stays
# however many queries there are, the second is over their root. The second pair: where a baseline has told better.
MISFIT, TOLD_MISFIT = (0.10, 0.8), (0.03, 0.3)
SCATTER = 1.1  # the spread of what is left out, over what the model says it is: it sees queries as independent
DEEP_MISFIT = 0.07  # of one checkpoint alone, for each power of ten of the cutoff beyond 10: of far down, little is known
FAR_MISFIT = 0.3  # likewise, by how far its crowd is from the others': the first checkpoints of a training are of another kind
OWN_SCATTER = 1.75  # checkpoints' own intercepts lie that much further apart than the prior by which their values are made
TOGETHER = 0.2  # how much of two checkpoints' own errors is the same: they see the same documents
PULL = 0.15  # how much a correction may differ from the others before it is believed, as a share of their mean
STEP = 0.2  # of the intercept, to see how the value answers to it
BLOCK = 2_000  # rows whose chances are held at once


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


def estimate(
    history: Sequence[Crossings], qrels: Qrels, name: str, depth: int, known: Mapping[int, Int64] | None = None
) -> list[Estimated]:
    """One metric of every checkpoint in `history`, all over the same sample; `depth` is top_k.

    The more checkpoints, the better each is known: estimates of earlier ones change as later ones come. `known`: for some of
    them, by their place in `history`, how many documents that were not sampled are above each threshold (num_rows,).
    """
    tables = [_Table.of(each, qrels, name, depth) for each in history]
    fits: Mapping[int, Sequence[Calibration]] = {}
    if len(history[0].odds):
        fits = {cutoff: taught(history, cutoff, known or {}) for cutoff in {table.cutoff for table in tables}}
    made = [
        _estimate(each, table, fits[table.cutoff][place] if fits else None)
        for place, (each, table) in enumerate(zip(history, tables, strict=True))
    ]
    return _drawn_together(made, [_naive(each, table) for each, table in zip(history, tables, strict=True)], known or {})


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


def _naive(crossings: Crossings, table: _Table) -> Float64:
    """(num_queries,) of the metric on the sample as if it were the corpus."""
    gained, first = table.gains, crossings.rank[table.rows] + 1
    contributions = gained.weight * np.where(first <= gained.cutoff, gained.value(first.astype(np.float64)), 0)
    return table.per_query(contributions, crossings.query[table.rows])


def _estimate(crossings: Crossings, table: _Table, calibration: Calibration | None) -> Estimated:
    query = crossings.query[table.rows]
    first = crossings.rank[table.rows] + 1
    kept = first <= table.gains.cutoff
    naive = _naive(crossings, table)
    naive_mean = float(np.nanmean(naive))
    above = int(crossings.crossed[:, :, table.rows[kept]].sum())
    if calibration is None:
        return Estimated(value=naive_mean, naive=naive_mean, shared=0.0, own=0.0, per_query=naive, crossed=0)
    strata = range(len(crossings.odds))
    owns = [own_intercept(crossings, stratum, calibration, table.cutoff) for stratum in strata]
    predictor = _Predictor(crossings, table, calibration, [own for own, _ in owns])
    mean, sd = predictor.expect(0.0)
    per_query = np.minimum(table.per_query(mean, query), naive)  # chances that sum to 1 do so but for rounding
    value = float(np.nanmean(per_query))
    common, mine = predictor.spread(), OWN_SCATTER * float(np.mean([spread for _, spread in owns]))
    slope = 0.0
    if common > 0:  # how the value answers to the intercept
        slope = (float(np.nanmean(table.per_query(predictor.expect(STEP)[0], query))) - value) / STEP
    scattered = table.per_query(sd, query)
    scatter = float(np.sqrt(np.nansum(scattered**2))) / max(1, len(table.gains.scored))
    corrected = naive_mean - value
    fixed, by_query = TOLD_MISFIT if calibration.baselines else MISFIT
    misfit = float(np.hypot(fixed, by_query / max(1, len(table.gains.scored)) ** 0.5))
    far = float(np.abs(crossings.crowd - calibration.crowd).max(initial=0.0))
    alone = float(np.hypot(DEEP_MISFIT * np.log10(max(table.cutoff, 10) / 10), FAR_MISFIT * far))
    own = float(np.sqrt((SCATTER * scatter) ** 2 + (slope * mine) ** 2 + (alone * corrected) ** 2))
    shared = float(np.hypot(slope * common, misfit * corrected))
    return Estimated(value=value, naive=naive_mean, shared=shared, own=own, per_query=per_query, crossed=above)


class _Predictor:
    """Means of the rows' contributions when the documents left out are added as the calibration predicts them."""

    def __init__(self, crossings: Crossings, table: _Table, calibration: Calibration, own: Sequence[float]) -> None:
        self._crossings, self._table, self._calibration, self._own = crossings, table, calibration, own
        self._crowd = crossings.crowd - calibration.crowd

    def spread(self) -> float:
        """Standard deviation of the common part of the linear predictor at a typical relevant document."""
        variances = []
        for stratum in range(len(self._crossings.odds)):
            typical = self._features(stratum, 0).mean(axis=0) if len(self._table.rows) else None
            if typical is not None:
                variances.append(float(typical @ self._calibration.covariance[stratum] @ typical))
        return float(np.sqrt(np.mean(variances))) if variances else 0.0

    def _features(self, stratum: int, fold: int) -> Float64:
        return features(self._crossings, stratum, fold, self._table.rows, float(self._crowd[stratum]))

    def expect(self, shift: float) -> tuple[Float64, Float64]:
        """(num_rows,) mean and standard deviation of each contribution, with the intercepts moved by `shift`."""
        unsampled = [self._unsampled(fold, shift) for fold in range(NUM_FOLDS)]
        if self._table.gains.is_flat:
            return self._within(unsampled)
        first, second = np.zeros(len(self._table.rows)), np.zeros(len(self._table.rows))
        for part, worth in self._worth():
            chances = np.zeros_like(worth)
            for mean, form in unsampled:
                chances += negative_binomial(mean[part], form[part], len(worth)).T / NUM_FOLDS
            first[part] = np.einsum("ij,ij->j", chances, worth)
            second[part] = np.einsum("ij,ij,ij->j", chances, worth, worth)
        return first, np.sqrt(np.maximum(second - first**2, 0))

    def _within(self, unsampled: Sequence[tuple[Float64, Float64]]) -> tuple[Float64, Float64]:
        """The same where only the cutoff counts, however far down it is: by the distribution function."""
        from scipy.special import betainc

        gained, further = self._table.gains, self._table.gains.cutoff - (self._crossings.rank[self._table.rows] + 1)
        chances = [betainc(form, np.maximum(further, 0) + 1.0, form / (form + mean)) for mean, form in unsampled]
        chance = np.where(further >= 0, np.mean(chances, axis=0), 0.0)
        return gained.weight * chance, gained.weight * np.sqrt(np.maximum(chance - chance**2, 0))

    def _unsampled(self, fold: int, shift: float) -> tuple[Float64, Float64]:
        """Mean and shape of the number of documents above that were not sampled, given those of the fold that were."""
        parts = []
        for stratum, odds in enumerate(self._crossings.odds):
            predictor = self._features(stratum, fold) @ self._calibration.coefficients[stratum] + self._own[stratum]
            mean = np.exp(np.clip(predictor + shift, -12, 9))
            seen = self._crossings.crossed[stratum, fold, self._table.rows].astype(np.float64)
            parts.append(left_out(mean, float(odds), seen, float(self._calibration.spread[stratum])))
        return added(parts)

    def _worth(self) -> Iterator[tuple[Int64, Float64]]:
        """Blocks of rows, each with (number, len(block)) of what a row adds when 0, 1, ... further documents are above it."""
        gained, rank = self._table.gains, self._crossings.rank[self._table.rows] + 1
        value = gained.value(np.arange(1, self._table.cutoff + 1, dtype=np.float64))
        further = gained.cutoff - rank  # (num_rows,) documents that may come above before it adds nothing
        order = np.argsort(further)  # like beside like, so that a block is only as wide as its rows need
        order = order[np.searchsorted(further[order], 0) :]
        for part in np.array_split(order, 1 + len(order) // BLOCK):
            count = np.arange(int(further[part].max(initial=-1)) + 1)[:, None]
            worth = value[np.minimum(rank[part] + count, len(value)) - 1]
            yield part, np.where(count <= further[part], gained.weight[part] * worth, 0)


def _drawn_together(made: Sequence[Estimated], naive_per_query: Sequence[Float64], known: Collection[int]) -> list[Estimated]:
    """Corrections that differ less between checkpoints than their own error are drawn towards their mean (James and Stein).

    Those in `known` are left alone, and out of the mean: the others have learnt from them what they are not to know.
    """
    free = [place for place in range(len(made)) if place not in known]
    naive_of_each = np.array([made[place].naive for place in free])
    corrections = naive_of_each - np.array([made[place].value for place in free])
    if len(free) < 4 or corrections.mean() <= 0 or naive_of_each.mean() <= 0:
        return list(made)
    mean, naive = float(corrections.mean()), float(naive_of_each.mean())
    noise = PULL * (1 - mean / naive) * mean
    kept = max(0.0, 1 - noise**2 / max(float(corrections.var(ddof=1)), 1e-300))
    values = dict(zip(free, (naive_of_each - mean - kept * (corrections - mean)).tolist(), strict=True))
    return [
        _moved(each, values.get(place, each.value), bound)
        for place, (each, bound) in enumerate(zip(made, naive_per_query, strict=True))
    ]


def _moved(estimated: Estimated, value: float, naive_per_query: Float64) -> Estimated:
    """The queries move with their mean."""
    value = min(max(value, 0.0), estimated.naive)
    per_query = moved(estimated.per_query, naive_per_query, estimated.value, value, estimated.naive)
    return replace(estimated, value=value, per_query=per_query)
