"""Runs by the names that they have in the configuration: BM25's, the collection's own, published, or files. Each is read once,
matched with the test set and kept; several are fused to one order of documents, from whose top a pool is taken."""

import functools
import gzip
import itertools
import logging
import math
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dr_validate.columns import DOCUMENT_ID, QUERY_ID, Columns
from dr_validate.component import fingerprint
from dr_validate.errors import SetupError
from dr_validate.files import read_arrays, sha256_of_file, write_arrays
from dr_validate.sampler import bm25
from dr_validate.sampler.bm25 import RetrievedRun, ranked
from dr_validate.sampler.design import UInt64
from dr_validate.values import Int64, TestSet

BM25 = "bm25"
SHIPPED = "shipped"
BASELINE = "baseline"
RANXHUB = "ranxhub:"
BM25_DEPTH = 1000
LEAST_COVERED = 0.5  # of the queries: a run with fewer is said to have gaps
FORMAT = 1  # of a run that is kept; change it when `match_run` or `bm25` finds something else in the same input
log = logging.getLogger(__name__)
RunLine = tuple[str, str, float]  # query id, document id, score: higher is better
TEXTS = ("query", "passage", "text", "title", "url")  # columns beside the ids that are no order
COLUMNS = Columns(needed={"query id": QUERY_ID, "document id": DOCUMENT_ID}, optional=("score", "rank", *TEXTS[1:]))
FORMS = (
    "6 (query Q0 document rank score tag) or 3 (query document rank) in every line, or a header that names the columns "
    "(query-id, docid, and rank or score)"
)
ENTRIES_AT_ONCE = 500_000  # about 100 MiB; each batch is a pass over the ids of the corpus
QUERIES_AT_ONCE = 256
RRF_K = 20
_ONE = 1 << 40  # reciprocal ranks as integers: sums do not depend on the order of the runs, and ties are ties
_NOT_A_HIT = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRun:
    """`name`: `bm25`, `shipped` (the collection's own run, in BM25's order if it has none, such as MS MARCO's top1000.dev, and
    `bm25` where there is no run), `baseline` (`worker.samples` chooses it), `ranxhub:ID` or the path of a TREC or MS MARCO run;
    errors begin with `key`, which names it.
    """

    name: str
    key: str
    bm25_depth: int = BM25_DEPTH
    by_bm25: bool = False  # in its order, where the run has none

    def of(self, test_set: TestSet) -> "NamedRun":
        """What `shipped` and `baseline` are for this test set; any other as it is. Raises SetupError without a baseline."""
        if self.name == BASELINE:
            if test_set.baseline_run is None:
                raise SetupError(f"{self.key}: got {BASELINE!r}, but no full-corpus ranking is known here; leave it out")
            return replace(self, name=str(test_set.baseline_run))
        if self.name != SHIPPED:
            return self
        if test_set.shipped_run is None:
            log.info("%s has no run of its own: the pool is of BM25's", test_set.name)
        return replace(self, name=str(test_set.shipped_run or BM25), by_bm25=test_set.shipped_run is not None)

    def read(self, test_set: TestSet, cache: Path) -> RetrievedRun:
        """The run, matched with the test set; `cache` keeps it. Raises SetupError where it cannot be had."""
        if self.name in (SHIPPED, BASELINE):
            return self.of(test_set).read(test_set, cache)
        key = fingerprint({"run": self.content(), "test_set": test_set.fingerprint, "format": FORMAT})
        path = cache / f"run-{key}.npz"
        if (kept := _kept(path)) is not None:
            self._warn_of_gaps(kept, test_set)
            return kept
        try:
            run = self._made(test_set)
        except SetupError as error:
            raise SetupError(f"{self.key}: {error}") from error
        self._warn_of_gaps(run, test_set)
        # A third of what the numbers of a run take: 70 MB for 7 M hits.
        write_arrays(path, rows=np.int32(run.rows), documents=np.int32(run.documents), ranks=np.int32(run.ranks))
        return run

    def _warn_of_gaps(self, run: RetrievedRun, test_set: TestSet) -> None:
        found, asked = len(np.unique(run.rows)), len(test_set.query_ids)
        if found < LEAST_COVERED * asked:
            log.warning(
                "%s: run %s has hits for %d of the %d queries of %s: the pool has nothing for the others; is it a run over "
                "other queries, or a part of one?",
                *(self.key, self.name, found, asked, test_set.name),
            )

    def content(self) -> str | Mapping[str, Any]:
        """For the spec: of a file its content counts, not its place. Raises SetupError if there is no such file."""
        path = self.find()
        if path is not None:
            state = path.stat()
            content = f"sha256:{_digest(path, state.st_size, state.st_mtime_ns, state.st_ino)}"
            return {"run": content, "order": bm25.SETTINGS} if self.by_bm25 else content
        return {**bm25.SETTINGS, "depth": self.bm25_depth} if self.name == BM25 else self.name

    def _made(self, test_set: TestSet) -> RetrievedRun:
        if (path := self.find()) is not None:
            run = match_run(read_file(path), test_set, self.name)
            return bm25.ordered(run, test_set) if self.by_bm25 and not run.ranks.any() else run
        if self.name == BM25:
            return bm25.bm25_run(test_set, self.bm25_depth)
        return match_run(read_ranxhub(self.name.removeprefix(RANXHUB)), test_set, self.name)

    def find(self) -> Path | None:
        """The file; None for a run with a name of ours or ranx's. Raises SetupError for a path that is no file."""
        if self.name in (BM25, SHIPPED, BASELINE) or self.name.startswith(RANXHUB):
            return None
        path = Path(self.name)
        if not path.is_file():
            raise SetupError(
                f"{self.key}: got {self.name!r}, which is no file; give the path of a run, {RANXHUB}ID, {SHIPPED}, {BASELINE} "
                f"or {BM25}"
            )
        return path


def resolved(runs: Sequence[NamedRun], test_set: TestSet) -> list[NamedRun]:
    """Each run that these names stand for, once."""
    return list(dict.fromkeys(run.of(test_set) for run in runs))


def _kept(path: Path) -> RetrievedRun | None:
    try:
        rows, documents, ranks = (array.astype(np.int64) for array in read_arrays(path, "rows", "documents", "ranks"))
        return RetrievedRun(rows=rows, documents=documents, ranks=ranks)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: the run is made again", error)
        return None


@functools.lru_cache(maxsize=8)
def _digest(path: Path, *state: int) -> str:
    """Read once in this process as long as `state` is the same."""
    return sha256_of_file(path)


def read_file(path: Path) -> Iterator[RunLine]:
    """Entries of a run, gzip or not, in columns separated by tabs, else by spaces. Raises SetupError naming file and line.

    6 columns are TREC's, ordered by score. 3 are `query document rank` (MS MARCO), if the third are whole numbers, each once a
    query, or `query document score` (Tevatron), if they fall from line to line of each query; what could be both, or neither,
    is refused. 4 with texts are MS MARCO's `top1000.dev.tsv` (query document and their texts), whose order is no ranking: all
    hits of a query count equally. Any other order of columns needs a header that names them.
    """
    try:
        layout = _layout(path)
        sign = _sign(path, layout) if layout.by in ("rank", "either") else 1.0
        if layout.by == "nothing":
            log.warning("%s has neither ranks nor scores: all hits of a query count equally", path)
        for number, cells in _lines(path, layout):
            yield cells[layout.query], cells[layout.document], sign * _value(path, number, cells, layout)
    except UnicodeDecodeError as error:
        raise SetupError(
            f"{path}: is not UTF-8 text ({error}); give a TREC or MS MARCO run, gzip only with the ending .gz"
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        raise SetupError(f"{path}: cannot be read ({error}); is it cut short, or not what its ending says?") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where in a line of `columns` is what counts; the lines before `first` are a header. `by` says what the value is."""

    columns: int
    query: int
    document: int
    value: int
    by: Literal["score", "rank", "either", "nothing"]
    first: int = 1


def _layout(path: Path) -> _Layout:
    number, cells = next(_lines(path), (0, []))
    if not cells:
        raise SetupError(f"{path}: is empty")
    if len(cells) == 6 and _is_number(cells[4]):
        return _Layout(columns=6, query=0, document=2, value=4, by="score")
    if len(cells) == 3 and _is_number(cells[2]):
        return _Layout(columns=3, query=0, document=1, value=2, by="either")
    try:
        names = COLUMNS.header(cells)
    except ValueError as error:
        raise SetupError(f"{path}:{number}: {error}") from error
    if names is not None:
        return _named(path, number, names)
    if len(cells) == 4 and not any(_is_number(cell) for cell in cells[2:]):
        return _Layout(columns=4, query=0, document=1, value=0, by="nothing")
    if len(cells) not in (3, 6):
        raise SetupError(f"{path}:{number}: got {len(cells)} columns, expected {FORMS}")
    what, value = ("score", cells[4]) if len(cells) == 6 else ("third column", cells[2])
    raise SetupError(f"{path}:{number}: {what} is not a number (got {value!r}); expected {FORMS}")


def _named(path: Path, number: int, names: Sequence[str]) -> _Layout:
    query, document = (next(name for name in accepted if name in names) for accepted in (QUERY_ID, DOCUMENT_ID))
    value = next((name for name in ("score", "rank") if name in names), None)
    if value is None and (others := [name for name in names if name not in (query, document, *TEXTS)]):
        raise SetupError(f"{path}:{number}: the header {list(names)} names no score and no rank; rename one of {others}")
    return _Layout(
        columns=len(names),
        query=names.index(query),
        document=names.index(document),
        value=names.index(value) if value else 0,
        by="score" if value == "score" else "rank" if value else "nothing",
        first=number + 1,
    )


def _sign(path: Path, layout: _Layout) -> float:
    """-1 where the values are ranks, 1 where they are scores. Raises SetupError where that cannot be told.

    Takes 16 bytes a line, and some more while they are sorted.
    """
    known: dict[str, int] = {}
    of_lines, of_queries, of_values, hits = array("i"), array("i"), array("d"), array("i")
    counts = layout.by == "either"  # whether the second column counts the lines of each query
    for number, cells in _lines(path, layout):
        row = known.setdefault(cells[layout.query], len(known))
        if counts:
            hits.extend([0] * (row == len(hits)))
            hits[row] += 1
            counts = cells[layout.document] == str(hits[row])
        of_lines.append(number)
        of_queries.append(row)
        of_values.append(_value(path, number, cells, layout))
    if counts and max(hits) > 1:
        raise SetupError(f"{path}: the second column counts 1, 2 ... for each query, which are ranks, not ids; give {FORMS}")
    lines, rows, values = np.array(of_lines), np.array(of_queries), np.array(of_values)
    by_value, by_line = np.lexsort((values, rows)), np.argsort(rows, kind="stable")
    one_query = rows[by_line][1:] == rows[by_line][:-1]  # of neighbours, in either order
    again = by_value[1:][one_query & (values[by_value][1:] == values[by_value][:-1])]
    not_whole = np.flatnonzero((values < 0) | (values != np.floor(values)) | np.isinf(values))
    no_ranks = np.sort(np.concatenate([not_whole, again]))
    before, after = values[by_line][:-1][one_query], values[by_line][1:][one_query]
    no_scores = by_line[1:][one_query][after > before]
    has_order = bool(np.any(after != before)) or not len(after)
    if not len(no_ranks) and (len(no_scores) or not len(after) or layout.by == "rank"):
        return -1.0
    if len(no_ranks) and has_order and not len(no_scores) and layout.by == "either":
        log.info("%s: the third column falls from line to line of each query and is taken for scores", path)
        return 1.0
    if not len(no_ranks):
        raise SetupError(f"{path}: the third column could be ranks, the last first, or scores, the best first; give {FORMS}")
    place = int(no_ranks[0])
    why = f"which fall from line to line of a query: line {lines[no_scores[0]]} does not" if len(no_scores) else "all are equal"
    nor_scores = f", nor are these scores ({why})" if layout.by == "either" else ""
    raise SetupError(
        f"{path}:{lines[place]}: {values[place]:g} is no rank (a whole number, once a query){nor_scores}; give {FORMS}"
    )


def read_ranxhub(run_id: str) -> Iterator[RunLine]:
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


def _lines(path: Path, layout: _Layout | None = None) -> Iterator[tuple[int, list[str]]]:
    """Numbers and cells of the lines that are not blank; of a `layout` those after the header, which must have its columns."""
    opener = gzip.open if path.suffix == ".gz" else Path.open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if cells in ([], [""]) or (layout and number < layout.first):
                continue
            if layout and len(cells) != layout.columns:
                raise SetupError(f"{path}:{number}: got {len(cells)} columns, expected {layout.columns} as before, of {FORMS}")
            yield number, cells


def _value(path: Path, number: int, cells: Sequence[str], layout: _Layout) -> float:
    if layout.by == "nothing":
        return 0.0
    if not _is_number(cells[layout.value]):
        what = "third column" if layout.by == "either" else layout.by
        raise SetupError(f"{path}:{number}: {what} is not a number (got {cells[layout.value]!r})")
    return float(cells[layout.value])


def _is_number(cell: str) -> bool:
    try:
        return not math.isnan(float(cell))
    except ValueError:
        return False


def match_run(entries: Iterable[RunLine], test_set: TestSet, name: str) -> RetrievedRun:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What the runs name beside the judged documents, with the best rank that any query gives each."""

    documents: Int64  # (num_candidates,) ordinals, ascending
    ranks: Int64  # (num_candidates,) from 0 on

    def best(self, count: int, numbers: UInt64) -> Int64:
        """Ordinals of the first `count` by rank, in that order; `numbers` (num_candidates,) orders those of one rank."""
        if count >= len(self.ranks):
            return self.documents[np.lexsort((numbers, self.ranks))]
        cut = np.partition(self.ranks, count)[count]
        near = np.flatnonzero(self.ranks <= cut)  # few of many: sorting all of them would take most of the time
        return self.documents[near[np.lexsort((numbers[near], self.ranks[near]))[:count]]]


def candidates(runs: Sequence[RetrievedRun], test_set: TestSet) -> Candidates:
    """Reciprocal rank fusion per query (Cormack, Clarke, Buettcher 2009: sum of 1/(k + rank), rank from 1 on; k is 20, theirs
    60: first places count more), then each document's best fused rank over the queries; documents of equal sum in a query
    share the better rank.

    Memory: 4 bytes a document of the corpus, and the hits of 256 queries at a time.
    """
    best = np.full(len(test_set.corpus), _NOT_A_HIT, dtype=np.int32)
    for start in range(0, len(test_set.query_ids), QUERIES_AT_ONCE):
        parts = [_of_queries(run, start, start + QUERIES_AT_ONCE) for run in runs]
        documents, ranks = _fused(parts, len(best)) if len(parts) > 1 else (parts[0].documents, parts[0].ranks)
        np.minimum.at(best, documents, ranks.astype(np.int32))
    best[test_set.judged] = _NOT_A_HIT
    documents = np.flatnonzero(best != _NOT_A_HIT)
    return Candidates(documents=documents, ranks=best[documents].astype(np.int64))


def _of_queries(run: RetrievedRun, start: int, end: int) -> RetrievedRun:
    part = slice(*np.searchsorted(run.rows, [start, end]))
    return RetrievedRun(rows=run.rows[part], documents=run.documents[part], ranks=run.ranks[part])


def _fused(parts: Sequence[RetrievedRun], num_documents: int) -> tuple[Int64, Int64]:
    """Document and fused rank (from 0 on) of every hit of some queries, each (query, document) once."""
    hits = np.concatenate([part.rows * num_documents + part.documents for part in parts])
    votes = np.concatenate([_ONE // (RRF_K + 1 + part.ranks) for part in parts])
    hits, place = np.unique(hits, return_inverse=True)
    sums = np.zeros(len(hits), dtype=np.int64)
    np.add.at(sums, place, votes)
    rows, documents = np.divmod(hits, num_documents)
    order = np.lexsort((-sums, rows))
    rows, sums = rows[order], sums[order]
    first_of_tie = np.r_[True, (np.diff(rows) != 0) | (np.diff(sums) != 0)][: len(rows)]
    places = np.arange(len(rows))
    leaders = np.maximum.accumulate(np.where(first_of_tie, places, 0))
    return documents[order], leaders - np.searchsorted(rows, rows)
