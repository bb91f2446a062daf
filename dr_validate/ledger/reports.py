"""A Report as JSON (a line of reports.jsonl, a row of the ledger, the answer of the worker), and what it says between the
lines: the evidence of its estimates, how long it was on its way, and values as later Reports see them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dr_validate.stages import Source
from dr_validate.values import Agreement, Checkpoint, Estimate, Report

# A number that JSON cannot say (NaN, infinity) is written as null. Where null stands for a number, this is what is read.
UNKNOWN = math.nan
# How the reason of a skip begins where nothing is lost by it.
SAME_WEIGHTS = "same weights as "  # validated under the other name
STALE = "stale: "  # what watch.skip=stale asks for
# Earlier checkpoints as they look now: by sample, digest and metric the value, its interval, and that for other queries.
Views: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


def report_to_json(report: Report) -> dict[str, Any]:
    """JSON values only, in the form of `values.Report`; NaN and infinities become null."""
    for name, estimate in report.metrics.items():
        assert math.isfinite(estimate.value), f"{name} of {report.checkpoint.name} is {estimate.value}"
    written: dict[str, Any] = _plain(report)
    return written


def report_from_json(written: Mapping[str, Any]) -> Report:
    """The Report that was written; fields that only a newer version knows are ignored, missing optional ones get defaults."""
    return Report(
        checkpoint=_checkpoint(written["checkpoint"]),
        dataset=written["dataset"],
        sampler=written["sampler"],
        spec=written["spec"],
        status=written["status"],
        at=written["at"],
        attempts=written.get("attempts", 1),
        error=written.get("error"),
        metrics={name: _estimate(estimate) for name, estimate in (written.get("metrics") or {}).items()},
        corpus=_known_numbers(written.get("corpus")),
        agreement=_agreement(written.get("agreement")),
        seconds=_known_numbers(written.get("seconds")),
        notes=dict((written.get("notes") or {}).items()),
    )


def _checkpoint(written: Mapping[str, Any]) -> Checkpoint:
    known = {each.name: written[each.name] for each in fields(Checkpoint) if each.name in written}
    return Checkpoint(**{"step_from": "", "uri": "", **known})


def _estimate(written: Mapping[str, Any]) -> Estimate:
    low, high = written.get("low"), written.get("high")
    return Estimate(
        value=written["value"],
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        naive=_known_number(written.get("naive")),
    )


def _agreement(written: Mapping[str, Any] | None) -> Agreement | None:
    if written is None:
        return None
    return Agreement(
        metric=written.get("metric", ""),
        checkpoints=written["checkpoints"],
        kendall_tau=written.get("kendall_tau"),
        rmse=_known_number(written.get("rmse")),
        bias=_known_number(written.get("bias")),
        regret=_known_number(written.get("regret")),
    )


def _known_numbers(written: Mapping[str, float | None] | None) -> dict[str, float]:
    return {name: _known_number(value) for name, value in (written or {}).items()}


def _known_number(value: float | None) -> float:
    return UNKNOWN if value is None else value


def _plain(value: Any) -> Any:
    """Dataclasses, mappings, sequences and numpy scalars as JSON's own; what JSON has no word for is a defect of the caller."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    assert value is None or isinstance(value, (str, int, float)), f"{value!r} cannot be written as JSON"
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateDetails:
    """What stands behind the corrected values of a Report, and what it says of earlier checkpoints: its `notes.estimate`."""

    sample: str = ""  # its fingerprint
    metric: str = ""  # the first one: what `differences` are of
    checkpoints: int = 0  # that evidence was read from, this one included
    baselines: int = 0  # full-corpus rankings of other checkpoints among them
    as_of: float = 0.0  # when the newest of these was written, seconds since 1970: who has a newer one knows more
    outranking: Mapping[str, float] = field(default_factory=dict)  # by metric: sampled documents above a relevant one
    population: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # by metric: for other queries like these
    earlier: Views = field(default_factory=dict)
    differences: Mapping[str, Any] = field(default_factory=dict)  # by digest of another checkpoint: JSON values
    as_reported: Mapping[str, float] = field(default_factory=dict)  # by metric, of a Report that was revised: its first value

    def to_json(self) -> dict[str, Any]:
        """As it stands in `notes.estimate`."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def of(cls, report: Report) -> "EstimateDetails":
        """Those of a Report; without what is missing there, or is of a form that this version does not know."""
        written = _mapping(report.notes.get("estimate"))
        population = {name: ends for name, ends in _mapping(written.get("population")).items() if _is_interval(ends)}
        numbers = {key: written[key] for key in ("checkpoints", "baselines") if isinstance(written.get(key), int)}
        return cls(
            sample=str(written.get("sample", "")),
            metric=str(written.get("metric", "")),
            outranking=_numbers(written.get("outranking")),
            population={name: (float(low), float(high)) for name, (low, high) in population.items()},
            earlier=_mapping(written.get("earlier")),
            differences=_mapping(written.get("differences")),
            as_of=_as_of(written),
            as_reported=_numbers(written.get("as_reported")),
            **numbers,
        )


def compared(report: Report, other: Report, metric: str) -> Mapping[str, Any] | None:
    """What the estimator says of the difference of the two (a `Difference`, either way round), by the later of them; None where
    it says nothing: of another metric than the first, without evidence, of different samples."""
    for one, another in sorted(((report, other), (other, report)), key=lambda pair: pair[0].at, reverse=True):
        details = EstimateDetails.of(one)
        found = details.differences.get(another.checkpoint.digest) if details.metric == metric else None
        if isinstance(found, Mapping) and {"low", "high", "population"} <= found.keys():
            return found
    return None


def is_expected(report: Report) -> bool:
    """Whether it was skipped for a reason that is nobody's concern; other skips leave a hole, failures are to be looked at."""
    return report.status == "skipped" and (report.error or "").startswith((SAME_WEIGHTS, STALE))


def of_training(report: Report, history: Sequence[Report], otherwise: str, folder: str = "") -> tuple[str, list[Report]]:
    """The training run of a Report, and what `history` has of the same one. Where its checkpoint names none it is `otherwise`;
    but it is called as its folder is where it lies outside `folder` (of a source that was given its name: `named_folder`)."""

    def training_of(one: Checkpoint) -> str:
        place = Path(one.uri)  # which may be a link, to another disk, and `folder` itself where that is a model
        is_elsewhere = folder and place.is_absolute() and Path(folder) not in (place.parent.resolve(), place.resolve())
        return one.training_run or (place.parent.name if is_elsewhere else otherwise)

    mine = training_of(report.checkpoint)
    return mine, [other for other in history if training_of(other.checkpoint) == mine]


def named_folder(source: Source) -> str:
    """Where the checkpoints of a folder are to which `source.name` gave a name; "" of other sources, whose checkpoints without
    a name may come from anywhere."""
    path = getattr(source, "path", None)
    return str(path.resolve()) if isinstance(path, Path) and getattr(source, "name", None) else ""


def best_of(reports: Iterable[Report], metric: str) -> Report | None:
    """The one with the highest value, the earliest of equals; None where none has the metric."""
    known = [report for report in reports if metric in report.metrics]
    return max(known, key=lambda report: (report.metrics[metric].value, -report.checkpoint.step), default=None)


def latest_of(reports: Iterable[Report]) -> list[Report]:
    """By ascending step. Of a checkpoint that was skipped first and validated later the later Report counts; checkpoints of one
    name in two places are two."""
    by_time = sorted(reports, key=lambda report: report.at)
    latest = {(one.training_run, one.label, one.uri): report for report in by_time if (one := report.checkpoint)}
    return sorted(latest.values(), key=lambda report: (report.checkpoint.step, report.checkpoint.label))


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


def revised(reports: Sequence[Report], baselines: Sequence[Report] = ()) -> list[Report]:
    """The same, with the values that the latest Report, or the latest full-corpus baseline, gives to those before it: it has
    seen more checkpoints, and perhaps more baselines. Values that came apart by what was known then would not compare."""
    known = {_key(report): report for report in reports if report.metrics}
    since = {key: (EstimateDetails.of(report).as_of, report.at) for key, report in known.items()}
    told: dict[tuple[str, str, str], dict[str, Sequence[float]]] = {key: {} for key in known}
    open_keys = set(known)  # of those that a Report still to be read may say something about
    # Of jobs side by side the one that ends last is not always the one that has seen the most.
    views = [view for report in reversed([*reports, *baselines]) for view in _told_by(report)]
    for latest, spec, samples in sorted(views, key=lambda view: view[0], reverse=True):
        open_keys = {key for key in open_keys if since[key] <= latest and not known[key].metrics.keys() <= told[key].keys()}
        if not open_keys:
            break
        for sample, checkpoints in samples.items():
            for digest, metrics in _mapping(checkpoints).items():
                if (key := (spec, sample, digest)) in open_keys:
                    told[key] = {**_mapping(metrics), **told[key]}
    return [_with(report, told[_key(report)]) if report.metrics and told[_key(report)] else report for report in reports]


def _told_by(report: Report) -> list[tuple[tuple[float, str], str, Views]]:
    """What a Report says of others: as of when, and by spec; a baseline speaks of the sampled values that it has changed."""
    of_samples = {spec: _mapping(found) for spec, found in _mapping(report.notes.get("sampled")).items()}
    told = {report.spec: _mapping(report.notes.get("estimate")), **of_samples}
    return [((_as_of(found), report.at), spec, _mapping(found.get("earlier"))) for spec, found in told.items()]


def _as_of(found: Mapping[str, Any]) -> float:
    return float(moment) if isinstance(moment := found.get("as_of"), (int, float)) else 0.0


def _key(report: Report) -> tuple[str, str, str]:
    return report.spec, EstimateDetails.of(report).sample, report.checkpoint.digest


def _mapping(found: object) -> Mapping[str, Any]:
    """What versions to come may write otherwise is nothing to this one."""
    return found if isinstance(found, dict) else {}


def _numbers(found: object) -> dict[str, float]:
    return {name: float(value) for name, value in _mapping(found).items() if isinstance(value, (int, float))}


def _is_interval(ends: object) -> bool:
    return isinstance(ends, (list, tuple)) and len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends)


def _with(known: Report, metrics: Mapping[str, Sequence[float]]) -> Report:
    details = EstimateDetails.of(known)
    moved, ranges, at_first = dict(known.metrics), dict(details.population), dict(details.as_reported)
    for name, (value, low, high, *population) in metrics.items():
        if name in moved:
            naive = moved[name].naive
            most = math.inf if "collections" in known.notes else naive  # the interval of a mean is for other queries, too
            at_first.setdefault(name, moved[name].value)
            moved[name] = Estimate(value=min(value, naive), low=min(low, naive), high=min(high, most), naive=naive)
            ranges.pop(name, None)
            if _is_interval(population):
                ranges[name] = (population[0], population[1])
    estimate = replace(details, population=ranges, as_reported=at_first).to_json()
    return replace(known, metrics=moved, notes={**known.notes, "estimate": estimate})
