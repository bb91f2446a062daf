"""What a metric would be on the whole corpus, how far off that may be, and which checkpoints can be told apart (README.md)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from dr_validate.estimator.evidence import NUM_FOLDS, RankEvidence
from dr_validate.estimator.priors import PRIORS
from dr_validate.metrics.gains import Gains, gains
from dr_validate.values import Z_95, Float64, Int64, Qrels

STEP = 0.2  # of an intercept, to see how the value answers to it
ROUNDING = 1e-12  # of variances that cancel
MOST_STEPS, CLOSE = 40, 1e-5
TINY = 1e-300  # so that nothing left out is a mean of 0, not 0 / 0


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
        """95%, for these queries. The uncorrected value is a certain upper bound."""
        return max(0.0, self.value - Z_95 * self.error), min(self.naive, self.value + Z_95 * self.error)

    @property
    def population_interval(self) -> tuple[float, float]:
        """95%, for the population that the queries come from; not bounded by the value on these."""
        half = Z_95 * math.sqrt(self.error**2 + _variance_over_queries(self.per_query))
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
    deviation of each error that all checkpoints of the sample share, and to what its own counts say; and its own error."""
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
        told = counts_against_model(evidence, table, answer, coefficients, stratum)
        common.append(np.array([(told - 1) * float(answer.sum()) / scored]))
    scattered = float(np.sqrt(np.nansum(table.per_query(sd) ** 2))) / scored
    own = float(np.hypot(PRIORS.scatter * scattered, PRIORS.own_model_error_sd * correction))
    return values, np.concatenate(common), own


def counts_against_model(evidence: RankEvidence, table: Gains, answer: Float64, coefficients: Float64, stratum: int) -> float:
    """By which factor one checkpoint's own counts in a stratum are above what the model expects of them: 1 where they are no
    further off than their own scatter, near 1 where they are few. Each row counts by what it loses to one more document above,
    from `answer` (num_rows,), what its worth answers to the logarithm of the mean."""
    mean = np.exp(np.clip(features(evidence, table.rows)[stratum] @ coefficients[stratum], -12, 9))  # (NUM_FOLDS, num_rows)
    expected = mean * evidence.inclusion[stratum] / NUM_FOLDS
    variance = expected * (1 + expected / spread(mean))
    weight = -answer / mean.mean(axis=0) * expected / variance
    model = float((weight * expected).sum())
    if model <= 0:
        return 1.0
    scatter = float((weight**2 * variance).sum())
    doubt = scatter / model / PRIORS.own_counts_sd**2
    off = float((weight * evidence.outranking[stratum][:, table.rows]).sum()) - model
    beyond = np.sqrt(max(off**2 - scatter, 0.0))
    return 1 + float(np.copysign(beyond, off)) / (doubt + model)


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
    found = []
    for other in others:
        value, variances = one.value - other.value, one.error**2 + other.error**2
        variance = variances - 2 * float(one.covariance[other.place])
        error = math.sqrt(variance) if variance > ROUNDING * variances else 0.0
        p = two_sided(value, error)
        half, wide = Z_95 * error, Z_95 * math.sqrt(error**2 + _variance_over_queries(one.per_query - other.per_query))
        ends = {"low": value - half, "high": value + half, "population_low": value - wide, "population_high": value + wide}
        found.append(Difference(value=value, p=p, **ends))
    return [replace(one, p=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def two_sided(value: float, error: float) -> float:
    """The chance of a value as far from 0, by its standard deviation; 0 or 1 where that is 0."""
    return math.erfc(abs(value) / error / math.sqrt(2)) if error else float(value == 0)


def holm(chances: Sequence[float]) -> list[float]:
    """p-values for as many comparisons (Holm, 1979): each times those not smaller, never falling."""
    found, least = list(chances), 0.0
    for place, number in enumerate(sorted(range(len(found)), key=lambda number: chances[number])):
        least = found[number] = max(least, min(1.0, chances[number] * (len(found) - place)))
    return found


def calibrate(history: Sequence[RankEvidence], cutoff: int, similarity: Float64) -> tuple[Float64, Float64]:
    """Coefficients (num_strata, 4) and their covariance (num_strata, 4, 4), from the thresholds within `cutoff` of the top.

    `similarity` (num_checkpoints, num_checkpoints): what many show alike counts little more than once, copies exactly once.
    """
    copies = (similarity == 1).sum(axis=1)
    distinct = 1 / copies / (similarity @ (1 / copies))
    num_strata, parts = len(history[0].inclusion), []
    for evidence, once in zip(history, distinct, strict=True):
        rows = np.flatnonzero(evidence.rank < cutoff)
        relevant = np.tile(evidence.gain[rows] > 0, NUM_FOLDS)
        share = PRIORS.weight_of_others * max(int(relevant.sum()), 1) / max(int((~relevant).sum()), 1)
        table = features(evidence, rows).reshape(num_strata, len(relevant), 4)
        counted = evidence.outranking[:, :, rows].reshape(num_strata, len(relevant))
        parts.append((table, counted, np.where(relevant, 1.0, min(1.0, share)) * once))
    stride = 1 + sum(len(weight) for _, _, weight in parts) // PRIORS.most_rows
    table, counted = (np.concatenate([part[n][:, ::stride] for part in parts], axis=1) for n in (0, 1))
    weight = np.concatenate([weight[::stride] for _, _, weight in parts]) * stride
    sampled = history[0].inclusion / NUM_FOLDS
    fits = [_fit(table[n], counted[n], weight, sampled[n], cutoff) for n in range(num_strata)]
    return np.array([fit[0] for fit in fits]).reshape(num_strata, 4), np.array([fit[1] for fit in fits])


def features(evidence: RankEvidence, rows: Int64) -> Float64:
    """(num_strata, NUM_FOLDS, num_rows, 4): 1, t, p and m of some rows."""
    rest_tail = evidence.rest_tail[:, :, rows].astype(np.float64)
    pool_tail = np.maximum(evidence.pool_tail[rows], PRIORS.least_pool_tail)
    first = evidence.rest_tail[:, :, evidence.rank < PRIORS.shallow]
    mean_tail = first.mean(axis=(1, 2), dtype=np.float64, keepdims=True) if first.size else 0.0
    return np.stack(np.broadcast_arrays(1.0, rest_tail, pool_tail, mean_tail), axis=-1)


def _fit(table: Float64, counted: Float64, weight: Float64, sampled: float, cutoff: int) -> tuple[Float64, Float64]:
    """Penalised quasi-likelihood by Newton steps: (coefficients, covariance). `sampled`: share of the stratum in a fold."""
    prior, penalty = np.array(PRIORS.mean), np.diag(np.power(PRIORS.sd, -2.0))
    found, curvature = prior, penalty
    for _ in range(MOST_STEPS):
        mean = np.exp(np.clip(table @ found, -12, 8))
        expected = mean * sampled
        # Where many are expected above, a metric is 0 whatever their number: what counts is learnt from the other rows.
        flat = weight / (1 + expected / spread(mean)) / (1 + mean / (PRIORS.reach * cutoff))
        curvature = (table * (flat * expected)[:, None]).T @ table + penalty
        step = np.linalg.solve(curvature, table.T @ (flat * (counted - expected)) - penalty @ (found - prior))
        found = found + np.clip(step, -0.7, 0.7)
        if np.abs(step).max() < CLOSE:
            break
    return found, np.linalg.inv(curvature)


def unsampled(evidence: RankEvidence, rows: Int64, coefficients: Float64) -> tuple[Float64, Float64]:
    """Mean and shape (NUM_FOLDS, num_rows) of the number of unsampled documents above, given the sampled ones of each fold."""
    predictor = np.einsum("sfri,si->sfr", features(evidence, rows), coefficients)
    inclusion, seen = evidence.inclusion[:, None, None], evidence.outranking[:, :, rows].astype(np.float64)
    return added(*unsampled_given(np.exp(np.clip(predictor, -12, 9)), inclusion, seen))


def unsampled_given(mean: Float64, inclusion: Float64 | float, seen: Float64) -> tuple[Float64, Float64]:
    """Mean and shape of the unsampled number above in a stratum, given `seen` of one fold; `mean` is of the whole stratum."""
    form = spread(mean)
    return (1 - inclusion) * (form + seen) / (form / mean + inclusion / NUM_FOLDS), form + seen


def added(mean: Float64, form: Float64) -> tuple[Float64, Float64]:
    """Mean and shape of the sum over strata, the first axis: the variances beyond Poisson's add up."""
    total = mean.sum(axis=0)
    return total, np.maximum(total**2 / np.maximum((mean**2 / form).sum(axis=0), TINY), TINY)


def spread(mean: Float64) -> Float64:
    """Of the negative binomial: how unevenly the documents above are spread over queries with the same prediction."""
    found: Float64 = np.exp(PRIORS.shape[0]) * np.maximum(mean, 1e-6) ** PRIORS.shape[1]
    return found


def negative_binomial(mean: Float64, form: Float64, number: int) -> Float64:
    """(num_rows, number) chances of 0, 1, ... by the recursion p(u + 1) = p(u) (form + u) / (u + 1) mean / (mean + form)."""
    share = mean / (mean + form)
    chances = np.empty((number, len(mean)))  # this way round for speed: each step runs over all rows
    chances[:1] = np.exp(form * np.log1p(-np.minimum(share, 1 - 1e-15)))
    for count in range(number - 1):
        np.multiply(chances[count], (form + count) * (share / (count + 1)), out=chances[count + 1])
    return chances.T


def moved(per_query: Float64, naive: Float64, mean: float, new_mean: float, naive_mean: float) -> Float64:
    """`per_query` with mean `new_mean` instead of `mean`; each stays between 0 and its uncorrected one. All (num_queries,)."""
    if new_mean >= naive_mean:
        return naive
    if new_mean > mean:
        lifted: Float64 = (per_query + (new_mean - mean) / (naive_mean - mean) * (naive - per_query)).clip(max=naive)
        return lifted
    return per_query * (new_mean / mean) if new_mean < mean else per_query
