"""What a tracker is told: of a Report one flat row of numbers under the public keys, and whether it is worth an alert; of a
spec tables of its checkpoints and of the queries that moved. The tables that compare samples with the full corpus:
`report/verdict.py`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from dr_validate.component import fingerprint
from dr_validate.ledger.per_query import paired_difference, read_query_values
from dr_validate.ledger.reports import EstimateDetails, best_of, lag_s, revised
from dr_validate.values import MAX_ROWS, Z_95, CellValue, Report, Table

log = logging.getLogger(__name__)
REPORT = "_report"  # names the Report that a row is of: what is there already is known by it
STEP = "train/global_step"
SAMPLED, BASELINE = "val", "full"
PREFIXES = (SAMPLED, BASELINE, "fidelity", "cost", "lag", "status")
HIGHER_IS_BETTER = (SAMPLED, BASELINE)
WHICH = ("step", "checkpoint", "version", "digest", "weights_sha256")
CHECKPOINTS = (*WHICH, "status", "error", "encoded", "total_s", "attempts", "at")
DETAILS = ("low", "high", "population_low", "population_high", "naive", "outranking")  # of each metric
QUERIES = ("query_id", "metric", "change", "value", "best", "step", "best_step")
MAX_CHANGES = 50  # queries that lost most, and as many that gained most


def row(report: Report, history: Sequence[Report], *, is_baseline: bool, whole: str = "") -> dict[str, float]:
    """Keys and numbers of one Report. `history` tells how far the training was when it came; a baseline of a sampled
    spec has its values under `full/` and its costs under `cost/full_`, so that no curve mixes the two. `whole`: of a suite,
    what the Reports of the mean have for a dataset; costs and ends of the others are told apart by theirs, as values are."""
    part = "" if whole in ("", report.dataset) else f"{report.dataset}/"
    prefix, cost = (BASELINE, f"cost/{part}full_") if is_baseline else (SAMPLED, f"cost/{part}")
    if report.status != "done":
        return {STEP: report.checkpoint.step, f"status/{part}{report.status}": 1}
    numbers: dict[str, float | None] = {STEP: report.checkpoint.step}
    for name, estimate in report.metrics.items():
        key = f"{prefix}/{report.dataset}/{name}"
        numbers[key] = estimate.value
        numbers |= {f"{key}/{end}": getattr(estimate, end) for end in ("low", "high", "naive")}
    if report.agreement is not None:
        parts = {name: value for name, value in asdict(report.agreement).items() if name != "metric"}
        numbers |= {f"fidelity/{report.dataset}/{name}": value for name, value in parts.items()}
    numbers |= {f"{cost}{name}_s": report.seconds.get(name) for name in ("encode", "total")}
    numbers[f"{cost}documents"] = report.corpus.get("encoded")
    numbers |= {f"{cost}{name}": number for name, number in _of_workers(report).items()}
    if not is_baseline and not part:
        # What was known when this Report came, not when it is delivered: a row is the same after an outage.
        before = (other.checkpoint.step for other in history if other.at < report.at)
        newest = max(before, default=report.checkpoint.step)
        numbers["lag/steps"] = max(newest, report.checkpoint.step) - report.checkpoint.step
        numbers["lag/seconds"] = lag_s(report)
    return {key: value for key, value in numbers.items() if value is not None}


def _of_workers(report: Report) -> dict[str, float]:
    """How many there were elsewhere, how often one was lost, and what they did in a second (`engine=ray`)."""
    workers = report.notes.get("workers") or ()
    speeds = [worker["slices"] / worker["busy_s"] for worker in workers if worker["busy_s"]]
    if not speeds:
        return {}
    lost = sum(worker["lost"] for worker in workers)
    numbers = {"workers": len(speeds), "workers_lost": lost, "slices_per_s": sum(speeds)}
    return {**numbers, "slowest_worker_slices_per_s": min(speeds)}


def report_id(report: Report) -> str:
    """The same for the same Report in every process, and another for every other one."""
    # Two names of the same weights are skipped in the same second: the name and the reason tell them apart.
    checkpoint = report.checkpoint
    parts = {"spec": report.spec, "digest": checkpoint.digest, "name": checkpoint.name, "step": checkpoint.step}
    return fingerprint({**parts, "status": report.status, "error": report.error, "at": report.at})


def allowed(config: Mapping[str, object], keys: Sequence[str]) -> dict[str, object]:
    """What may leave this machine of a configuration: the named keys, nothing else."""
    return {key: config[key] for key in keys if key in config}


def table_of_checkpoints(history: Sequence[Report]) -> Table:
    """A row per Report in the order of the training; of a suite with the name of the collection."""
    has_several = len({report.dataset for report in history}) > 1
    metrics = sorted({name for report in history for name in report.metrics})
    rows = []
    for report in history[-MAX_ROWS:]:
        checkpoint = report.checkpoint
        cells: list[CellValue] = [checkpoint.step, checkpoint.name, checkpoint.version, checkpoint.digest]
        cells += [checkpoint.weights_sha256 or None, report.status, report.error, report.corpus.get("encoded")]
        cells += [report.seconds.get("total"), report.attempts, report.at]
        cells += [report.dataset] if has_several else []
        values = [report.metrics[name].value if name in report.metrics else None for name in metrics]
        lag = lag_s(report) if report.status == "done" else None
        rows.append([*cells, *values, lag, *(cell for name in metrics for cell in _details(report, name))])
    details = [f"{name}/{detail}" for name in metrics for detail in DETAILS]
    dataset = ("dataset",) if has_several else ()
    return Table(columns=(*CHECKPOINTS, *dataset, *metrics, "lag/seconds", *details), rows=rows)


def table_of_queries(history: Sequence[Report], metric: str, state_dir: Path) -> Table:
    """The queries that lost and gained most from the best other checkpoint to the newest one, largest losses first.

    Reads queries/<spec>/<digest>.parquet of both; no rows until both are there.
    """
    done = [report for report in history if metric in report.metrics]
    newest = max(done, key=lambda report: report.checkpoint.step, default=None)
    best = best_of([report for report in done if report is not newest], metric)
    if newest is None or best is None:
        return Table(columns=QUERIES, rows=[])
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


def _details(report: Report, name: str) -> list[CellValue]:
    estimate = report.metrics.get(name)
    if estimate is None:
        return [None] * len(DETAILS)
    details = EstimateDetails.of(report)
    low, high = details.population.get(name, (None, None))
    return [estimate.low, estimate.high, low, high, estimate.naive, details.outranking.get(name)]


def is_best(report: Report, history: Sequence[Report]) -> bool:
    """Whether it has the highest first metric of all that are done, as the latest Report sees them; a tie is none."""
    known = {one.checkpoint.digest: one for one in revised(history) if one.status == "done"}
    mine = known.get(report.checkpoint.digest)
    if report.status != "done" or mine is None:
        return False
    metric = next(iter(mine.metrics))
    return all(one.metrics[metric].value < mine.metrics[metric].value for one in known.values() if one is not mine)


def alert_of(report: Report, history: Sequence[Report], state_dir: Path) -> tuple[str, str] | None:
    """Title and text where it is the best so far, or of a later step than the best and worse for other queries like these
    with 95% confidence, by queries in pairs; else None."""
    if report.status != "done":
        return None
    known = [one for one in revised(history) if one.status == "done"]
    mine = next(one for one in known if one.checkpoint.digest == report.checkpoint.digest)  # revised, as the others are
    metric, estimate = next(iter(mine.metrics.items()))
    which = f"{report.checkpoint.label} (step {report.checkpoint.step:,}): {report.dataset} {metric} {estimate.value:.4f}"
    if is_best(report, history):
        return f"New best {metric}", f"{which}, the best of {len(known)}"
    best = best_of(known, metric)
    if best is None or report.checkpoint.step <= best.checkpoint.step:
        return None  # it came before the best: that is no fall
    try:
        found = paired_difference(state_dir, mine, best, metric)
    except OSError as error:
        log.warning("tracker.alert: %s", error)
        return None
    if found is None or found[0] + Z_95 * found[1] >= 0:
        return None
    low, high = found[0] - Z_95 * found[1], found[0] + Z_95 * found[1]
    text = f"{which}; minus the best, step {best.checkpoint.step:,}: {found[0]:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"{metric} has fallen", text
