"""How many documents that were not sampled rank above a threshold, learnt from all counts over the sample (README.md)."""

from collections.abc import Sequence

import numpy as np

from dr_validate.estimator.evidence import NUM_FOLDS, RankEvidence
from dr_validate.estimator.priors import PRIORS
from dr_validate.values import Float64, Int64

MOST_STEPS, CLOSE = 40, 1e-5
TINY = 1e-300  # so that nothing left out is a mean of 0, not 0 / 0


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
        flat = weight / (1 + expected / shape(mean)) / (1 + mean / (PRIORS.reach * cutoff))
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
    form = shape(mean)
    return (1 - inclusion) * (form + seen) / (form / mean + inclusion / NUM_FOLDS), form + seen


def added(mean: Float64, form: Float64) -> tuple[Float64, Float64]:
    """Mean and shape of the sum over strata, the first axis: the variances beyond Poisson's add up."""
    total = mean.sum(axis=0)
    return total, np.maximum(total**2 / np.maximum((mean**2 / form).sum(axis=0), TINY), TINY)


def shape(mean: Float64) -> Float64:
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
