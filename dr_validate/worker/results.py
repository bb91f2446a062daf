"""Files beside the ledger: the sample, per-query values, retrieved lists. Written atomically, for other tools to read."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dr_validate.files import atomic_file
from dr_validate.values import Float64, Int64, Qrels, Ranking, Sample, TestSet

TOP = 3  # documents of a query that are kept with its values


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
    judged = [_gains(test_set.qrels, row, retrieved) for row, retrieved in enumerate(documents)]
    gains = [judged[row].get(ordinal) for row, ordinal in zip(rows.tolist(), ordinals.tolist(), strict=True)]
    _write_parquet(
        path,
        {
            "query_id": [test_set.query_ids[row] for row in rows],
            "rank": ranks + 1,
            "document_id": test_set.corpus.ids(ordinals),
            "gain": gains,
        },
    )


def _gains(qrels: Qrels, row: int, retrieved: Int64) -> dict[int, int]:
    """Of the documents that are judged for a query, those that were retrieved: there may be a million others."""
    documents, gains = qrels.row(row)
    kept = np.isin(documents, retrieved)
    return dict(zip(documents[kept].tolist(), gains[kept].tolist(), strict=True))


def write_ranking(path: Path, test_set: TestSet, ranking: Ranking, tag: str) -> None:
    """TREC run file: query Q0 document rank score tag."""
    tag = "_".join(tag.split()) or "dr_validate"
    with atomic_file(path) as stream:
        for row, query_id in enumerate(test_set.query_ids):
            found = ranking.documents[row] >= 0
            ids = test_set.corpus.ids(ranking.documents[row][found])
            scores = ranking.scores[row][found]
            lines = [f"{query_id} Q0 {d} {i} {s:.9g} {tag}\n" for i, (d, s) in enumerate(zip(ids, scores, strict=True), 1)]
            stream.write("".join(lines).encode())


def _write_parquet(path: Path, columns: dict[str, object]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: pyarrow.array(column, from_pandas=True) for name, column in columns.items()})
    with atomic_file(path) as stream:
        pyarrow.parquet.write_table(table, stream)
