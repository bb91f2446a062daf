"""What is kept beside the ledger, for the page, the trackers and other tools: the sample, and of each query its text, its
values of a metric (moved with their mean when they are read), and what was found for it. Written atomically."""

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.estimator.estimate import moved
from dr_validate.files import atomic_file, name_of_digest
from dr_validate.ledger.reports import EstimateDetails, compared
from dr_validate.values import Z_95, Float64, Int64, Ranking, Report, Sample, TestSet

LEAST_QUERIES = 10  # for a normal interval over them
TOP = 3  # documents of a query that are kept with its values
LINES_AT_ONCE = 1 << 16  # of a run file


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """A document that was found for a query; `gain` is what it was judged, None where it was not."""

    document: str
    gain: int | None


def write_sample(state_dir: Path, test_set: TestSet, sample: Sample) -> Path | None:
    """`samples/<fingerprint>.parquet` (document_id, ordinal, inclusion), once; nothing for a full corpus."""
    path = state_dir / "samples" / f"{sample.fingerprint}.parquet"
    if sample.is_full:
        return None
    if not path.exists():
        ids = test_set.corpus.ids(sample.ordinals)
        _write_parquet(path, {"document_id": ids, "ordinal": sample.ordinals, "inclusion": sample.inclusion})
    return path


def write_query_values(path: Path, test_set: TestSet, values: Mapping[str, Float64], naive: Mapping[str, Float64]) -> None:
    """One row per query and metric: query_id, metric, value, naive (null for a query without a relevant document)."""
    names = list(values)
    _write_parquet(
        path,
        {
            "query_id": list(test_set.query_ids) * len(names),
            "metric": np.repeat(names, len(test_set.query_ids)),
            "value": np.concatenate([values[name] for name in names]),
            "naive": np.concatenate([naive[name] for name in names]),
        },
    )


def write_queries(state_dir: Path, test_set: TestSet) -> None:
    """`queries/texts-<fingerprint>.parquet` (query_id, text), once; nothing for queries that came as token ids."""
    path = state_dir / "queries" / f"texts-{test_set.fingerprint}.parquet"
    texts = list(test_set.query_texts)
    if not path.exists() and all(isinstance(text, str) for text in texts):
        _write_parquet(path, {"query_id": list(test_set.query_ids), "text": texts})


def write_top(path: Path, test_set: TestSet, ranking: Ranking) -> None:
    """The first documents of each query, a row each: query_id, rank, document_id, gain (null where it is not judged)."""
    documents = ranking.documents[:, :TOP]
    rows, ranks = np.nonzero(documents >= 0)
    ordinals = documents[rows, ranks]
    pairs = rows * len(test_set.corpus) + ordinals
    _write_parquet(
        path,
        {
            "query_id": [test_set.query_ids[row] for row in rows],
            "rank": ranks + 1,
            "document_id": test_set.corpus.ids(ordinals),
            "gain": _gains(test_set, pairs),
        },
    )


def _gains(test_set: TestSet, pairs: Int64) -> list[int | None]:
    """Of each pair, query row times the corpus' length plus ordinal, what was judged; there may be a million others."""
    qrels = test_set.qrels
    judged = np.repeat(np.arange(len(test_set.query_ids)), np.diff(qrels.offsets)) * len(test_set.corpus) + qrels.documents
    kept = np.isin(judged, pairs)
    gains = dict(zip(judged[kept].tolist(), qrels.gains[kept].tolist(), strict=True))
    return [gains.get(pair) for pair in pairs.tolist()]


def write_ranking(path: Path, test_set: TestSet, ranking: Ranking, tag: str) -> None:
    """TREC run file: query Q0 document rank score tag."""
    tag = "_".join(tag.split()) or "dr_validate"
    rows, ranks = np.nonzero(ranking.documents >= 0)
    with atomic_file(path) as stream:
        for start in range(0, len(rows), LINES_AT_ONCE):
            part = slice(start, start + LINES_AT_ONCE)
            at = rows[part], ranks[part]
            ids = test_set.corpus.ids(ranking.documents[at])
            scores = ranking.scores[at].tolist()
            lines = [
                f"{test_set.query_ids[row]} Q0 {document} {rank} {score:.9g} {tag}\n"
                for row, document, rank, score in zip(at[0].tolist(), ids, (at[1] + 1).tolist(), scores, strict=True)
            ]
            stream.write("".join(lines).encode())


def _write_parquet(path: Path, columns: dict[str, object]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: pyarrow.array(column, from_pandas=True) for name, column in columns.items()})
    with atomic_file(path) as stream:
        pyarrow.parquet.write_table(table, stream)


def read_query_values(state_dir: Path, report: Report, metric: str) -> dict[str, float]:
    """What `write_query_values` wrote for a Report, moved with the value of a Report that is `revised`.

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


def paired_difference(state_dir: Path, report: Report, other: Report, metric: str) -> tuple[float, float] | None:
    """`report` minus `other`, both of one sample, as they are known now, and its standard error for other queries like these.

    By what the estimator says of the two together, where it does; else by the differences of single queries, as if the errors
    of the two corrections had nothing in common, which is too much; None where these are fewer than LEAST_QUERIES. None of
    upper bounds, too, which say nothing of a difference. Raises OSError.
    """
    if any(one.metrics[metric].is_bound for one in (report, other)):
        return None
    value = report.metrics[metric].value - other.metrics[metric].value
    if (found := compared(report, other, metric)) is not None:
        low, high = found["population"]
        return value, (high - low) / 2 / Z_95
    if (error := _error_over_queries(state_dir, report, other, metric)) is None:
        return None
    # The interval of a mean has the queries in it already.
    corrected = [] if report.is_mean else [one.metrics[metric] for one in (report, other)]
    return value, math.hypot(error, *((estimate.high - estimate.low) / 2 / Z_95 for estimate in corrected))


def _error_over_queries(state_dir: Path, report: Report, other: Report, metric: str) -> float | None:
    """Of the mean difference, query by query; for two means of a suite within each collection, which counts the same."""
    specs = list(dict(report.notes.get("collections") or {}).values())
    pairs = [[replace(one, spec=spec, notes={}) for one in (report, other)] for spec in specs] or [[report, other]]
    errors = []
    for pair in pairs:
        mine, theirs = (read_query_values(state_dir, one, metric) for one in pair)
        changes = [mine[query] - theirs[query] for query in mine.keys() & theirs.keys()]
        if len(changes) < LEAST_QUERIES:
            return None
        errors.append(statistics.stdev(changes) / math.sqrt(len(changes)))
    return math.hypot(*errors) / len(errors)


def read_top(state_dir: Path, report: Report, queries: Collection[str]) -> dict[str, list[Retrieved]]:
    """What `write_top` wrote for a Report, of some queries, best first.

    Empty where there is none. Raises OSError for a file that cannot be read.
    """
    columns = ["query_id", "rank", "document_id", "gain"]
    table = _read(state_dir / "top" / _place(report), columns, ("query_id", "in", sorted(queries)))
    found: dict[str, list[Retrieved]] = {}
    for row in sorted([] if table is None else table.to_pylist(), key=lambda row: row["rank"]):
        found.setdefault(row["query_id"], []).append(Retrieved(document=row["document_id"], gain=row["gain"]))
    return found


def read_query_texts(state_dir: Path, fingerprint: str, queries: Collection[str]) -> dict[str, str]:
    """What `write_queries` wrote for a test set, of some queries; empty where there is none. Raises OSError."""
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
