"""Queries and judgements against each other and against the corpus: only what is judged and exists becomes a test set."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dr_validate.dataset.corpus import ArrowCorpus
from dr_validate.dataset.read import Place, Problems
from dr_validate.dataset.records import Entry, Judgement, Part
from dr_validate.dataset.remote import File
from dr_validate.values import Qrels

log = logging.getLogger(__name__)

MissingJudged = Literal["error", "drop"]
NAMED = 5  # how many of many a message names


@dataclass(frozen=True, slots=True)
class Judged:
    """Judgements by query in the order of the qrels file, and the queries that have some, in the order of their file."""

    queries: list[Entry]
    judgements: dict[str, dict[str, Judgement]]  # query -> document -> judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Judgements that are made from queries and corpus, not read: of `files`, by `rules` (JSON values).

    `judge` is given the corpus and a folder of its own to keep them in; it has the queries that count, and adds to problems.
    """

    files: tuple[File, ...]
    rules: Mapping[str, Any]
    judge: Callable[[ArrowCorpus, Path, Problems], tuple[list[Entry], Qrels]]


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
    empty = [entry for entry in queries if not entry.text or (isinstance(entry.text, str) and entry.text.isspace())]
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
