"""What W&B is told about a Report: one flat row of numbers under the public keys, and the table of all checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from dr_validate.values import Report

STEP = "train/global_step"
PREFIXES = ("val", "full", "fidelity", "cost", "lag", "status")
HIGHER_IS_BETTER = ("val", "full")
COLUMNS = ("step", "checkpoint", "version", "digest", "status", "error", "encoded", "total_s", "attempts", "at")
Cell = str | float | None


def row(report: Report, history: Sequence[Report], *, is_baseline: bool) -> dict[str, float]:
    """Keys and numbers of one Report. `history` tells how far the training was when it came; a baseline of a sampled
    spec has its values under `full/` and its costs under `cost/full_`, so that no curve mixes the two."""
    prefix, cost = ("full", "cost/full_") if is_baseline else ("val", "cost/")
    numbers: dict[str, float | None] = {STEP: report.checkpoint.step}
    if report.status != "done":
        return {STEP: report.checkpoint.step, f"status/{report.status}": 1}
    for name, estimate in report.metrics.items():
        key = f"{prefix}/{report.dataset}/{name}"
        numbers |= {
            key: estimate.value,
            f"{key}/low": estimate.low,
            f"{key}/high": estimate.high,
            f"{key}/naive": estimate.naive,
        }
    if report.agreement is not None:
        parts = {name: value for name, value in asdict(report.agreement).items() if name != "metric"}
        numbers |= {f"fidelity/{report.dataset}/{name}": value for name, value in parts.items()}
    numbers |= {f"{cost}{name}_s": report.seconds.get(name) for name in ("encode", "total")}
    numbers[f"{cost}documents"] = report.corpus.get("encoded")
    if not is_baseline:
        newest = max((other.checkpoint.step for other in history), default=report.checkpoint.step)
        numbers["lag/steps"] = max(newest, report.checkpoint.step) - report.checkpoint.step
        numbers["lag/seconds"] = _seconds(report.checkpoint.created_at, report.at)
    return {key: value for key, value in numbers.items() if value is not None}


def table(history: Sequence[Report]) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows, a row per Report in the order of the training."""
    metrics = sorted({name for report in history for name in report.metrics})
    rows = []
    for report in history:
        checkpoint = report.checkpoint
        cells: list[Cell] = [checkpoint.step, checkpoint.name, checkpoint.version, checkpoint.digest, report.status]
        cells += [report.error, report.corpus.get("encoded"), report.seconds.get("total"), report.attempts, report.at]
        rows.append(cells + [_value(report, name) for name in metrics])
    return [*COLUMNS, *metrics], rows


def allowed(config: Mapping[str, object], keys: Sequence[str]) -> dict[str, object]:
    """What may leave this machine of a configuration: the named keys, nothing else."""
    return {key: config[key] for key in keys if key in config}


def _value(report: Report, name: str) -> float | None:
    estimate = report.metrics.get(name)
    return None if estimate is None else estimate.value


def _seconds(start: str, end: str) -> float | None:
    try:
        return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
    except (ValueError, TypeError):  # a source without a usable time has no lag to show
        return None
