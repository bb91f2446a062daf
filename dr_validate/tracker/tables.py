"""Tables of one spec for a dashboard: all checkpoints, and the queries that changed most."""

from collections.abc import Sequence
from pathlib import Path

from dr_validate.ledger.findings import MAX_ROWS, Cell, Table
from dr_validate.ledger.per_query import read_query_values
from dr_validate.ledger.revised import EstimateDetails, lag_s
from dr_validate.values import Report

WHICH = ("step", "checkpoint", "version", "digest", "weights_sha256")
CHECKPOINTS = (*WHICH, "status", "error", "encoded", "total_s", "attempts", "at")
DETAILS = ("low", "high", "population_low", "population_high", "naive", "outranking")  # of each metric
QUERIES = ("query_id", "metric", "change", "value", "best", "step", "best_step")
MAX_CHANGES = 50  # queries that lost most, and as many that gained most


def checkpoints_table(history: Sequence[Report]) -> Table:
    """A row per Report in the order of the training; of a suite with the name of the collection."""
    has_several = len({report.dataset for report in history}) > 1
    metrics = sorted({name for report in history for name in report.metrics})
    rows = []
    for report in history[-MAX_ROWS:]:
        checkpoint = report.checkpoint
        cells: list[Cell] = [checkpoint.step, checkpoint.name, checkpoint.version, checkpoint.digest]
        cells += [
            checkpoint.weights_sha256 or None,
            report.status,
            report.error,
            report.corpus.get("encoded"),
            report.seconds.get("total"),
            report.attempts,
            report.at,
        ]
        cells += [report.dataset] if has_several else []
        values: list[Cell] = [_value(report, name) for name in metrics]
        lag = lag_s(report) if report.status == "done" else None
        rows.append([*cells, *values, lag, *(cell for name in metrics for cell in _details(report, name))])
    details = [f"{name}/{detail}" for name in metrics for detail in DETAILS]
    dataset = ("dataset",) if has_several else ()
    return Table(columns=(*CHECKPOINTS, *dataset, *metrics, "lag/seconds", *details), rows=rows)


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
    now, then = (read_query_values(state_dir, report, metric) for report in (newest, best))
    changes = sorted((now[query] - then[query], query) for query in now.keys() & then.keys())
    changed = [part for part in changes if part[0] != 0]
    kept = changed if len(changed) <= 2 * MAX_CHANGES else changed[:MAX_CHANGES] + changed[-MAX_CHANGES:]
    steps = (newest.checkpoint.step, best.checkpoint.step)
    return Table(columns=QUERIES, rows=[[query, metric, change, now[query], then[query], *steps] for change, query in kept])


def revised_curves(sampled: Sequence[Report], baselines: Sequence[Report]) -> dict[str, dict[str, dict[int, float]]]:
    """What is now known of each metric over the training: `charts/<dataset>/<metric>` -> line -> step -> value.

    Lines: the corrected value, both ends of its interval, and the full-corpus values. Of two checkpoints of one step the later.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for reports, is_full in ((sampled, False), (baselines, True)):
        for report in reports[-MAX_ROWS:]:
            for name, estimate in report.metrics.items():
                lines = found.setdefault(f"charts/{report.dataset}/{name}", {})
                ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
                for line, value in ({"full corpus": estimate.value} if is_full else ends).items():
                    lines.setdefault(line, {})[report.checkpoint.step] = value
    return found


def _value(report: Report, name: str) -> float | None:
    estimate = report.metrics.get(name)
    return None if estimate is None else estimate.value


def _details(report: Report, name: str) -> list[Cell]:
    estimate = report.metrics.get(name)
    if estimate is None:
        return [None] * len(DETAILS)
    details = EstimateDetails.of(report)
    low, high = details.population.get(name, (None, None))
    return [estimate.low, estimate.high, low, high, estimate.naive, details.outranking.get(name)]
