"""A Report as JSON: a line of reports.jsonl, a row of the ledger, the answer of the worker."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from dr_validate.values import Agreement, Checkpoint, Estimate, Report

# A number that JSON cannot say (NaN, infinity) is written as null. Where null stands for a number, this is what is read.
UNKNOWN = math.nan


def report_to_json(report: Report) -> dict[str, Any]:
    """JSON values only, in the form that CONTRACT.md gives; NaN and infinities become null."""
    for name, estimate in report.metrics.items():
        assert math.isfinite(estimate.value), f"{name} of {report.checkpoint.name} is {estimate.value}"
    checkpoint = asdict(report.checkpoint)
    written: dict[str, Any] = _plain(
        {
            "checkpoint": checkpoint,
            "dataset": report.dataset,
            "sampler": report.sampler,
            "spec": report.spec,
            "status": report.status,
            "error": report.error,
            "metrics": {name: asdict(estimate) for name, estimate in report.metrics.items()},
            "corpus": report.corpus,
            "agreement": None if report.agreement is None else asdict(report.agreement),
            "seconds": report.seconds,
            "attempts": report.attempts,
            "at": report.at,
            "notes": report.notes,
        }
    )
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
        corpus=_numbers(written.get("corpus")),
        agreement=_agreement(written.get("agreement")),
        seconds=_numbers(written.get("seconds")),
        notes=dict((written.get("notes") or {}).items()),
    )


def _checkpoint(written: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        name=written["name"],
        version=written["version"],
        digest=written["digest"],
        step=written["step"],
        step_from=written.get("step_from", ""),
        created_at=written["created_at"],
        uri=written.get("uri", ""),
        training_run=written.get("training_run", ""),
        group=written.get("group", ""),
        num_bytes=written.get("num_bytes", 0),
        weights_sha256=written.get("weights_sha256", ""),
    )


def _estimate(written: Mapping[str, Any]) -> Estimate:
    low, high = written.get("low"), written.get("high")
    return Estimate(
        value=written["value"],
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        naive=_number(written.get("naive")),
    )


def _agreement(written: Mapping[str, Any] | None) -> Agreement | None:
    if written is None:
        return None
    return Agreement(
        metric=written.get("metric", ""),
        checkpoints=written["checkpoints"],
        kendall_tau=written.get("kendall_tau"),
        rmse=_number(written.get("rmse")),
        bias=_number(written.get("bias")),
        regret=_number(written.get("regret")),
    )


def _numbers(written: Mapping[str, float | None] | None) -> dict[str, float]:
    return {name: _number(value) for name, value in (written or {}).items()}


def _number(value: float | None) -> float:
    return UNKNOWN if value is None else value


def _plain(value: Any) -> Any:
    """Mappings, sequences and numpy scalars as JSON's own; what JSON has no word for is a defect of the caller."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    assert value is None or isinstance(value, (str, int, float)), f"{value!r} cannot be written as JSON"
    return value
