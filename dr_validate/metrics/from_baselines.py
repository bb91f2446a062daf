"""Learning from checkpoints whose full-corpus ranking is known: what really was above their thresholds.

It tells what a sample cannot: how far the slopes that hold elsewhere hold here, and how unevenly the counts are spread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dr_validate.metrics.calibration import Calibration, calibrate, features, own_intercept
from dr_validate.metrics.crossings import NUM_FOLDS, Crossings
from dr_validate.metrics.unsampled import added, left_out
from dr_validate.values import Float64, Int64, Ranking

REST = 0  # the stratum with the lowest odds: nearly all that is left out
FREE = (0, 1, 3, 7, 8, 9)  # coefficients that are learnt again: intercept, both tails, and how checkpoints differ
FREE_SD = np.array([0.5, 0.1, 0.3, 1.5, 0.7, 0.25])  # of what is added to them
SPREAD_SD = 0.5
DISCOUNT = 0.5  # the same document is above for many queries
MOST_ROWS = 6_000  # of all checkpoints together
LEAST_QUALITY = 0.75  # a baseline teaches checkpoints whose mean reciprocal rank in the sample is at most its own over this
LEAST_WEIGHT = 10.0  # of a checkpoint: with fewer relevant documents within the cutoff it teaches nothing
EXACTLY = 4  # counts from here on are known by their power of two: what is far down has little to do with what is near
STEP = 1e-3
MOST_STEPS, CLOSE = 25, 1e-4
CELLS = 1 << 24


def left_out_above(crossings: Crossings, full: Ranking) -> Int64:
    """(num_rows,) how many documents that were not sampled are above each threshold, by the checkpoint's ranking of the whole
    corpus; where it does not reach down to the threshold, as many as it shows at least."""
    depth = full.documents.shape[1]
    place = np.full(len(crossings.query), depth, dtype=np.int64)
    for part in np.array_split(np.arange(len(place)), 1 + len(place) * depth // CELLS):
        found = full.documents[crossings.query[part]] == crossings.document[part, None]
        place[part] = np.where(found.any(axis=1), found.argmax(axis=1), depth)
    above: Int64 = np.maximum(place - crossings.rank, 0)
    return above


def taught(history: Sequence[Crossings], cutoff: int, known: Mapping[int, Int64]) -> list[Calibration]:
    """For each checkpoint. The full-corpus ranking of one says nothing of itself: its value stays what the sample says, so that
    comparing it with the full corpus tells how good samples are."""
    fit = calibrate(history, cutoff)
    if not known:
        return [fit] * len(history)
    counts = {}
    for place, above in known.items():
        mine = history[place]
        own = [own_intercept(mine, stratum, fit, cutoff)[0] for stratum in range(len(mine.odds))]
        counts[place] = Counts.of(mine, fit, own, above, cutoff, MOST_ROWS // len(known))
    of = [frozenset(b for b in known if b != place and _teaches(history[b], each)) for place, each in enumerate(history)]
    learnt = {teachers: learn(fit, [counts[place] for place in sorted(teachers)]) for teachers in set(of)}
    return [learnt[teachers] for teachers in of]


def _teaches(baseline: Crossings, other: Crossings) -> bool:
    # What is above the thresholds of a hardly trained checkpoint says too much of what is above those of a good one.
    return baseline.quality >= LEAST_QUALITY * other.quality


def learn(calibration: Calibration, parts: Sequence["Counts"]) -> Calibration:
    """The calibration moved to where it agrees best with what is known, as far as its priors let it."""
    parts = [part for part in parts if part.weight.sum() >= LEAST_WEIGHT]
    if not parts:
        return calibration
    precision = np.diag(np.append(FREE_SD, SPREAD_SD) ** -2.0)
    moved = np.zeros(len(precision))
    chance, gradient, curvature = _log_chance(parts, moved, precision)
    for _ in range(MOST_STEPS):
        step = np.clip(np.linalg.solve(curvature, gradient), -0.5, 0.5)
        while np.abs(step).max() > CLOSE:
            tried = _log_chance(parts, moved + step, precision)
            if tried[0] >= chance:
                break
            step = step / 2
        else:
            break
        moved = moved + step
        chance, gradient, curvature = tried
    coefficients, covariance, spread = calibration.coefficients.copy(), calibration.covariance.copy(), calibration.spread.copy()
    coefficients[REST, FREE] += moved[:-1]
    spread[REST] += moved[-1]
    information = np.sum([part.information(moved) for part in parts], axis=0)
    covariance[REST] = np.linalg.inv(np.linalg.inv(covariance[REST]) + information)
    return replace(calibration, coefficients=coefficients, covariance=covariance, spread=spread, baselines=len(parts))


def _log_chance(parts: Sequence["Counts"], moved: Float64, precision: Float64) -> tuple[float, Float64, Float64]:
    """Of all counts and the prior, with its gradient and curvature (that of Berndt, Hall, Hall and Hausman)."""
    value, gradient, curvature = -0.5 * float(moved @ precision @ moved), -precision @ moved, precision.copy()
    for part in parts:
        each, slope = part.log_chance(moved)
        value += float(part.weight @ each)
        gradient = gradient + slope.T @ part.weight
        curvature = curvature + (slope * part.weight[:, None]).T @ slope
    return value, gradient, curvature


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Thresholds of one checkpoint, and what is above them."""

    table: Float64  # (num_rows, num_coefficients) features of the rest
    base: Float64  # (num_rows,) linear predictor before anything is learnt
    odds: float
    seen: Float64  # (num_rows,)
    others: tuple[tuple[Float64, Float64], ...]  # means and shapes of the other strata
    least: Float64  # (num_rows,) the number above is from `least` to `most`, infinite for one past the cutoff
    most: Float64
    weight: Float64  # (num_rows,) of all certain documents together as much as of the relevant ones

    @classmethod
    def of(
        cls, crossings: Crossings, calibration: Calibration, own: Sequence[float], above: Int64, cutoff: int, num_rows: int
    ) -> "Counts":
        """`own`: the checkpoint's intercepts by stratum; `above` as `left_out_above` gives it; at most `num_rows` of them."""
        rows, weight = _chosen(crossings, cutoff, num_rows)
        fold = np.arange(len(rows)) % NUM_FOLDS
        crowd = crossings.crowd - calibration.crowd
        tables, bases, seen = [], [], []
        for stratum in range(len(crossings.odds)):
            by_fold = np.stack([features(crossings, stratum, each, rows, float(crowd[stratum])) for each in range(NUM_FOLDS)])
            tables.append(by_fold[fold, np.arange(len(rows))])
            bases.append(tables[-1] @ calibration.coefficients[stratum] + own[stratum])
            seen.append(crossings.crossed[stratum, fold, rows].astype(np.float64))
        odds = [float(each) for each in crossings.odds]
        others = [left_out(_mean(bases[s]), odds[s], seen[s], 0.0) for s in range(len(odds)) if s != REST]
        least, most = _bounds(above[rows], cutoff - crossings.rank[rows])
        return cls(
            table=tables[REST],
            base=bases[REST],
            odds=odds[REST],
            seen=seen[REST],
            others=tuple(others),
            least=least,
            most=most,
            weight=weight,
        )

    def log_chance(self, moved: Float64) -> tuple[Float64, Float64]:
        """(num_rows,) of each count, and (num_rows, len(moved)) its gradient."""
        predictor, spread = self._predictor(moved), float(moved[-1])
        here = self._each(predictor, spread)
        by_mean = (self._each(predictor + STEP, spread) - here) / STEP
        by_spread = (self._each(predictor, spread + STEP) - here) / STEP
        return here, np.column_stack([self.table[:, FREE] * by_mean[:, None], by_spread])

    def information(self, moved: Float64) -> Float64:
        """(num_coefficients, num_coefficients) about all coefficients."""
        mean, form = left_out(_mean(self._predictor(moved)), self.odds, self.seen, float(moved[-1]))
        each = self.weight * mean / (1 + mean / form)
        found: Float64 = (self.table * each[:, None]).T @ self.table
        return found

    def _predictor(self, moved: Float64) -> Float64:
        predictor: Float64 = self.base + self.table[:, FREE] @ moved[:-1]
        return predictor

    def _each(self, predictor: Float64, spread: float) -> Float64:
        from scipy.special import betainc

        mean, form = added([left_out(_mean(predictor), self.odds, self.seen, spread), *self.others])
        share, open_ended = form / (form + mean), np.isinf(self.most)
        upper = np.where(open_ended, 1.0, betainc(form, np.where(open_ended, 1.0, self.most + 1), share))
        lower = np.where(self.least > 0, betainc(form, np.maximum(self.least, 1.0), share), 0.0)
        chance: Float64 = np.log(np.maximum(upper - lower, 1e-12))
        return chance


def _mean(predictor: Float64) -> Float64:
    mean: Float64 = np.exp(np.clip(predictor, -12, 9))
    return mean


def _chosen(crossings: Crossings, cutoff: int, num_rows: int) -> tuple[Int64, Float64]:
    """Rows within the cutoff, and their weights."""
    within = np.flatnonzero(crossings.rank < cutoff)
    relevant = _evenly(within[crossings.gain[within] > 0], num_rows // 2)
    others = _evenly(within[crossings.gain[within] <= 0], num_rows // 2)
    weight = np.concatenate([np.ones(len(relevant)), np.full(len(others), len(relevant) / max(1, len(others)))])
    return np.concatenate([relevant, others]), DISCOUNT * weight


def _evenly(rows: Int64, most: int) -> Int64:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _bounds(above: Int64, limit: Int64) -> tuple[Float64, Float64]:
    """Of a count that is below `limit`; all from there on are alike, the metric being 0."""
    floor = 2.0 ** np.floor(np.log2(np.maximum(above, 1)))
    least, most = np.where(above < EXACTLY, above, floor), np.where(above < EXACTLY, above, 2 * floor - 1)
    past = above >= limit
    return np.where(past, limit, least).astype(np.float64), np.where(past, np.inf, np.minimum(most, limit - 1))
