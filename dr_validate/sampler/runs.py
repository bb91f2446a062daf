"""Retrieved lists by somebody else's system: read from a file or ranxhub, and matched with the test set."""

import gzip
import itertools
import logging
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_validate.errors import SetupError
from dr_validate.values import Float64, Int64, TestSet

log = logging.getLogger(__name__)

Entry = tuple[str, str, float]  # query id, document id, score: higher is better
ENTRIES_AT_ONCE = 500_000  # about 100 MiB; each batch is a pass over the ids of the corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Hits by query row, then rank: ties are ordered by `Corpus.tie_rank`, as trec_eval orders them."""

    rows: Int64  # (num_hits,) of the test set's queries
    documents: Int64  # (num_hits,) ordinals
    ranks: Int64  # (num_hits,) from 0 on within each query


def read_file(path: Path) -> Iterator[Entry]:
    """Entries of a TREC run (6 columns, ordered by score) or an MS MARCO run (3 columns, ordered by rank), gzip or not.

    Columns are separated by tabs, else by spaces. Raises SetupError naming file and line.
    """
    try:
        yield from _entries(path)
    except UnicodeDecodeError as error:
        raise SetupError(
            f"{path}: is not UTF-8 text ({error}); give a TREC or MS MARCO run, gzip only with the ending .gz"
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        raise SetupError(f"{path}: cannot be read ({error}); is it cut short, or not what its ending says?") from error


def _entries(path: Path) -> Iterator[Entry]:
    opener = gzip.open if path.suffix == ".gz" else Path.open
    columns = 0
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if not cells or cells == [""]:
                continue
            columns = columns or len(cells)
            if columns not in (3, 6) or len(cells) != columns:
                raise SetupError(
                    f"{path}:{number}: got {len(cells)} columns, expected 6 (query Q0 document rank score tag) or "
                    "3 (query document rank) in every line"
                )
            try:
                yield _entry(cells)
            except ValueError as error:
                kind = "score" if columns == 6 else "rank"
                raise SetupError(f"{path}:{number}: {kind} is not a number ({error})") from error


def read_ranxhub(run_id: str) -> Iterator[Entry]:
    """Entries of a published run; ranx keeps what it downloads. Raises SetupError where it cannot be had."""
    import ranx

    try:
        run = ranx.Run.from_ranxhub(run_id).to_dict()
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # no network, or no such run: an error page
        raise SetupError(
            f"ranxhub:{run_id} cannot be loaded ({type(error).__name__}: {error}); check the id and the network, or download "
            "the run elsewhere and give its path instead"
        ) from error
    return ((query, document, float(score)) for query, hits in run.items() for document, score in hits.items())


def match(entries: Iterable[Entry], test_set: TestSet, name: str) -> Run:
    """Rows and ordinals of the entries; unknown ids are counted and logged. Raises SetupError where no query matches."""
    row_of = {query: row for row, query in enumerate(test_set.query_ids)}
    parts = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))]
    total = unknown_queries = 0
    stream = iter(entries)
    while batch := list(itertools.islice(stream, ENTRIES_AT_ONCE)):
        total += len(batch)
        rows = np.array([row_of.get(query, -1) for query, _, _ in batch])
        unknown_queries += int(np.count_nonzero(rows < 0))
        known = np.flatnonzero(rows >= 0)
        documents = test_set.corpus.find([batch[place][1] for place in known])
        parts.append((rows[known], documents, np.array([batch[place][2] for place in known])))
    rows, documents, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = documents >= 0
    if not np.any(found):
        raise SetupError(
            f"{name} has {total} lines, and none of them names both a query and a document of {test_set.name}; "
            "is it a run over another collection?"
        )
    run = ranked(rows[found], documents[found], scores[found], test_set)
    log.info(
        "run %s: hits for %d of %d queries; of %d lines, %d name an unknown query and %d an unknown document",
        *(name, len(np.unique(run.rows)), len(test_set.query_ids), total, unknown_queries, int(np.count_nonzero(~found))),
    )
    return run


def ranked(rows: Int64, documents: Int64, scores: Float64, test_set: TestSet) -> Run:
    """A Run of hits in any order; of two equal hits the better stays, own documents of a query go."""
    kept = test_set.own_documents[rows] != documents
    rows, documents, scores = rows[kept], documents[kept], scores[kept]
    order = np.lexsort((test_set.corpus.tie_rank[documents], -scores, rows))
    rows, documents = rows[order], documents[order]
    _, first = np.unique(rows * len(test_set.corpus) + documents, return_index=True)
    first.sort()
    rows, documents = rows[first], documents[first]
    starts = np.searchsorted(rows, rows)
    return Run(rows=rows, documents=documents, ranks=np.arange(len(rows)) - starts)


def _entry(cells: list[str]) -> Entry:
    score = float(cells[4]) if len(cells) == 6 else -float(cells[2])
    if math.isnan(score):
        raise ValueError("nan")
    return cells[0], cells[2] if len(cells) == 6 else cells[1], score
