"""Tables for a dashboard: all checkpoints, the queries that changed most, how far the sample can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_validate.values import Report

CHECKPOINTS = ("step", "checkpoint", "version", "digest", "status", "error", "encoded", "total_s", "attempts", "at")
FIDELITY = ("step", "checkpoint", "metric", "checkpoints", "kendall_tau", "rmse", "bias", "regret")
QUERIES = ("query_id", "metric", "change", "value", "best", "step", "best_step")
MAX_ROWS = 1000  # of the newest checkpoints
MAX_CHANGES = 50  # queries that lost most, and as many that gained most
Cell = str | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Named columns and their rows."""

    columns: tuple[str, ...]
    rows: list[list[Cell]]


def checkpoints_table(history: Sequence[Report]) -> Table:
    """A row per Report in the order of the training."""
    metrics = sorted({name for report in history for name in report.metrics})
    rows = []
    for report in history[-MAX_ROWS:]:
        checkpoint = report.checkpoint
        cells: list[Cell] = [checkpoint.step, checkpoint.name, checkpoint.version, checkpoint.digest, report.status]
        cells += [report.error, report.corpus.get("encoded"), report.seconds.get("total"), report.attempts, report.at]
        rows.append(cells + [_value(report, name) for name in metrics])
    return Table(columns=(*CHECKPOINTS, *metrics), rows=rows)


def fidelity_table(reports: Sequence[Report]) -> Table:
    """A row per Report that says how well sampled values stand in for full ones."""
    rows: list[list[Cell]] = []
    for report in reports[-MAX_ROWS:]:
        if (found := report.agreement) is not None:
            cells: list[Cell] = [report.checkpoint.step, report.checkpoint.name, found.metric, found.checkpoints]
            rows.append([*cells, found.kendall_tau, found.rmse, found.bias, found.regret])
    return Table(columns=FIDELITY, rows=rows)


def queries_table(history: Sequence[Report], metric: str, state_dir: Path) -> Table:
    """The queries that lost and gained most from the best other checkpoint to the newest one, largest losses first.

    Reads queries/<spec>/<digest>.parquet of both; no rows until both are there.
    """
    done = [report for report in history if metric in report.metrics]
    if len(done) < 2:
        return Table(columns=QUERIES, rows=[])
    newest = max(done, key=lambda report: report.checkpoint.step)
    others = [report for report in done if report is not newest]
    best = max(others, key=lambda report: report.metrics[metric].value)
    now, then = (_query_values(report, metric, state_dir) for report in (newest, best))
    changes = sorted((now[query] - then[query], query) for query in now.keys() & then.keys())
    changed = [part for part in changes if part[0] != 0]
    kept = changed if len(changed) <= 2 * MAX_CHANGES else changed[:MAX_CHANGES] + changed[-MAX_CHANGES:]
    steps = (newest.checkpoint.step, best.checkpoint.step)
    return Table(columns=QUERIES, rows=[[query, metric, change, now[query], then[query], *steps] for change, query in kept])


def _query_values(report: Report, metric: str, state_dir: Path) -> dict[str, float]:
    import pyarrow.parquet

    path = state_dir / "queries" / report.spec / f"{report.checkpoint.digest.replace(':', '-')}.parquet"
    if not path.is_file():
        return {}
    columns: dict[str, list[Any]] = pyarrow.parquet.read_table(path, columns=["query_id", "metric", "value"]).to_pydict()
    rows = zip(columns["query_id"], columns["metric"], columns["value"], strict=True)
    return {query: value for query, name, value in rows if name == metric and value is not None}


def _value(report: Report, name: str) -> float | None:
    estimate = report.metrics.get(name)
    return None if estimate is None else estimate.value
