"""What is kept of each query beside the ledger: values of a metric (moved with their mean), first documents, text."""

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.estimator.estimate import moved
from dr_validate.files import name_of_digest
from dr_validate.ledger.reports import EstimateDetails
from dr_validate.values import Z_95, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """A document that was found for a query; `gain` is what it was judged, None where it was not."""

    document: str
    gain: int | None


def read_query_values(state_dir: Path, report: Report, metric: str) -> dict[str, float]:
    """What `results.write_query_values` wrote for a Report, moved with the value of a Report that is `revised`.

    Empty where there is none. Raises OSError for a file that cannot be read.
    """
    was = EstimateDetails.of(report).as_reported.get(metric)
    columns = ["query_id", "value"] if was is None else ["query_id", "value", "naive"]
    table = _read(state_dir / "queries" / _place(report), columns, ("metric", "==", metric))
    if table is None:
        return {}
    ids = table.column("query_id").to_pylist()
    value = table.column("value").to_numpy().astype(np.float64)
    if was is not None:
        naive, estimate = table.column("naive").to_numpy().astype(np.float64), report.metrics[metric]
        value = moved(value, naive, was, estimate.value, estimate.naive)
    return {query: each for query, each in zip(ids, value.tolist(), strict=True) if each == each}


def paired_change(state_dir: Path, report: Report, other: Report, metric: str) -> tuple[float, float, int] | None:
    """The mean change of a query from `other` to `report`, its standard error, and the number of queries; of two means of a
    suite within each collection, which counts the same. None where one has fewer than two queries. Raises as
    `read_query_values`."""
    specs = list(dict(report.notes.get("collections") or {}).values())
    pairs = [[replace(one, spec=spec, notes={}) for one in (report, other)] for spec in specs] or [[report, other]]
    means, errors, number = [], [], 0
    for pair in pairs:
        mine, theirs = (read_query_values(state_dir, one, metric) for one in pair)
        changes = [mine[query] - theirs[query] for query in mine.keys() & theirs.keys()]
        if len(changes) < 2:
            return None
        means.append(statistics.fmean(changes))
        errors.append(statistics.stdev(changes) / math.sqrt(len(changes)))
        number += len(changes)
    return statistics.fmean(means), math.hypot(*errors) / len(errors), number


def paired_difference(state_dir: Path, report: Report, other: Report, metric: str) -> tuple[float, float] | None:
    """`report` minus `other` for other queries like these, query by query, with its standard error: what the estimator says of
    the two together, else from the values of each query. None where two queries at least are not known. Raises OSError."""
    between = EstimateDetails.of(report).differences.get(other.checkpoint.digest)
    if metric == next(iter(report.metrics)) and between:
        low, high = between["population"]
        return float(between["value"]), (high - low) / 2 / Z_95
    found = paired_change(state_dir, report, other, metric)
    return None if found is None else found[:2]


def read_top(state_dir: Path, report: Report, queries: Collection[str]) -> dict[str, list[Retrieved]]:
    """What `results.write_top` wrote for a Report, of some queries, best first.

    Empty where there is none. Raises OSError for a file that cannot be read.
    """
    columns = ["query_id", "rank", "document_id", "gain"]
    table = _read(state_dir / "top" / _place(report), columns, ("query_id", "in", sorted(queries)))
    found: dict[str, list[Retrieved]] = {}
    for row in sorted([] if table is None else table.to_pylist(), key=lambda row: row["rank"]):
        found.setdefault(row["query_id"], []).append(Retrieved(document=row["document_id"], gain=row["gain"]))
    return found


def read_query_texts(state_dir: Path, fingerprint: str, queries: Collection[str]) -> dict[str, str]:
    """What `results.write_queries` wrote for a test set, of some queries; empty where there is none. Raises OSError."""
    path = state_dir / "queries" / f"texts-{fingerprint}.parquet"
    table = _read(path, ["query_id", "text"], ("query_id", "in", sorted(queries)))
    return {} if table is None else {row["query_id"]: row["text"] for row in table.to_pylist()}


def _place(report: Report) -> str:
    return f"{report.spec}/{name_of_digest(report.checkpoint.digest)}.parquet"


def _read(path: Path, columns: list[str], wanted: tuple[str, str, Any]) -> Any:
    """A table of the rows that match; None where there is no file."""
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        return None
    try:
        return pyarrow.parquet.read_table(path, columns=columns, filters=[wanted], use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise OSError(f"{path}: cannot be read ({error})") from error
