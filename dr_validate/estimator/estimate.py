"""What a metric would be on the whole corpus, and how far off that may be, from a probability sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.estimator.calibration import Calibration, calibrate, negative_binomial
from dr_validate.estimator.evidence import NUM_FOLDS, RankEvidence
from dr_validate.estimator.priors import PRIORS, Priors
from dr_validate.metrics.gains import Gains, gains, moved
from dr_validate.values import Float64, Int64, Qrels

Z = 1.96
STEP = 0.2  # of an intercept, to see how the value answers to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """One metric of one checkpoint. `covariance` is that of its error with the errors of all checkpoints of the same sample, of
    which it is number `place`."""

    value: float
    naive: float
    place: int
    covariance: Float64  # (num_checkpoints,)
    per_query: Float64  # (num_queries,) corrected; NaN for a query without a relevant document
    outranking: int  # sampled documents above relevant ones: the evidence behind the correction

    @property
    def error(self) -> float:
        """Standard deviation, for these queries."""
        return math.sqrt(max(0.0, float(self.covariance[self.place])))

    @property
    def interval(self) -> tuple[float, float]:
        """95%, for these queries. The sampled value is a certain upper bound."""
        return max(0.0, self.value - Z * self.error), min(self.naive, self.value + Z * self.error)

    @property
    def population_interval(self) -> tuple[float, float]:
        """95%, for the population that the queries come from; not bounded by the value on these."""
        known = self.per_query[~np.isnan(self.per_query)]
        queries = float(known.var(ddof=1)) / len(known) if len(known) > 1 else 0.0
        half = Z * (self.error**2 + queries) ** 0.5
        return max(0.0, self.value - half), min(1.0, self.value + half)


def estimate(
    history: Sequence[RankEvidence],
    qrels: Qrels,
    name: str,
    depth: int,
    known: Mapping[int, Int64] | None = None,
    priors: Priors = PRIORS,
) -> list[Estimated]:
    """One metric of every checkpoint in `history`, all over the same sample; `depth` is top_k.

    The more checkpoints, the better each is known: estimates of earlier ones change as later ones come. `known`: for some of
    them, by their place in `history`, what `RankEvidence.unsampled_above` counts in their full-corpus ranking.
    """
    near = similarity(history)
    tables = [_Table.of(each, qrels, name, depth) for each in history]
    fits: dict[int, Calibration] = {}
    if len(history[0].inclusion):
        fits = {cutoff: calibrate(history, cutoff, near, priors) for cutoff in {table.cutoff for table in tables}}
    naive_of = [table.per_query(table.gains.worth(table.first)) for table in tables]
    made = [_corrected(t, n, fits.get(t.cutoff), priors) for t, n in zip(tables, naive_of, strict=True)]
    value, naive = np.array([each.value for each in made]), np.array([float(np.nanmean(each)) for each in naive_of])
    common, own = np.stack([each.common for each in made]), np.array([each.own for each in made])
    covariance = common @ common.T + near**priors.similarity_power * np.outer(own, own)
    if known:
        errors = np.zeros(len(made))
        for place, above in known.items():
            table = tables[place]
            errors[place] = value[place] - float(
                np.nanmean(table.per_query(table.gains.worth(table.first + above[table.rows])))
            )
        weights = best_weights(covariance, near, sorted(known))
        value = np.clip(value - weights @ errors, 0, naive)
        covariance = (np.eye(len(made)) - weights) @ covariance @ (np.eye(len(made)) - weights).T
    return [
        Estimated(
            value=float(value[place]),
            naive=float(naive[place]),
            place=place,
            covariance=covariance[place],
            per_query=moved(each.per_query, naive_of[place], each.value, float(value[place]), float(naive[place])),
            outranking=each.outranking,
        )
        for place, each in enumerate(made)
    ]


def similarity(history: Sequence[RankEvidence]) -> Float64:
    """(num_checkpoints, num_checkpoints) share of thresholds that two checkpoints rank alike (Jaccard); 1 for copies alone."""
    shown = [np.flatnonzero((each.rank < PRIORS.shallow) | (each.gain > 0)) for each in history]
    most = 1 + max(int(each.document.max(initial=0)) for each in history)
    keys = [each.query[rows] * most + each.document[rows] for each, rows in zip(history, shown, strict=True)]
    names, place = np.unique(np.concatenate(keys), return_inverse=True)
    held = np.zeros((len(history), len(names)), dtype=np.float32)
    held[np.repeat(np.arange(len(keys)), [len(each) for each in keys]), place] = 1
    both, size = held @ held.T, held.sum(axis=1)
    found: Float64 = np.minimum(both / np.maximum(size[:, None] + size - both, 1), 0.99).astype(np.float64)
    for one, mine in enumerate(history):
        for other in range(one, len(history)):
            if mine.shows_the_same_as(history[other]):
                found[one, other] = found[other, one] = 1.0
    return found


def best_weights(covariance: Float64, near: Float64, known: Sequence[int]) -> Float64:
    """(num_checkpoints, num_checkpoints) of the known errors of some, in the best linear prediction of the error of each.

    A full-corpus ranking says nothing of its own checkpoint, nor of a copy: that value stays what the sample says, so that
    comparing it with the full corpus tells how good samples are.
    """
    weights = np.zeros_like(covariance)
    for place in range(len(covariance)):
        others = [other for other in known if near[place, other] < 1]
        if others:
            among = covariance[np.ix_(others, others)]
            weights[place, others] = np.linalg.pinv(among, hermitian=True) @ covariance[others, place]
    return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class _Corrected:
    """Before anything is learnt from full-corpus rankings. `common`: what the value answers to one standard deviation of each
    error that all checkpoints of the sample share; `own`: standard deviation of the others."""

    value: float
    per_query: Float64
    common: Float64
    own: float
    outranking: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The rows of one checkpoint that a metric looks at."""

    evidence: RankEvidence
    gains: Gains
    rows: Int64  # (num_rows,) of the evidence
    cutoff: int
    num_queries: int

    @classmethod
    def of(cls, evidence: RankEvidence, qrels: Qrels, name: str, depth: int) -> "_Table":
        relevant = np.flatnonzero(evidence.gain > 0)
        found = gains(name, evidence.query[relevant], evidence.gain[relevant], qrels, depth)
        cutoff, num_queries = int(found.cutoff.max(initial=1)), len(qrels.offsets) - 1
        return cls(evidence=evidence, gains=found, rows=relevant[found.rows], cutoff=cutoff, num_queries=num_queries)

    @property
    def first(self) -> Int64:
        """(num_rows,) ranks, from 1 on, if nothing was left out above."""
        return self.evidence.rank[self.rows] + 1

    def per_query(self, values: Float64) -> Float64:
        """(num_queries,) sums; NaN where there is nothing relevant."""
        sums = np.full(self.num_queries, np.nan)
        counted = np.bincount(self.evidence.query[self.rows], values, self.num_queries)
        sums[self.gains.scored] = counted[self.gains.scored]
        return sums


def _corrected(table: _Table, naive: Float64, calibration: Calibration | None, priors: Priors) -> _Corrected:
    evidence, scored = table.evidence, max(1, len(table.gains.scored))
    above = int(evidence.outranking[:, :, table.rows[table.first <= table.gains.cutoff]].sum())
    if calibration is None:
        return _Corrected(value=float(np.nanmean(naive)), per_query=naive, common=np.zeros(1), own=0.0, outranking=0)
    strata = range(len(evidence.inclusion))
    mean, sd = _expect(table, calibration, np.zeros(len(strata)))
    per_query = np.minimum(table.per_query(mean), naive)  # chances that sum to 1 do so but for rounding
    value = float(np.nanmean(per_query))
    common = []
    for stratum in strata:
        answer = (_expect(table, calibration, STEP * (np.arange(len(strata)) == stratum))[0] - mean) / STEP
        features = np.mean([calibration.features(evidence, stratum, fold, table.rows) for fold in range(NUM_FOLDS)], axis=0)
        common.append(np.linalg.cholesky(calibration.covariance[stratum]).T @ (features.T @ answer) / scored)
    correction = float(np.nanmean(naive)) - value
    scattered = float(np.sqrt(np.nansum(table.per_query(sd) ** 2))) / scored
    own = float(np.hypot(priors.scatter * scattered, priors.own_model_error_sd * correction))
    common.append(np.array([priors.model_error_sd * correction]))
    return _Corrected(value=value, per_query=per_query, common=np.concatenate(common), own=own, outranking=above)


def _expect(table: _Table, calibration: Calibration, shift: Float64) -> tuple[Float64, Float64]:
    """(num_rows,) mean and standard deviation of what each row adds, over the documents left out above it; `shift` as in
    `Calibration.unsampled`."""
    unsampled = [calibration.unsampled(table.evidence, fold, table.rows, shift) for fold in range(NUM_FOLDS)]
    if table.gains.is_flat:  # only the cutoff counts, however far down it is
        from scipy.special import betainc

        further = table.gains.cutoff - table.first
        within = [betainc(form, np.maximum(further, 0) + 1.0, form / (form + mean)) for mean, form in unsampled]
        chance = np.where(further >= 0, np.mean(within, axis=0), 0.0)
        return table.gains.weight * chance, table.gains.weight * np.sqrt(np.maximum(chance - chance**2, 0))
    first, second = np.zeros(len(table.rows)), np.zeros(len(table.rows))
    for part, worth in table.gains.worth_below(table.first):
        chances = np.zeros_like(worth)
        for mean, form in unsampled:
            chances += negative_binomial(mean[part], form[part], len(worth)).T / NUM_FOLDS
        first[part] = np.einsum("ij,ij->j", chances, worth)
        second[part] = np.einsum("ij,ij,ij->j", chances, worth, worth)
    return first, np.sqrt(np.maximum(second - first**2, 0))
