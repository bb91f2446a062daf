"""How many unsampled documents score above a threshold, learnt from the crossings of every checkpoint of the same sample.

log(mean) = b . [1, t, max(t - log 3, 0), p, min(p + 2, 0), relevant, relevant p, quality - 0.2, crowd], with t what the score
tail of the stratum expects, p what the tail of the pool expects and crowd the checkpoint's mean t less that of all; the count
is negative binomial around it. The slopes and the shape turned out alike on every collection looked at, so their priors are
tight; the intercept is learnt. See metrics/ESTIMATE.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.metrics.crossings import NUM_FOLDS, Crossings
from dr_validate.values import Float64, Int64

NEAR = 0.2  # odds from which a stratum is a ring around the pool: small, near, and hardly spread beyond Poisson
PRIOR_MEAN = np.array([0.7, 0.25, 0.16, 1.33, -0.77, 0.23, -0.20, 1.9, 1.35, -0.15])
PRIOR_SD = np.array([1.5, 0.03, 0.04, 0.10, 0.20, 0.06, 0.06, 1.0, 0.3, 0.1])
RING_MEAN = np.array([-0.9, 0.15, 0.05, 0.75, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0])
RING_SD = np.array([1.0, 0.08, 0.06, 0.15, 0.20, 0.05, 0.05, 2.5, 0.3, 0.1])
TAIL_COLUMN, RELEVANT_COLUMN = 1, 5
OWN_SD = 0.2  # of the intercept that a checkpoint has for itself
DISCOUNT, OWN_DISCOUNT = 0.3, 0.5  # the same document crosses for many queries and checkpoints
MOST_ROWS = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """`coefficients[s]` and their covariance for each stratum, and the crowd that a checkpoint's is measured against."""

    coefficients: Float64  # (num_strata, 9)
    covariance: Float64  # (num_strata, 9, 9)
    crowd: Float64  # (num_strata,) mean over the checkpoints
    spread: Float64  # (num_strata,) added to the logarithm of the shape
    baselines: int = 0  # checkpoints of which it is known what is above their thresholds


def calibrate(history: Sequence[Crossings], cutoff: int) -> Calibration:
    """Fit on all checkpoints together, at thresholds within `cutoff` of the top."""
    crowd = np.mean([each.crowd for each in history], axis=0)
    fits = []
    for stratum, odds in enumerate(history[0].odds):
        parts = [_Rows.of(each, stratum, cutoff, crowd) for each in history]
        fits.append(_fit(parts, float(odds)))
    coefficients, covariance = (np.array(part) for part in zip(*fits, strict=True))
    return Calibration(coefficients=coefficients, covariance=covariance, crowd=crowd, spread=np.zeros(len(crowd)))


def own_intercept(crossings: Crossings, stratum: int, calibration: Calibration, cutoff: int) -> tuple[float, float]:
    """What this checkpoint's own crossings add to the intercept, and its standard deviation."""
    rows, odds = _Rows.of(crossings, stratum, cutoff, calibration.crowd), float(crossings.odds[stratum])
    mean = np.exp(np.clip(rows.features @ calibration.coefficients[stratum], -12, 8))
    weight = rows.weight * OWN_DISCOUNT / (1 + mean / _reach(cutoff))
    own, curvature = 0.0, OWN_SD**-2
    for _ in range(25):
        expected = mean * (odds / NUM_FOLDS) * np.exp(own)
        flat = weight / (1 + expected / shape(mean, odds))
        curvature = float((flat * expected).sum()) + OWN_SD**-2
        step = float(np.clip((float((flat * (rows.crossed - expected)).sum()) - own / OWN_SD**2) / curvature, -0.5, 0.5))
        own += step
        if abs(step) < 1e-6:
            break
    return own, curvature**-0.5


def features(crossings: Crossings, stratum: int, fold: int, rows: Int64, crowd: float) -> Float64:
    """(num_rows, 9) of the linear predictor; `crowd` is this checkpoint's in the stratum, less that of all."""
    tail = crossings.expected[stratum, fold, rows].astype(np.float64)
    pool = crossings.pool_above[rows].astype(np.float64)
    relevant = (crossings.gain[rows] > 0).astype(np.float64)
    columns = [
        np.ones_like(tail),
        tail,
        np.maximum(tail - np.log(3.0), 0),
        pool,
        np.minimum(pool + 2, 0),
        relevant,
        relevant * pool,
        np.full_like(tail, crossings.quality - 0.2),
        np.full_like(tail, crowd),
        crowd * (pool - 1),
    ]
    return np.stack(columns, axis=1)


def shape(mean: Float64, odds: float) -> Float64:
    """Shape of the negative binomial: how unevenly the documents above are spread over queries with the same prediction."""
    spread: Float64 = 3 * mean**0.9
    if odds < NEAR:
        spread = np.exp(-0.21 + 0.49 * np.log(np.maximum(mean, 1e-6)) + 0.20 * np.log(odds))
    return np.clip(spread, 1e-3, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    features: Float64  # (num_rows, 9)
    crossed: Float64  # (num_rows,)
    weight: Float64  # (num_rows,) relevant documents count in full, all others together about twice as much
    reach: float

    @classmethod
    def of(cls, crossings: Crossings, stratum: int, cutoff: int, crowd: Float64) -> "_Rows":
        within = np.flatnonzero(crossings.rank < cutoff)
        mine = float(crossings.crowd[stratum] - crowd[stratum])
        tables = [features(crossings, stratum, fold, within, mine) for fold in range(NUM_FOLDS)]
        table = np.concatenate(tables)
        crossed = crossings.crossed[stratum][:, within].ravel().astype(np.float64)
        near = table[:, TAIL_COLUMN] < np.log(4.0 * cutoff)
        table, crossed = table[near], crossed[near]
        relevant = table[:, RELEVANT_COLUMN] > 0
        share = max(float(relevant.mean()) if len(relevant) else 1.0, 1e-3)
        weight = np.where(relevant, 1.0, min(1.0, 2 * share / (1 - share + 1e-9)))
        return cls(features=table, crossed=crossed, weight=weight, reach=_reach(cutoff))


def _reach(cutoff: int) -> float:
    # Where many documents are expected above, a metric is 0 whatever their number: what counts is learnt from the others.
    return 0.8 * cutoff


def _fit(parts: Sequence[_Rows], odds: float) -> tuple[Float64, Float64]:
    """Penalised quasi-likelihood by Newton steps: (coefficients, covariance)."""
    mean0, sd0 = (RING_MEAN, RING_SD) if odds >= NEAR else (PRIOR_MEAN, PRIOR_SD)
    stride = 1 + sum(len(part.crossed) for part in parts) // MOST_ROWS
    table = np.concatenate([part.features[::stride] for part in parts])
    crossed = np.concatenate([part.crossed[::stride] for part in parts])
    weight = np.concatenate([part.weight[::stride] for part in parts]) * DISCOUNT * stride
    reach, penalty = parts[0].reach, np.diag(sd0**-2.0)
    b: Float64 = mean0.copy()
    curvature = penalty
    for _ in range(40):
        mean = np.exp(np.clip(table @ b, -12, 8))
        expected = mean * (odds / NUM_FOLDS)
        flat = weight / (1 + expected / shape(mean, odds)) / (1 + mean / reach)
        curvature = (table * (flat * expected)[:, None]).T @ table + penalty
        step = np.clip(np.linalg.solve(curvature, table.T @ (flat * (crossed - expected)) - penalty @ (b - mean0)), -0.7, 0.7)
        b = b + step
        if np.abs(step).max() < 1e-5:
            break
    covariance = np.asarray(np.linalg.inv(curvature), dtype=np.float64)
    return b, covariance
