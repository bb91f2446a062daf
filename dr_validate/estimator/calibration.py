"""How many documents that were not sampled rank above a threshold, learnt from the outranking counts of every checkpoint of the
same sample: log(mean) = b . [1, rest tail, pool tail, mean tail], negative binomial around it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.estimator.evidence import NUM_FOLDS, RankEvidence
from dr_validate.estimator.priors import PRIORS, Priors
from dr_validate.values import Float64, Int64

MOST_STEPS, CLOSE = 40, 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Coefficients of each stratum, and their covariance."""

    coefficients: Float64  # (num_strata, 4)
    covariance: Float64  # (num_strata, 4, 4)
    priors: Priors

    def unsampled(self, evidence: RankEvidence, rows: Int64, shift: Float64) -> tuple[Float64, Float64]:
        """Mean and shape (NUM_FOLDS, num_rows) of the number of unsampled documents above, given the sampled ones of each fold,
        with `shift` (num_strata,) added to the intercepts."""
        predictor = np.einsum("sfri,si->sfr", features(evidence, rows, self.priors), self.coefficients) + shift[:, None, None]
        seen = evidence.outranking[:, :, rows].astype(np.float64)
        inclusion = evidence.inclusion[:, None, None]
        return added(*unsampled_given(np.exp(np.clip(predictor, -12, 9)), inclusion, seen, self.priors))


def features(evidence: RankEvidence, rows: Int64, priors: Priors = PRIORS) -> Float64:
    """(num_strata, NUM_FOLDS, num_rows, 4) of the linear predictor."""
    rest_tail = evidence.rest_tail[:, :, rows].astype(np.float64)
    pool_tail = np.maximum(evidence.pool_tail[rows], priors.least_pool_tail)
    return np.stack(np.broadcast_arrays(1.0, rest_tail, pool_tail, evidence.mean_tail[:, None, None]), axis=-1)


def calibrate(history: Sequence[RankEvidence], cutoff: int, similarity: Float64, priors: Priors = PRIORS) -> Calibration:
    """Fit on all checkpoints together, at thresholds within `cutoff` of the top.

    `similarity` (num_checkpoints, num_checkpoints): what many show alike counts little more than once, copies exactly once.
    """
    copies = (similarity == 1).sum(axis=1)
    distinct = 1 / copies / (similarity @ (1 / copies))
    parts = [_rows(each, cutoff, weight, priors) for each, weight in zip(history, distinct, strict=True)]
    stride = 1 + sum(len(weight) for _, _, weight in parts) // priors.most_rows
    table, counted = (np.concatenate([part[n][:, ::stride] for part in parts], axis=1) for n in (0, 1))
    weight = np.concatenate([part[2][::stride] for part in parts]) * stride
    inclusion = history[0].inclusion
    fits = [_fit(table[n], counted[n], weight, inclusion[n] / NUM_FOLDS, cutoff, priors) for n in range(len(inclusion))]
    coefficients, covariance = (np.array(part) for part in zip(*fits, strict=True))
    return Calibration(coefficients=coefficients, covariance=covariance, priors=priors)


def _rows(evidence: RankEvidence, cutoff: int, distinct: float, priors: Priors) -> tuple[Float64, Float64, Float64]:
    """Features and counts of each stratum, and weights, of thresholds within the cutoff and all folds."""
    within = np.flatnonzero(evidence.rank < cutoff)
    num_strata = len(evidence.inclusion)
    table = features(evidence, within, priors).reshape(num_strata, -1, 4)
    counted = evidence.outranking[:, :, within].reshape(num_strata, -1).astype(np.float64)
    relevant = np.tile(evidence.gain[within] > 0, NUM_FOLDS)
    share = priors.weight_of_others * max(int(relevant.sum()), 1) / max(int((~relevant).sum()), 1)
    return table, counted, np.where(relevant, 1.0, min(1.0, share)) * distinct


def _fit(
    table: Float64, counted: Float64, weight: Float64, sampled: float, cutoff: int, priors: Priors
) -> tuple[Float64, Float64]:
    """Penalised quasi-likelihood by Newton steps: (coefficients, covariance)."""
    mean0, penalty = np.array(priors.mean), np.diag(np.power(priors.sd, -2.0))
    b, curvature = mean0.copy(), penalty
    for _ in range(MOST_STEPS):
        mean = np.exp(np.clip(table @ b, -12, 8))
        expected = mean * sampled
        # Where many are expected above, a metric is 0 whatever their number: what counts is learnt from the other rows.
        flat = weight / (1 + expected / shape(mean, priors)) / (1 + mean / (priors.reach * cutoff))
        curvature = (table * (flat * expected)[:, None]).T @ table + penalty
        step = np.linalg.solve(curvature, table.T @ (flat * (counted - expected)) - penalty @ (b - mean0))
        b = b + np.clip(step, -0.7, 0.7)
        if np.abs(step).max() < CLOSE:
            break
    return b, np.linalg.inv(curvature)


def shape(mean: Float64, priors: Priors = PRIORS) -> Float64:
    """Shape of the negative binomial: how unevenly the documents above are spread over queries with the same prediction."""
    constant, power = priors.shape
    found: Float64 = np.exp(constant) * np.maximum(mean, 1e-6) ** power
    return found


def unsampled_given(
    mean: Float64, inclusion: Float64 | float, seen: Float64, priors: Priors = PRIORS
) -> tuple[Float64, Float64]:
    """Mean and shape of the unsampled number above in a stratum, given `seen` of one fold; `mean` is of the whole stratum.

    Gamma and Poisson are conjugate: the fold showed inclusion / NUM_FOLDS of the stratum, 1 - inclusion is not sampled.
    """
    form = shape(mean, priors)
    return (1 - inclusion) * (form + seen) / (form / mean + inclusion / NUM_FOLDS), form + seen


def added(mean: Float64, form: Float64) -> tuple[Float64, Float64]:
    """Mean and shape of the sum over strata, the first axis: the variances beyond Poisson's add up."""
    total = mean.sum(axis=0)
    return total, total**2 / np.maximum((mean**2 / form).sum(axis=0), 1e-300)


def negative_binomial(mean: Float64, form: Float64, number: int) -> Float64:
    """(num_rows, number) chances of 0, 1, ... by the recursion p(u + 1) = p(u) (form + u) / (u + 1) mean / (mean + form)."""
    share = mean / (mean + form)
    chances = np.empty((number, len(mean)))  # this way round for speed: each step runs over all rows
    if number:
        chances[0] = np.exp(form * np.log1p(-np.minimum(share, 1 - 1e-15)))
    for count in range(number - 1):
        np.multiply(chances[count], (form + count) * (share / (count + 1)), out=chances[count + 1])
    return chances.T
