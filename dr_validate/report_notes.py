"""What a Report says between the lines: the evidence of its estimates, and how long it was on its way."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from dr_validate.values import Estimate, Report


def crossings_of(report: Report, metric: str) -> float | None:
    """How many sampled documents stood above a relevant one, which is what an estimator learns from; None without one."""
    estimate = report.notes.get("estimate")
    found = estimate.get("crossings") if isinstance(estimate, dict) else None
    found = found.get(metric) if isinstance(found, dict) else found
    return float(found) if isinstance(found, (int, float)) else None


def population_of(report: Report, metric: str) -> tuple[float, float] | None:
    """The interval for other queries like these, where the estimator gave one."""
    estimate = report.notes.get("estimate")
    ranges = estimate.get("population") if isinstance(estimate, dict) else None
    ends = ranges.get(metric) if isinstance(ranges, dict) else None
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or None in ends:
        return None
    return float(ends[0]), float(ends[1])


def lag_s(report: Report) -> float | None:
    """From the birth of the checkpoint to its Report."""
    try:
        born, told = datetime.fromisoformat(report.checkpoint.created_at), datetime.fromisoformat(report.at)
        return max(0.0, (told - born).total_seconds())
    except (ValueError, TypeError):  # a source without a usable time has no lag to show
        return None


def refined(reports: Sequence[Report]) -> list[Report]:
    """The same, with the values that the latest Report over the same sample gives to those before it: it has seen more
    checkpoints, and perhaps full-corpus baselines. Values that came apart by what was known then would not compare."""
    found = {_key(report): report for report in reports if report.metrics}
    for latest in sorted(reports, key=lambda report: report.at):
        estimate = latest.notes.get("estimate")
        earlier = estimate.get("earlier") if isinstance(estimate, dict) else None
        for digest, metrics in (earlier or {}).items():
            key = (*_sample(latest), digest)
            if (known := found.get(key)) and known.at <= latest.at:
                found[key] = replace(
                    known, metrics={name: _moved(old, metrics.get(name)) for name, old in known.metrics.items()}
                )
    return [found.get(_key(report), report) if report.metrics else report for report in reports]


def _sample(report: Report) -> tuple[str, str]:
    estimate = report.notes.get("estimate")
    return report.spec, str(estimate.get("sample", "")) if isinstance(estimate, dict) else ""


def _key(report: Report) -> tuple[str, str, str]:
    return (*_sample(report), report.checkpoint.digest)


def _moved(old: Estimate, new: Sequence[float] | None) -> Estimate:
    if new is None:
        return old
    value, low, high = new
    return Estimate(value=value, low=low, high=high, naive=old.naive)
