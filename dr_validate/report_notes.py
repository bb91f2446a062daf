"""What a Report says between the lines: the evidence of its estimates, and how long it was on its way."""

from datetime import datetime

from dr_validate.values import Report


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
