"""How far off one strategy is at one budget, over all draws and checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.values import Float64
from scripts.research.study.draws import Corrected, pairs

EXACT = 1e-12  # an interval of no width holds the value but for rounding
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """`worst_bias`: of the single checkpoint with the largest, over the draws; differences are over all pairs, `tau` is the
    mean of Kendall's tau-b, `regret` what is lost by taking the checkpoint that looks best (the worst of them where several
    tie)."""

    bias: float
    worst_bias: float
    rmse: float
    difference_rmse: float
    tau: float
    regret: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Coverage is over draws and checkpoints (pairs), `worst` that of the single one with the lowest; NaN where nothing is to
    be counted. `decided`: share of pairs with p < 0.05 (Holm, over the earlier checkpoints); `wrong`: share of those whose
    sign is wrong. `uncorrected`: share of draws in which the sample allowed no correction."""

    coverage: float
    worst_checkpoint: float
    half_width: float
    difference_coverage: float
    worst_pair: float
    difference_half_width: float
    decided: float
    wrong: float
    outranking: float
    uncorrected: float


def levels(values: Float64, truth: Float64, differences: Float64 | None = None) -> Levels:
    """`values` (num_draws, num_checkpoints), `truth` (num_checkpoints,); `differences` (num_draws, num_pairs) where they are
    not those of the values."""
    later, earlier = pairs(len(truth))
    between, exact = values[:, later] - values[:, earlier], truth[later] - truth[earlier]
    errors = values - truth
    of_each = errors.mean(axis=0)
    best = values == values.max(axis=1, keepdims=True)
    found = np.where(best, truth, np.inf).min(axis=1)
    return Levels(
        bias=float(errors.mean()),
        worst_bias=float(of_each[np.argmax(np.abs(of_each))]),
        rmse=_root_mean_square(errors),
        difference_rmse=_root_mean_square((between if differences is None else differences) - exact),
        tau=_mean(_tau_b(between, exact)),
        regret=float((truth.max() - found).mean()),
    )


def intervals(draws: Sequence[Corrected], truth: Float64) -> Intervals:
    """Of one metric."""
    later, earlier = pairs(len(truth))
    exact = truth[later] - truth[earlier]
    low, high = np.stack([draw.low for draw in draws]), np.stack([draw.high for draw in draws])
    covered = (low <= truth + EXACT) & (truth <= high + EXACT)
    known = [draw for draw in draws if not np.isnan(draw.p).any()]  # those in which a correction was possible
    between, p = _stacked([draw.difference for draw in known]), _stacked([draw.p for draw in known])
    below, above = _stacked([draw.difference_low for draw in known]), _stacked([draw.difference_high for draw in known])
    held = ((below <= exact + EXACT) & (exact <= above + EXACT)).astype(np.float64) if known else between
    decided = p < SIGNIFICANT
    return Intervals(
        coverage=float(covered.mean()),
        worst_checkpoint=float(covered.mean(axis=0).min()),
        half_width=float((high - low).mean() / 2),
        difference_coverage=_mean(held),
        worst_pair=float(held.mean(axis=0).min()) if held.size else np.nan,
        difference_half_width=_mean((above - below) / 2),
        decided=_mean(decided),
        wrong=_mean((np.sign(between) != np.sign(exact))[decided]) if known else np.nan,
        outranking=float(np.mean([draw.outranking for draw in draws])),
        uncorrected=1 - len(known) / len(draws),
    )


def _tau_b(between: Float64, exact: Float64) -> Float64:
    """(num_draws,) from the differences of all pairs; NaN where one side is constant."""
    signs, right = np.sign(between), np.sign(exact)
    with np.errstate(invalid="ignore"):
        tau: Float64 = (signs @ right) / np.sqrt(np.count_nonzero(signs, axis=1) * np.count_nonzero(right))
    return tau


def _root_mean_square(errors: Float64) -> float:
    return float(np.sqrt((errors**2).mean())) if errors.size else float("nan")


def _mean(values: Float64 | np.typing.NDArray[np.bool_]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _stacked(rows: Sequence[Float64]) -> Float64:
    return np.stack(rows) if rows else np.empty((0, 0))
