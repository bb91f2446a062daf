"""What a Report says between the lines: the evidence of its estimates, and how long it was on its way."""

from collections.abc import Mapping, Sequence
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


def baselines_of(report: Report) -> int:
    """Full-corpus baselines of other checkpoints that its values were corrected with."""
    estimate = report.notes.get("estimate")
    found = estimate.get("baselines") if isinstance(estimate, dict) else None
    return found if isinstance(found, int) else 0


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
                found[key] = _with(known, metrics)
    return [found.get(_key(report), report) if report.metrics else report for report in reports]


def _sample(report: Report) -> tuple[str, str]:
    estimate = report.notes.get("estimate")
    return report.spec, str(estimate.get("sample", "")) if isinstance(estimate, dict) else ""


def _key(report: Report) -> tuple[str, str, str]:
    return (*_sample(report), report.checkpoint.digest)


def as_reported(report: Report, metric: str) -> float | None:
    """The value that a refined Report had at first; None for one that is as it was."""
    estimate = report.notes.get("estimate")
    found = estimate.get("as_reported") if isinstance(estimate, dict) else None
    return found.get(metric) if isinstance(found, dict) else None


def _with(known: Report, metrics: Mapping[str, Sequence[float]]) -> Report:
    notes = known.notes["estimate"]
    moved, ranges = dict(known.metrics), dict(notes.get("population") or {})
    at_first = dict(notes.get("as_reported") or {})
    for name, (value, low, high, *population) in metrics.items():
        if name in moved:
            at_first.setdefault(name, moved[name].value)
            moved[name] = Estimate(value=value, low=low, high=high, naive=moved[name].naive)
            ranges[name] = population
    estimate = {**notes, "population": ranges, "as_reported": at_first}
    return replace(known, metrics=moved, notes={**known.notes, "estimate": estimate})
