"""From the parts of a collection to a checked TestSet: every data set ends here. Queries and judgements are held against each
other and against the corpus: only what is judged and exists becomes a test set."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dr_validate.component import fingerprint
from dr_validate.dataset.corpus import FORMAT_VERSION, ArrowCorpus, open_corpus
from dr_validate.dataset.read import Place, Problems, kind_of
from dr_validate.dataset.records import Entry, Judgement, Part
from dr_validate.dataset.storage import File, digests_of
from dr_validate.errors import DatasetError
from dr_validate.values import Int64, Qrels, TestSet

log = logging.getLogger(__name__)
MissingJudged = Literal["error", "drop"]
NAMED = 5  # how many of many a message names


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Judgements that are made from queries and corpus, not read: of `files`, by `rules` (JSON values).

    `judge` is given the corpus and a folder of its own to keep them in; it has the queries that count, and adds to problems.
    """

    files: tuple[File, ...]
    rules: Mapping[str, Any]
    judge: Callable[[ArrowCorpus, Path, Problems], tuple[list[Entry], Qrels]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What a data set hands over: where its three parts are and what to do about gaps in them."""

    name: str
    documents: Part[Entry]
    queries: Part[Entry]
    judgements: Part[Judgement] | Judge
    missing_judged: MissingJudged = "error"
    ignore_identical_ids: bool = False


def open_test_set(collection: Collection, cache: Path) -> TestSet:
    """Check everything and hand it over; the corpus is converted into `cache` unless that very content already was.

    The fingerprint is of the content: two paths to the same files are the same test set. Raises DatasetError with up to ten
    problems at once.
    """
    parts: dict[str, Part[Any] | Judge] = {
        "corpus": collection.documents,
        "queries": collection.queries,
        "qrels": collection.judgements,
    }
    for key, part in parts.items():
        if part.files:
            log.info("%s: %s%s", key, part.files[0], f" and {len(part.files) - 1} more" if len(part.files) > 1 else "")
    corpus_key = fingerprint({"corpus": _content(collection.documents, cache), "format": FORMAT_VERSION})
    judgements = collection.judgements
    content: dict[str, Any] = {
        "corpus": corpus_key,
        "queries": _content(collection.queries, cache),
        "qrels": _content(judgements, cache),
        "ignore_identical_ids": collection.ignore_identical_ids,
    }
    key = fingerprint(content | {"rules": dict(judgements.rules)} if isinstance(judgements, Judge) else content)
    problems = Problems(collection.name)
    judged = None if isinstance(judgements, Judge) else read_judged(collection.queries, judgements, problems)
    corpus = open_corpus(collection.documents, cache / corpus_key, problems)
    problems.stop_if_any()
    assert corpus is not None, "a corpus is refused with problems only"
    if isinstance(judgements, Judge):
        queries, qrels = judgements.judge(corpus, cache / f"judged-{key}", problems)
    else:
        assert judged is not None, "judgements are read or made"
        queries, qrels = resolve(judged, corpus, collection.missing_judged, problems)
    check_texts(queries, corpus.tokenized, problems)
    log.info("%s: %d documents, %d queries, %d judgements", collection.name, len(corpus), len(queries), len(qrels.gains))
    texts: Any = tuple(entry.text for entry in queries)  # of one kind: check_texts
    return TestSet(
        name=collection.name,
        corpus=corpus,
        query_ids=tuple(entry.id for entry in queries),
        query_texts=texts,
        qrels=qrels,
        own_documents=_own_documents(collection, corpus, queries, qrels),
        fingerprint=key,
        corpus_key=corpus_key,
    )


def _content(part: Part[Entry] | Part[Judgement] | Judge, cache: Path) -> list[list[str]]:
    """Kind and digest of each file: the same bytes read as another kind are another content."""
    return [[_kind(file), digest] for file, digest in zip(part.files, digests_of(part.files, cache), strict=True)]


def _kind(file: File) -> str:
    if file.suffix == ".arrow" or file.name.removesuffix(".gz").endswith(".csv"):
        return file.name.removesuffix(".gz").rpartition(".")[2]
    return kind_of(file)


def _own_documents(collection: Collection, corpus: ArrowCorpus, queries: list[Entry], qrels: Qrels) -> Int64:
    own = corpus.find([entry.id for entry in queries])
    sizes = np.diff(qrels.offsets)
    hits = (np.repeat(own, sizes) == qrels.documents) & (qrels.gains > 0)
    is_relevant = np.bincount(np.repeat(np.arange(len(own)), sizes)[hits], minlength=len(own)) > 0
    if not collection.ignore_identical_ids:
        _warn_of_identical(corpus, queries, np.where(is_relevant, -1, own))
        return np.full(len(queries), -1, dtype=np.int64)
    if not np.any(own >= 0):
        raise DatasetError(
            "dataset.ignore_identical_ids: got true, but no query id is a document id, so it has no effect; remove it"
        )
    if unreachable := int(np.count_nonzero(is_relevant)):
        log.warning("%d queries have their own document judged relevant, which ignore_identical_ids never returns", unreachable)
    return own


def _warn_of_identical(corpus: ArrowCorpus, queries: list[Entry], own: Int64) -> None:
    """Say so where queries are documents (ArguAna, Quora); ids alone may meet by chance, as numbers do."""
    rows = np.flatnonzero(own >= 0)
    documents: Sequence[str | list[int]] = corpus.texts(own[rows])
    if identical := sum(_are_one(document, queries[row].text) for document, row in zip(documents, rows, strict=True)):
        log.warning(
            "of %d queries, %d have the id of a document and %d of them its text, too (as in ArguAna and Quora): a document "
            "identical to its query takes the first place and is not relevant; set dataset.ignore_identical_ids=true to leave "
            "documents with the id of the query out, as BEIR's own evaluation does",
            *(len(queries), len(rows), identical),
        )


def _are_one(document: str | list[int], query: str | list[int]) -> bool:
    """Whether the texts agree, a title before one of them and spaces aside."""
    if isinstance(document, list) or isinstance(query, list):
        return document == query
    one, other = document.split(), query.split()
    shorter = min(len(one), len(other))
    return shorter > 0 and one[-shorter:] == other[-shorter:]


@dataclass(frozen=True, slots=True)
class Judged:
    """Judgements by query in the order of the qrels file, and the queries that have some, in the order of their file."""

    queries: list[Entry]
    judgements: dict[str, dict[str, Judgement]]  # query -> document -> judgement


def read_judged(queries: Part[Entry], judgements: Part[Judgement], problems: Problems) -> Judged:
    """Read both; a judgement given twice counts once, with two gains it is a problem, as is a judged query without text."""
    by_query: dict[str, dict[str, Judgement]] = {}
    for judgement in judgements.read(problems):
        row = by_query.setdefault(judgement.query, {})
        earlier = row.setdefault(judgement.document, judgement)
        if earlier.gain != judgement.gain:
            pair = f"query {judgement.query!r} and document {judgement.document!r}"
            problems.add(
                judgement.place, f"{pair} have gain {judgement.gain} here but {earlier.gain} at {earlier.place}; keep one"
            )
    kept = _read_queries(queries, by_query, problems)
    if not by_query and not len(problems):
        problems.add(judgements.names, "no judgements; check dataset.qrels (or dataset.split)")
    known = {entry.id for entry in kept}
    missing = [next(iter(row.values())) for query, row in by_query.items() if query not in known]
    if missing and not len(problems):  # after a broken line the file's queries are not all known
        names = ", ".join(repr(judgement.query) for judgement in missing[:NAMED])
        message = f"{len(missing)} of {len(by_query)} judged queries are not in {queries.names}: {names}"
        problems.add(
            missing[0].place, f"{message}{', ...' if len(missing) > NAMED else ''}; qrels and queries must belong together"
        )
    return Judged(kept, by_query)


def resolve(
    judged: Judged, corpus: ArrowCorpus, missing_judged: MissingJudged, problems: Problems
) -> tuple[list[Entry], Qrels]:
    """Judgements as ordinals. A judged document that does not exist is a problem, or dropped with a warning."""
    flat = [judgement for entry in judged.queries for judgement in judged.judgements[entry.id].values()]
    ordinals = corpus.find([judgement.document for judgement in flat])
    exists = ordinals >= 0
    lost = [judgement for judgement, there in zip(flat, exists.tolist(), strict=True) if not there]
    if lost:
        documents = list(dict.fromkeys(judgement.document for judgement in lost))
        names = ", ".join(map(repr, documents[:NAMED])) + (", ..." if len(documents) > NAMED else "")
        message = f"{len(lost)} of {len(flat)} judgements are of {len(documents)} documents that are not in the corpus: {names}"
        if missing_judged == "error":
            way_out = "point dataset.corpus at the right corpus, or set dataset.missing_judged=drop"
            problems.add(lost[0].place, f"{message}; {way_out}")
            problems.stop_if_any()
        log.warning("%s: %s; dropped", lost[0].place, message)
    sizes = np.array([len(judged.judgements[entry.id]) for entry in judged.queries], dtype=np.int64)
    row = np.repeat(np.arange(len(sizes)), sizes)[exists]
    left = np.bincount(row, minlength=len(sizes))
    queries = [entry for entry, count in zip(judged.queries, left.tolist(), strict=True) if count]
    if not queries:
        problems.add(
            "qrels", "no query with a judged document that exists is left; do corpus, queries and qrels belong together?"
        )
    problems.stop_if_any()
    if len(queries) < len(judged.queries):
        log.warning("%d queries have no judged document that exists and are left out", len(judged.queries) - len(queries))
    gains = np.array([judgement.gain for judgement in flat], dtype=np.int64)[exists]
    offsets = np.concatenate([[0], np.cumsum(left[left > 0])]).astype(np.int64)
    return queries, Qrels(offsets=offsets, documents=ordinals[exists], gains=gains)


def check_texts(queries: Sequence[Entry], tokenized: bool, problems: Problems) -> None:
    """Queries must come as the corpus does: texts, or token ids of the same tokenizer."""
    for entry in queries:
        if isinstance(entry.text, list) != tokenized:
            here, there = ("text", "token ids") if tokenized else ("token ids", "text")
            problems.add(entry.place, f"the query is {here}, but the corpus is {there}; both must be the same")
    problems.stop_if_any()
    empty = [entry for entry in queries if entry.is_empty]
    if empty:
        log.warning("%d judged queries have an empty text, the first is %r at %s", len(empty), empty[0].id, empty[0].place)


def _read_queries(queries: Part[Entry], judged: dict[str, dict[str, Judgement]], problems: Problems) -> list[Entry]:
    """Those that are judged; the ids of all are checked, but the texts of the others (500 k in MS MARCO) are not kept."""
    seen: dict[str, Place] = {}
    kept: list[Entry] = []
    for entry in queries.read(problems):
        if (first := seen.setdefault(entry.id, entry.place)) is not entry.place:
            problems.add(entry.place, f"query id {entry.id!r} again, first at {first}; ids must be unique")
        elif entry.id in judged:
            kept.append(entry)
    if len(seen) > len(kept):
        log.info("%d of %d queries have no judgements and are left out", len(seen) - len(kept), len(seen))
    return kept
