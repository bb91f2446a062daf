"""What a metric would be on the whole corpus, how far off that may be, and which checkpoints can be told apart (README.md)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from dr_validate.estimator.calibration import calibrate, features, negative_binomial, unsampled
from dr_validate.estimator.evidence import NUM_FOLDS, RankEvidence
from dr_validate.estimator.priors import PRIORS
from dr_validate.metrics.gains import Gains, gains, moved
from dr_validate.values import Float64, Qrels

Z = 1.96
STEP = 0.2  # of an intercept, to see how the value answers to it
ROUNDING = 1e-12  # of variances that cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """One metric of one checkpoint, number `place` of its sample's; `covariance`: of its error with those of all of them."""

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
        half = Z * math.sqrt(self.error**2 + _variance_over_queries(self.per_query))
        return max(0.0, self.value - half), min(1.0, self.value + half)


def _variance_over_queries(values: Float64) -> float:
    """Of the mean of values (num_queries,), NaN for queries that do not count; 0 for one query, which shows no spread."""
    known = values[~np.isnan(values)]
    return float(known.var(ddof=1)) / len(known) if len(known) > 1 else 0.0


def estimate(
    history: Sequence[RankEvidence], qrels: Qrels, name: str, depth: int, known: Mapping[int, float] | None = None
) -> list[Estimated]:
    """One metric of every checkpoint in `history`, all over the same sample; `depth` is top_k.

    The more checkpoints, the better each is known: estimates of earlier ones change as later ones come. `known`: the value on
    the full corpus of some of them, by their place in `history`.
    """
    near, known = similarity(history), known or {}
    tables = [gains(name, each.query, each.rank, each.gain, qrels, depth) for each in history]
    fits = {cutoff: calibrate(history, cutoff, near) for cutoff in {table.deepest for table in tables}}
    sampled = [table.per_query(table.worth()) for table in tables]
    corrected = [
        _corrected(evidence, table, naive, *fits[table.deepest])
        for evidence, table, naive in zip(history, tables, sampled, strict=True)
    ]
    per_query, common, own = (list(part) for part in zip(*corrected, strict=True))
    value, naive = (np.array([np.nanmean(each) for each in values]) for values in (per_query, sampled))
    covariance = np.stack(common) @ np.stack(common).T + near**PRIORS.similarity_power * np.outer(own, own)

    errors, weights = np.zeros(len(value)), best_weights(covariance, near, sorted(known))
    for place, full in known.items():
        errors[place] = value[place] - full
    learnt, rest = np.clip(value - weights @ errors, 0, naive), np.eye(len(value)) - weights
    covariance = rest @ covariance @ rest.T
    return [
        Estimated(
            value=float(learnt[n]),
            naive=float(naive[n]),
            place=n,
            covariance=covariance[n],
            per_query=moved(per_query[n], sampled[n], float(value[n]), float(learnt[n]), float(naive[n])),
            outranking=int(history[n].outranking[:, :, table.rows[table.rank <= table.cutoff]].sum()),
        )
        for n, table in enumerate(tables)
    ]


def similarity(history: Sequence[RankEvidence]) -> Float64:
    """(num_checkpoints, num_checkpoints) share of thresholds that two checkpoints rank alike (Jaccard); 1 for copies alone."""
    shown = [np.flatnonzero((each.rank < PRIORS.shallow) | (each.gain > 0)) for each in history]
    most = 1 + max(int(each.document.max(initial=0)) for each in history)
    keys = [each.query[rows] * most + each.document[rows] for each, rows in zip(history, shown, strict=True)]
    names, place = np.unique(np.concatenate(keys), return_inverse=True)
    held = np.zeros((len(history), len(names)))
    held[np.repeat(np.arange(len(keys)), [len(each) for each in keys]), place] = 1
    both, size = held @ held.T, held.sum(axis=1)
    marks = [[hash(getattr(each, field.name).tobytes()) for field in fields(each)] for each in history]
    copies = [[one == other for other in marks] for one in marks]
    return np.where(copies, 1.0, np.minimum(both / np.maximum(size[:, None] + size - both, 1), 0.99))


def best_weights(covariance: Float64, near: Float64, known: Sequence[int]) -> Float64:
    """(num_checkpoints, num_checkpoints) of the known errors of some, in the best linear prediction of the error of each from
    all of them but its own and those of its copies."""
    weights = np.zeros_like(covariance)
    for place in range(len(covariance)):
        others = [other for other in known if near[place, other] < 1]
        among = covariance[np.ix_(others, others)]
        weights[place, others] = np.linalg.pinv(among, hermitian=True) @ covariance[others, place]
    return weights


def _corrected(
    evidence: RankEvidence, table: Gains, sampled: Float64, coefficients: Float64, covariance: Float64
) -> tuple[Float64, Float64, float]:
    """Before anything is learnt from full-corpus rankings: values (num_queries,); what their mean answers to one standard
    deviation of each error that all checkpoints of the sample share, and that of its own."""
    mean, sd = _expect(evidence, table, coefficients)
    values = np.minimum(table.per_query(mean), sampled)  # chances that sum to 1 do so but for rounding
    correction = float(np.nanmean(sampled) - np.nanmean(values))
    seen = features(evidence, table.rows).mean(axis=1)
    scored, common = max(1, len(table.scored)), [np.array([PRIORS.model_error_sd * correction])]
    for stratum in range(len(coefficients)):
        shifted = coefficients.copy()
        shifted[stratum, 0] += STEP
        answer = (_expect(evidence, table, shifted)[0] - mean) / STEP
        common.append(np.linalg.cholesky(covariance[stratum]).T @ (seen[stratum].T @ answer) / scored)
    scattered = float(np.sqrt(np.nansum(table.per_query(sd) ** 2))) / scored
    own = float(np.hypot(PRIORS.scatter * scattered, PRIORS.own_model_error_sd * correction))
    return values, np.concatenate(common), own


def _expect(evidence: RankEvidence, table: Gains, coefficients: Float64) -> tuple[Float64, Float64]:
    """(num_rows,) mean and standard deviation of what each row adds, over the documents left out above it."""
    mean, form = unsampled(evidence, table.rows, coefficients)
    if table.is_flat:  # only the cutoff counts, however far down it is
        from scipy.special import betainc

        within = betainc(form, np.maximum(table.cutoff - table.rank, 0) + 1.0, form / (form + mean)).mean(axis=0)
        chance = np.where(table.rank <= table.cutoff, within, 0.0)
        return table.weight * chance, table.weight * np.sqrt(np.maximum(chance - chance**2, 0))
    first, second = np.zeros(len(table.rows)), np.zeros(len(table.rows))
    for part, worth in table.worth_below():
        chances = sum(negative_binomial(mean[fold, part], form[fold, part], len(worth)).T for fold in range(NUM_FOLDS))
        first[part] = (chances * worth).sum(axis=0) / NUM_FOLDS
        second[part] = (chances * worth**2).sum(axis=0) / NUM_FOLDS
    return first, np.sqrt(np.maximum(second - first**2, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Corrected value of one checkpoint minus another's, with its 95% interval for these queries, and for the population of
    queries; `p` is two-sided and corrected (Holm, 1979) over all that were compared with the same checkpoint."""

    value: float
    low: float
    high: float
    population_low: float
    population_high: float
    p: float


def differences(one: Estimated, others: Sequence[Estimated]) -> list[Difference]:
    """`one` minus each of the others, all of one sample: what two errors share cancels, and copies differ by exactly 0."""
    found, least = list[Difference](), 0.0
    for other in others:
        value, variances = one.value - other.value, one.error**2 + other.error**2
        variance = variances - 2 * float(one.covariance[other.place])
        error = math.sqrt(variance) if variance > ROUNDING * variances else 0.0
        p = math.erfc(abs(value) / error / math.sqrt(2)) if error else float(value == 0)
        half, wide = Z * error, Z * math.sqrt(error**2 + _variance_over_queries(one.per_query - other.per_query))
        ends = {"low": value - half, "high": value + half, "population_low": value - wide, "population_high": value + wide}
        found.append(Difference(value=value, p=p, **ends))
    for place, number in enumerate(sorted(range(len(found)), key=lambda number: found[number].p)):
        least = max(least, min(1.0, found[number].p * (len(found) - place)))  # times those not smaller, never falling
        found[number] = replace(found[number], p=least)
    return found
