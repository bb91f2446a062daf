"""How well values on a sample stand in for those of the full corpus, over the checkpoints that have both: the one place where
bias, RMSE, Kendall's tau and regret are computed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.values import Z_95, Float64, Report

LEAST_FOR_INTERVAL = 5  # the variance below is not defined for four


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Over `checkpoints` that have both values of `metric`. bias is the mean of sampled minus full, rmse its root mean square.

    `regret`: what the full corpus loses by taking `chosen`, the best on the sample (the worst of several that tie), instead
    of `best`. `tau`: Kendall's tau-b, None where one side is constant, with a 95% interval from five checkpoints on.
    `covered`: in how many of `with_interval` checkpoints the full value lies in the interval. `digests`: which checkpoints.
    """

    metric: str
    checkpoints: int
    digests: frozenset[str]
    bias: float
    rmse: float
    regret: float
    chosen: Report
    best: Report
    tau: float | None = None
    tau_interval: tuple[float, float] | None = None
    covered: int = 0
    with_interval: int = 0


def compare(sampled: Sequence[Report], full: Sequence[Report], metric: str) -> Comparison | None:
    """None where no checkpoint has both values. Higher is better in every supported metric."""
    pairs = paired(sampled, full, metric)
    if not pairs:
        return None
    x = np.array([report.metrics[metric].value for report, _ in pairs])
    y = np.array([report.metrics[metric].value for _, report in pairs])
    chosen = min(np.flatnonzero(x == x.max()), key=lambda place: float(y[place]))
    tau = kendall_tau_b(x, y)
    held = [holds(report, metric, exact.metrics[metric].value) for report, exact in pairs]
    return Comparison(
        metric=metric,
        checkpoints=len(pairs),
        digests=frozenset(report.checkpoint.digest for report, _ in pairs),
        bias=float(np.mean(x - y)),
        rmse=float(np.sqrt(np.mean((x - y) ** 2))),
        regret=float(y.max() - y[chosen]),
        chosen=pairs[chosen][0],
        best=pairs[int(y.argmax())][0],
        tau=tau,
        tau_interval=None if tau is None else tau_interval(tau, len(pairs)),
        covered=held.count(True),
        with_interval=len(held) - held.count(None),
    )


def paired(sampled: Sequence[Report], full: Sequence[Report], metric: str) -> list[tuple[Report, Report]]:
    """The done Reports of the same weights, in the order of `sampled`; the last of each counts."""
    exact = {report.checkpoint.digest: report for report in full if metric in report.metrics}
    last = {report.checkpoint.digest: report for report in sampled if metric in report.metrics}
    return [(report, exact[digest]) for digest, report in last.items() if digest in exact]


def holds(report: Report, metric: str, value: float) -> bool | None:
    """Whether the interval of a sampled value holds that of the full corpus; None where there is no interval for these
    queries: the mean of a suite has one for others, which is wider."""
    if report.is_mean:
        return None
    estimate = report.metrics[metric]
    return estimate.low <= value <= estimate.high if estimate.has_interval else None


def kendall_tau_b(x: Float64, y: Float64) -> float | None:
    """Kendall's tau-b (1945), ties corrected on both sides; None where one side is constant.

    Counted over all pairs: checkpoints are few, and scipy takes longer to import than the page takes to write.
    """
    above = np.triu_indices(len(x), k=1)
    dx, dy = (np.sign(values[above[0]] - values[above[1]]) for values in (x, y))
    untied = float(np.sum(dx != 0)) * float(np.sum(dy != 0))
    return float(np.sum(dx * dy)) / math.sqrt(untied) if untied else None


def tau_interval(tau: float, checkpoints: int) -> tuple[float, float] | None:
    """An approximate 95% interval: Fisher's z with the variance 0.437 / (n - 4) of Fieller, Hartley and Pearson (1957).

    Each end is moved by one swapped pair first, because the plain formula (a bootstrap, too) calls a perfect order certain.
    In simulations with 5 to 100 checkpoints and a true tau of 0 to 0.99 it held the truth in 90% to 100% of the cases, where
    the plain one and the bootstrap fell below 30%. None below five checkpoints.
    """
    if checkpoints < LEAST_FOR_INTERVAL:
        return None
    swapped = 2 / (checkpoints * (checkpoints - 1) / 2)
    reach = Z_95 * math.sqrt(0.437 / (checkpoints - 4))

    def end(direction: int) -> float:
        moved = tau + direction * swapped
        return float(direction) if abs(moved) >= 1 else math.tanh(math.atanh(moved) + direction * reach)

    return end(-1), end(1)
