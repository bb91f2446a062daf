"""What a metric would be on the whole corpus, and how far off that may be, from a probability sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.estimator.calibration import Calibration, calibrate, features, negative_binomial
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
        half = Z * math.sqrt(self.error**2 + variance_over_queries(self.per_query))
        return max(0.0, self.value - half), min(1.0, self.value + half)


def variance_over_queries(values: Float64) -> float:
    """Of the mean of values (num_queries,), NaN for queries that do not count; 0 for one query, which shows no spread."""
    known = values[~np.isnan(values)]
    return float(known.var(ddof=1)) / len(known) if len(known) > 1 else 0.0


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
    corrected = [_corrected(table, fits.get(table.cutoff), priors) for table in tables]
    per_query, sampled, common, own = zip(*corrected, strict=True)
    value, naive = (np.array([float(np.nanmean(each)) for each in values]) for values in (per_query, sampled))
    covariance = np.stack(common) @ np.stack(common).T + near**priors.similarity_power * np.outer(own, own)
    learnt = value
    if known:
        errors, weights = np.zeros(len(value)), best_weights(covariance, near, sorted(known))
        for place, above in known.items():
            errors[place] = value[place] - float(np.nanmean(tables[place].per_query_below(above)))
        learnt, rest = np.clip(value - weights @ errors, 0, naive), np.eye(len(value)) - weights
        covariance = rest @ covariance @ rest.T
    return [
        Estimated(
            value=float(learnt[n]),
            naive=float(naive[n]),
            place=n,
            covariance=covariance[n],
            per_query=moved(per_query[n], sampled[n], float(value[n]), float(learnt[n]), float(naive[n])),
            outranking=table.outranking if fits else 0,
        )
        for n, table in enumerate(tables)
    ]


def similarity(history: Sequence[RankEvidence]) -> Float64:
    """(num_checkpoints, num_checkpoints) share of thresholds that two checkpoints rank alike (Jaccard); 1 for copies alone."""
    shown = [np.flatnonzero((each.rank < PRIORS.shallow) | (each.gain > 0)) for each in history]
    most = 1 + max(int(each.document.max(initial=0)) for each in history)
    keys = [each.query[rows] * most + each.document[rows] for each, rows in zip(history, shown, strict=True)]
    names, place = np.unique(np.concatenate(keys), return_inverse=True)
    held = np.zeros((len(history), len(names)), dtype=np.float64)
    held[np.repeat(np.arange(len(keys)), [len(each) for each in keys]), place] = 1
    both, size = held @ held.T, held.sum(axis=1)
    copies = [[one.shows_the_same_as(other) for other in history] for one in history]
    found: Float64 = np.where(copies, 1.0, np.minimum(both / np.maximum(size[:, None] + size - both, 1), 0.99))
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
class _Table:
    """The rows of one checkpoint that a metric looks at."""

    evidence: RankEvidence
    gains: Gains
    rows: Int64  # (num_rows,) of the evidence
    first: Int64  # (num_rows,) ranks, from 1 on, if nothing was left out above
    num_queries: int

    @classmethod
    def of(cls, evidence: RankEvidence, qrels: Qrels, name: str, depth: int) -> "_Table":
        relevant = np.flatnonzero(evidence.gain > 0)
        found = gains(name, evidence.query[relevant], evidence.gain[relevant], qrels, depth)
        rows = relevant[found.rows]
        first, num_queries = evidence.rank[rows] + 1, len(qrels.offsets) - 1
        return cls(evidence=evidence, gains=found, rows=rows, first=first, num_queries=num_queries)

    @property
    def cutoff(self) -> int:
        """The deepest."""
        return int(self.gains.cutoff.max(initial=1))

    @property
    def outranking(self) -> int:
        """Sampled documents above relevant ones within the cutoff."""
        return int(self.evidence.outranking[:, :, self.rows[self.first <= self.gains.cutoff]].sum())

    def per_query(self, values: Float64) -> Float64:
        """(num_queries,) sums; NaN where there is nothing relevant."""
        sums = np.full(self.num_queries, np.nan)
        counted = np.bincount(self.evidence.query[self.rows], values, self.num_queries)
        sums[self.gains.scored] = counted[self.gains.scored]
        return sums

    def per_query_below(self, above: Int64 | int) -> Float64:
        """(num_queries,) values with `above` (rows of the evidence,) more documents above each."""
        further = above if isinstance(above, int) else above[self.rows]
        return self.per_query(self.gains.worth(self.first + further))


def _corrected(table: _Table, calibration: Calibration | None, priors: Priors) -> tuple[Float64, Float64, Float64, float]:
    """Before anything is learnt from full-corpus rankings: values (num_queries,) and those of the sample as it is; what their
    mean answers to one standard deviation of each error that all checkpoints of the sample share, and that of its own."""
    naive, scored = table.per_query_below(0), max(1, len(table.gains.scored))
    if calibration is None:
        return naive, naive, np.zeros(1), 0.0
    num_strata = len(calibration.coefficients)
    mean, sd = _expect(table, calibration, np.zeros(num_strata))
    per_query = np.minimum(table.per_query(mean), naive)  # chances that sum to 1 do so but for rounding
    correction = float(np.nanmean(naive) - np.nanmean(per_query))
    seen = features(table.evidence, table.rows, priors).mean(axis=1)
    common = [np.array([priors.model_error_sd * correction])]
    for stratum, shift in enumerate(STEP * np.eye(num_strata)):
        answer = (_expect(table, calibration, shift)[0] - mean) / STEP
        common.append(np.linalg.cholesky(calibration.covariance[stratum]).T @ (seen[stratum].T @ answer) / scored)
    scattered = float(np.sqrt(np.nansum(table.per_query(sd) ** 2))) / scored
    own = float(np.hypot(priors.scatter * scattered, priors.own_model_error_sd * correction))
    return per_query, naive, np.concatenate(common), own


def _expect(table: _Table, calibration: Calibration, shift: Float64) -> tuple[Float64, Float64]:
    """(num_rows,) mean and standard deviation of what each row adds, over the documents left out above it; `shift` as in
    `Calibration.unsampled`."""
    mean, form = calibration.unsampled(table.evidence, table.rows, shift)
    if table.gains.is_flat:  # only the cutoff counts, however far down it is
        from scipy.special import betainc

        further = table.gains.cutoff - table.first
        within = betainc(form, np.maximum(further, 0) + 1.0, form / (form + mean)).mean(axis=0)
        chance = np.where(further >= 0, within, 0.0)
        return table.gains.weight * chance, table.gains.weight * np.sqrt(np.maximum(chance - chance**2, 0))
    first, second = np.zeros(len(table.rows)), np.zeros(len(table.rows))
    for part, worth in table.gains.worth_below(table.first):
        chances = sum(negative_binomial(mean[fold, part], form[fold, part], len(worth)).T for fold in range(NUM_FOLDS))
        first[part] = (chances * worth).sum(axis=0) / NUM_FOLDS
        second[part] = (chances * worth**2).sum(axis=0) / NUM_FOLDS
    return first, np.sqrt(np.maximum(second - first**2, 0))
