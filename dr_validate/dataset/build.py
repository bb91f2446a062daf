"""From the parts of a collection to a checked TestSet: every data set ends here."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.component import fingerprint
from dr_validate.dataset.cache import digests_of
from dr_validate.dataset.corpus import FORMAT_VERSION, ArrowCorpus, open_corpus
from dr_validate.dataset.judge import Judge, MissingJudged, check_texts, read_judged, resolve
from dr_validate.dataset.read import Problems, kind_of
from dr_validate.dataset.records import Entry, Judgement, Part
from dr_validate.dataset.remote import File
from dr_validate.errors import DatasetError
from dr_validate.values import Int64, Qrels, TestSet

log = logging.getLogger(__name__)


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
    return TestSet(
        name=collection.name,
        corpus=corpus,
        query_ids=tuple(entry.id for entry in queries),
        query_texts=_texts(queries),
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


def _texts(queries: list[Entry]) -> tuple[str, ...] | tuple[list[int], ...]:
    texts = tuple(entry.text for entry in queries if isinstance(entry.text, str))
    return texts or tuple(entry.text for entry in queries if isinstance(entry.text, list))


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
