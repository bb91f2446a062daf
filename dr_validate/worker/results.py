"""Files beside the ledger: the sample, per-query values, retrieved lists. Written atomically, for other tools to read."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dr_validate.files import atomic_file
from dr_validate.values import Float64, Int64, Ranking, Sample, TestSet

TOP = 3  # documents of a query that are kept with its values
LINES_AT_ONCE = 1 << 16  # of a run file


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
