"""Files beside the ledger: the sample, per-query values, retrieved lists, for other tools to read; full-corpus rankings, which
samples are held against and estimates are calibrated on. Written atomically.
"""

import gzip
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from dr_validate.files import atomic_file, digest_of_name, name_of_digest, read_arrays, write_arrays
from dr_validate.values import Checkpoint, Float64, Int64, Ranking, Sample, TestSet

log = logging.getLogger(__name__)
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


class Baselines:
    """Full-corpus rankings, a file for each checkpoint: documents only, by ordinal."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, checkpoint: Checkpoint, ranking: Ranking) -> None:
        """Called when a full-corpus ranking is finished."""
        path = self._path(checkpoint.digest)
        write_arrays(path, documents=ranking.documents.astype(np.int32), step=checkpoint.step)

    def ranking(self, digest: str) -> Ranking:
        """Scores are not kept: they are all 0. Raises OSError for a file that cannot be read, ValueError for a damaged one."""
        documents = read_arrays(self._path(digest), "documents")[0].astype(np.int64)
        return Ranking(documents=documents, scores=np.where(documents >= 0, 0, -np.inf).astype(np.float32))

    def write_run(self, digest: str, test_set: TestSet, path: Path) -> None:
        """The ranking in TREC's form, gzip; equal bytes for equal rankings. Raises as `ranking` does."""
        documents = self.ranking(digest).documents
        with (
            atomic_file(path) as stream,
            gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1, mtime=0, filename="") as file,
        ):
            for query, row in zip(test_set.query_ids, documents, strict=True):
                ids = test_set.corpus.ids(row[row >= 0])
                lines = (f"{query}\tQ0\t{document}\t{rank}\t{len(ids) - rank}\t{digest}\n" for rank, document in enumerate(ids))
                file.write("".join(lines).encode())

    def spread(self, digests: Collection[str], number: int) -> list[str]:
        """At most `number` of these that have one, from all over the training."""
        steps = {digest: step for digest, step in self.steps().items() if digest in digests}
        ordered = sorted(steps, key=lambda digest: (steps[digest], digest))
        places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), number)).astype(np.int64))
        return [ordered[place] for place in places]

    def as_of(self, digests: Collection[str]) -> float:
        """When the newest of these was kept, seconds since 1970; 0 without any."""
        return max((path.stat().st_mtime for digest in digests if (path := self._path(digest)).exists()), default=0.0)

    def steps(self) -> dict[str, int]:
        """Training step of each checkpoint that has a baseline, by digest; damaged files are left out."""
        found = {}
        for path in sorted(self._folder.glob("*.npz")):
            try:
                found[digest_of_name(path.stem)] = int(read_arrays(path, "step")[0])
            except (OSError, ValueError) as error:
                log.warning("%s: it is not used; delete it, or put back a copy", error)
        return found

    def _path(self, digest: str) -> Path:
        return self._folder / f"{name_of_digest(digest)}.npz"
