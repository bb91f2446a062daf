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

    def features(self, evidence: RankEvidence, stratum: int, fold: int, rows: Int64) -> Float64:
        """(num_rows, 4) of the linear predictor."""
        mean_tail = np.full(len(rows), evidence.mean_tail[stratum])
        pool_tail = np.maximum(evidence.pool_tail[rows], self.priors.least_pool_tail)
        return np.stack([np.ones(len(rows)), evidence.rest_tail[stratum, fold, rows], pool_tail, mean_tail], axis=1)

    def unsampled(self, evidence: RankEvidence, fold: int, rows: Int64, shift: Float64) -> tuple[Float64, Float64]:
        """Mean and shape (num_rows,) of the number of unsampled documents above, given the sampled ones of the fold, with
        `shift` (num_strata,) added to the intercepts."""
        parts = []
        for stratum, inclusion in enumerate(evidence.inclusion):
            predictor = self.features(evidence, stratum, fold, rows) @ self.coefficients[stratum] + shift[stratum]
            seen = evidence.outranking[stratum, fold, rows].astype(np.float64)
            parts.append(unsampled_given(np.exp(np.clip(predictor, -12, 9)), float(inclusion), seen, self.priors))
        return added(parts)


def calibrate(history: Sequence[RankEvidence], cutoff: int, similarity: Float64, priors: Priors = PRIORS) -> Calibration:
    """Fit on all checkpoints together, at thresholds within `cutoff` of the top.

    `similarity` (num_checkpoints, num_checkpoints): what many show alike counts little more than once, copies exactly once.
    """
    strata = range(len(history[0].inclusion))
    copies = (similarity == 1).sum(axis=1)
    distinct = 1 / copies / (similarity @ (1 / copies))
    empty = Calibration(
        coefficients=np.tile(priors.mean, (len(strata), 1)),
        covariance=np.tile(np.diag(np.square(priors.sd)), (len(strata), 1, 1)),
        priors=priors,
    )
    fits = [_fit(empty, history, stratum, cutoff, distinct) for stratum in strata]
    coefficients, covariance = (np.array(part) for part in zip(*fits, strict=True))
    return Calibration(coefficients=coefficients, covariance=covariance, priors=priors)


def _fit(
    empty: Calibration, history: Sequence[RankEvidence], stratum: int, cutoff: int, distinct: Float64
) -> tuple[Float64, Float64]:
    """Penalised quasi-likelihood by Newton steps: (coefficients, covariance)."""
    priors, sampled = empty.priors, float(history[0].inclusion[stratum]) / NUM_FOLDS
    parts = [_rows(empty, each, stratum, cutoff, weight) for each, weight in zip(history, distinct, strict=True)]
    stride = 1 + sum(len(counted) for _, counted, _ in parts) // priors.most_rows
    table, counted, weight = (np.concatenate([part[::stride] for part in column]) for column in zip(*parts, strict=True))
    mean0, penalty = np.array(priors.mean), np.diag(np.power(priors.sd, -2.0))
    b, curvature = mean0.copy(), penalty
    for _ in range(MOST_STEPS):
        mean = np.exp(np.clip(table @ b, -12, 8))
        expected = mean * sampled
        # Where many are expected above, a metric is 0 whatever their number: what counts is learnt from the other rows.
        flat = weight * stride / (1 + expected / shape(mean, priors)) / (1 + mean / (priors.reach * cutoff))
        curvature = (table * (flat * expected)[:, None]).T @ table + penalty
        step = np.linalg.solve(curvature, table.T @ (flat * (counted - expected)) - penalty @ (b - mean0))
        b = b + np.clip(step, -0.7, 0.7)
        if np.abs(step).max() < CLOSE:
            break
    return b, np.linalg.inv(curvature)


def _rows(
    empty: Calibration, evidence: RankEvidence, stratum: int, cutoff: int, distinct: float
) -> tuple[Float64, Float64, Float64]:
    """Features, counts and weights of thresholds within the cutoff."""
    within = np.flatnonzero(evidence.rank < cutoff)
    table = np.concatenate([empty.features(evidence, stratum, fold, within) for fold in range(NUM_FOLDS)])
    counted = evidence.outranking[stratum][:, within].ravel().astype(np.float64)
    relevant = np.tile(evidence.gain[within] > 0, NUM_FOLDS)
    share = empty.priors.weight_of_others * max(int(relevant.sum()), 1) / max(int((~relevant).sum()), 1)
    return table, counted, np.where(relevant, 1.0, min(1.0, share)) * distinct


def shape(mean: Float64, priors: Priors = PRIORS) -> Float64:
    """Shape of the negative binomial: how unevenly the documents above are spread over queries with the same prediction."""
    constant, power = priors.shape
    found: Float64 = np.exp(constant) * np.maximum(mean, 1e-6) ** power
    return found


def unsampled_given(mean: Float64, inclusion: float, seen: Float64, priors: Priors = PRIORS) -> tuple[Float64, Float64]:
    """Mean and shape of the unsampled number above in one stratum, given `seen` of one fold; `mean` is of the whole stratum.

    Gamma and Poisson are conjugate: the fold showed inclusion / NUM_FOLDS of the stratum, 1 - inclusion is not sampled.
    """
    form = shape(mean, priors)
    return (1 - inclusion) * (form + seen) / (form / mean + inclusion / NUM_FOLDS), form + seen


def added(parts: Sequence[tuple[Float64, Float64]]) -> tuple[Float64, Float64]:
    """Mean and shape of the sum over strata: the variances beyond Poisson's add up."""
    total = np.sum([mean for mean, _ in parts], axis=0)
    square = np.sum([mean**2 / form for mean, form in parts], axis=0)
    return total, total**2 / np.maximum(square, 1e-300)


def negative_binomial(mean: Float64, form: Float64, number: int) -> Float64:
    """(num_rows, number) chances of 0, 1, ... by the recursion p(u + 1) = p(u) (form + u) / (u + 1) mean / (mean + form)."""
    share = mean / (mean + form)
    chances = np.empty((number, len(mean)))  # this way round for speed: each step runs over all rows
    if number:
        chances[0] = np.exp(form * np.log1p(-np.minimum(share, 1 - 1e-15)))
    for count in range(number - 1):
        np.multiply(chances[count], (form + count) * (share / (count + 1)), out=chances[count + 1])
    return chances.T
