"""What a Report says between the lines: the evidence of its estimates, and how long it was on its way."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from dr_validate.values import Estimate, Report

# How the reason of a skip begins where nothing is lost by it.
SAME_WEIGHTS = "same weights as "  # validated under the other name
STALE = "stale: "  # what watch.skip=stale asks for


def crossings_of(report: Report, metric: str) -> float | None:
    """How many sampled documents stood above a relevant one, which is what an estimator learns from; None without one."""
    found = _estimate(report).get("crossings")
    found = found.get(metric) if isinstance(found, dict) else found
    return float(found) if isinstance(found, (int, float)) else None


def population_of(report: Report, metric: str) -> tuple[float, float] | None:
    """The interval for other queries like these, where the estimator gave one."""
    ends = _mapping(_estimate(report).get("population")).get(metric)
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or None in ends:
        return None
    return float(ends[0]), float(ends[1])


def baselines_of(report: Report) -> int:
    """Full-corpus baselines of other checkpoints that its values were corrected with."""
    found = _estimate(report).get("baselines")
    return found if isinstance(found, int) else 0


def is_expected(report: Report) -> bool:
    """Whether it was skipped for a reason that is nobody's concern; other skips leave a hole, failures are to be looked at."""
    return report.status == "skipped" and (report.error or "").startswith((SAME_WEIGHTS, STALE))


def warnings_of(report: Report) -> tuple[str, ...]:
    """Where what was stated of the encoder contradicts the checkpoint."""
    found = _mapping(report.notes.get("encoder")).get("warnings")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def lag_s(report: Report) -> float | None:
    """From the birth of the checkpoint to its Report."""
    try:
        born, told = datetime.fromisoformat(report.checkpoint.created_at), datetime.fromisoformat(report.at)
        return max(0.0, (told - born).total_seconds())
    except (ValueError, TypeError):  # a source without a usable time has no lag to show
        return None


def refined(reports: Sequence[Report], baselines: Sequence[Report] = ()) -> list[Report]:
    """The same, with the values that the latest Report, or the latest full-corpus baseline, gives to those before it: it has
    seen more checkpoints, and perhaps more baselines. Values that came apart by what was known then would not compare."""
    known = {_key(report): report for report in reports if report.metrics}
    told: dict[tuple[str, str, str], dict[str, Sequence[float]]] = {key: {} for key in known}
    open_keys = set(known)  # of those that a Report still to be read may say something about
    for latest in sorted(reversed([*reports, *baselines]), key=lambda report: report.at, reverse=True):
        open_keys = {
            key for key in open_keys if known[key].at <= latest.at and not known[key].metrics.keys() <= told[key].keys()
        }
        if not open_keys:
            break
        for spec, views in _views(latest):
            for sample, checkpoints in _mapping(views).items():
                for digest, metrics in _mapping(checkpoints).items():
                    if (key := (spec, sample, digest)) in open_keys:
                        told[key] = {**metrics, **told[key]}
    return [_with(report, told[_key(report)]) if report.metrics and told[_key(report)] else report for report in reports]


def _views(report: Report) -> list[tuple[str, object]]:
    """What a Report says of others: by spec, then sample, digest and metric."""
    of_samples = _mapping(report.notes.get("sampled"))
    return [(report.spec, _estimate(report).get("earlier")), (str(of_samples.get("spec", "")), of_samples.get("earlier"))]


def _key(report: Report) -> tuple[str, str, str]:
    return report.spec, str(_estimate(report).get("sample", "")), report.checkpoint.digest


def _estimate(report: Report) -> Mapping[str, Any]:
    return _mapping(report.notes.get("estimate"))


def _mapping(found: object) -> Mapping[str, Any]:
    """What versions to come may write otherwise is nothing to this one."""
    return found if isinstance(found, dict) else {}


def as_reported(report: Report, metric: str) -> float | None:
    """The value that a refined Report had at first; None for one that is as it was."""
    return _mapping(_estimate(report).get("as_reported")).get(metric)


def _with(known: Report, metrics: Mapping[str, Sequence[float]]) -> Report:
    notes = _estimate(known)
    moved, ranges = dict(known.metrics), dict(_mapping(notes.get("population")))
    at_first = dict(_mapping(notes.get("as_reported")))
    for name, (value, low, high, *population) in metrics.items():
        if name in moved:
            naive = moved[name].naive
            at_first.setdefault(name, moved[name].value)
            moved[name] = Estimate(value=min(value, naive), low=min(low, naive), high=min(high, naive), naive=naive)
            ranges[name] = population
    estimate = {**notes, "population": ranges, "as_reported": at_first}
    return replace(known, metrics=moved, notes={**known.notes, "estimate": estimate})
