"""Documents, queries and judgements from rows, whichever of the known column names they use."""

import itertools
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from dr_validate.columns import DOCUMENT_ID, QUERY_ID, Columns
from dr_validate.dataset.read import (
    MSMARCO_DOCUMENTS,
    Place,
    Problems,
    Row,
    are_topics,
    bare_document,
    bare_entry,
    bare_judgement,
    json_rows,
    kind_of,
    parquet_rows,
    shorten,
    table_rows,
    topic_rows,
)
from dr_validate.dataset.storage import File

log = logging.getLogger(__name__)

T = TypeVar("T")
Rows = Iterable[tuple[Place, Row]]
INTEGER = re.compile(r"[+-]?[0-9]{1,9}(\.0*)?")
MAX_GAIN = 10**9
NAMED = 3  # files of many


class Entry(NamedTuple):
    """A document (title and text joined) or a query; `text` is a list where the collection came tokenized."""

    id: str
    text: str | list[int]
    place: Place

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in the text but white space."""
        return not self.text or (isinstance(self.text, str) and self.text.isspace())


class Judgement(NamedTuple):
    """What one line of the qrels says."""

    query: str
    document: str
    gain: int
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[T]):
    """One of the three parts of a collection: the files that hold it and how to read them, as often as wanted."""

    files: tuple[File, ...]
    read: Callable[[Problems], Iterator[T]]

    @property
    def names(self) -> str:
        """What messages call it: its first files, and how many more there are."""
        more = len(self.files) - NAMED
        return ", ".join(map(str, self.files[:NAMED])) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Fields:
    """Accepted names of the columns, the first one present counts."""

    what: str
    id: tuple[str, ...]
    text: tuple[str, ...]
    title: tuple[str, ...] = ()

    @property
    def columns(self) -> Columns:
        return Columns(needed={f"{self.what} id": self.id, f"{self.what} text": self.text}, optional=self.title)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.id, *self.text, *self.title)


# MS MARCO v2 gives a passage its `pid`, and in `docid` the document that it is from.
DOCUMENT = Fields(
    "document", ("_id", "pid", "docid", "text_id", "doc_id", "id"), ("text", "passage", "contents", "body"), ("title",)
)
QUERY = Fields("query", ("_id", "query_id", "text_id", "qid", "query-id", "id"), ("query", "text"))
GAIN = ("score", "gain", "relevance", "label", "grade", "rel", "rating")
JUDGEMENT = Columns(needed={"query id": QUERY_ID, "document id": DOCUMENT_ID}, optional=GAIN)
POSITIVES = "positive_passages"
_IDS = frozenset((*QUERY_ID, *DOCUMENT_ID))


def entry_part(files: Sequence[File], fields: Fields) -> Part[Entry]:
    """Documents or queries of JSON lines, Parquet or `id<TAB>text` files, one after the other."""
    return Part(files=tuple(files), read=lambda problems: entries(_entry_rows(files, fields, problems), fields, problems))


def texts_alone(files: Sequence[File]) -> Iterator[str]:
    """Texts of documents that were converted, in the same order, each without its title."""
    return (_pick(row, DOCUMENT.text) for _, row in _entry_rows(files, DOCUMENT, Problems("corpus")))


def judgement_part(files: Sequence[File]) -> Part[Judgement]:
    """Judgements of BEIR, TREC, JSON lines or Parquet files, one after the other."""
    return Part(files=tuple(files), read=lambda problems: judgements(_judgement_rows(files, problems), problems))


def entries(rows: Rows, fields: Fields, problems: Problems) -> Iterator[Entry]:
    """Rows as entries: ids as strings, `title text` where there is a title. What is wrong goes to `problems`."""
    integers = 0
    for place, row in rows:
        raw = _pick(row, fields.id)
        identity = identifier(raw)
        if identity is None:
            problems.add(place, _wrong(f"{fields.what} id", raw, row, fields.id, "a non-empty string or an integer"))
            continue
        integers += raw is not identity
        text = _pick(row, fields.text)
        if not isinstance(text, str | list):
            problems.add(place, _wrong(f"{fields.what} text", text, row, fields.text, "a string or a list of token ids"))
            continue
        if (problem := _unusable(text)) is not None:
            problems.add(place, f"{fields.what} text: got {shorten(text)}, {problem}")
            continue
        title = _pick(row, fields.title)
        if not title:
            yield Entry(identity, text, place)
        elif isinstance(title, str) and isinstance(text, str) and _unusable(title) is None:
            yield Entry(identity, f"{title} {text}" if text else title, place)
        else:
            problems.add(
                place, f"title: got {shorten(title)}, expected a string of Unicode text, beside a text that is a string"
            )
    if integers:
        log.info("%d %s ids are integers and were read as strings", integers, fields.what)


def judgements(rows: Rows, problems: Problems) -> Iterator[Judgement]:
    """Rows as judgements; where all have the two ids and nothing else, the gain is 1. What is wrong goes to `problems`."""
    graded: bool | None = None  # as the first row is
    for place, row in _positives(rows):
        ids_alone = row.keys() <= _IDS
        if graded is None:
            graded = not ids_alone
            if ids_alone:
                log.info("%s has no column of gains: each judgement has gain 1", place.file)
        query, document = identifier(_pick(row, QUERY_ID)), identifier(_pick(row, DOCUMENT_ID))
        gains = [name for name in GAIN if name in row]
        gain = 1 if ids_alone and not graded else _integer(_pick(row, GAIN))
        if query is None:
            problems.add(place, _wrong("query id", _pick(row, QUERY_ID), row, QUERY_ID, "an id"))
        elif document is None:
            problems.add(place, _wrong("document id", _pick(row, DOCUMENT_ID), row, DOCUMENT_ID, "an id"))
        elif len(gains) > 1:
            problems.add(place, f"got the fields {gains}, each of which could be the gain; keep one of them")
        elif gain is None:
            problems.add(place, _wrong("gain", _pick(row, GAIN), row, GAIN, "an integer"))
        elif not (graded or ids_alone):
            problems.add(
                place, f"got the fields {sorted(row)}, but the first judgement has no gain; give all of them one, or none"
            )
        else:
            yield Judgement(query, document, gain, place)


def hold_positives(files: Sequence[File]) -> bool:
    """Whether queries name their relevant passages themselves (`positive_passages`), as the first row says."""
    problems = Problems("queries")
    return any(POSITIVES in row for _, row in itertools.islice(_judgement_rows(files[:1], problems), 1))


def _positives(rows: Rows) -> Iterator[tuple[Place, Row]]:
    """Rows of judgements; a query with its `positive_passages`, in Tevatron's form, is a row for each of those."""
    for place, row in rows:
        if POSITIVES not in row:
            yield place, row
            continue
        found = row[POSITIVES]
        for passage in found if isinstance(found, list) else [found]:
            document = _pick(passage, DOCUMENT.id) if isinstance(passage, dict) else None
            yield place, {QUERY_ID[0]: _pick(row, QUERY.id), DOCUMENT_ID[0]: document}


def identifier(value: Any) -> str | None:
    """An id as a string, None where it cannot be one. JSON and Parquet integers are taken for their digits."""
    if isinstance(value, str):
        return value if value and _unusable(value) is None else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _unusable(text: str | list[Any]) -> str | None:
    """Why a text cannot be stored, None if it can."""
    if isinstance(text, str):
        # JSON can spell half of a surrogate pair (\\ud800), which no encoding can write. ASCII is known without a look.
        if text.isascii():
            return None
        try:
            text.encode()
        except UnicodeEncodeError:
            return "which holds half of a surrogate pair and is no Unicode text; repair it"
        return None
    try:
        smallest = min(array("i", text), default=0)
    except (TypeError, OverflowError):
        smallest = -1
    return None if smallest >= 0 else "expected token ids, integers from 0 to 2**31 - 1"


def _pick(row: Row, names: Sequence[str]) -> Any:
    for name in names:
        if name in row:
            return row[name]
    return None


def _wrong(what: str, value: Any, row: Row, names: Sequence[str], expected: str) -> str:
    if not any(name in row for name in names):
        return f"no {what}: got the fields {sorted(row)}, expected one of {list(names)}"
    return f"{what}: got {shorten(value)}, expected {expected}"


def _integer(value: Any) -> int | None:
    if isinstance(value, str) and INTEGER.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MAX_GAIN < value < MAX_GAIN:
        return None
    return int(value) if value == int(value) else None


def _entry_rows(files: Sequence[File], fields: Fields, problems: Problems) -> Iterator[tuple[Place, Row]]:
    for file in files:
        kind = kind_of(file)
        if kind == "parquet":
            yield from parquet_rows(file, fields.names, problems)
        elif kind == "json":
            yield from json_rows(file, problems)
        elif fields is QUERY and are_topics(file, problems):
            yield from topic_rows(file, problems)
        else:
            bare = bare_document if MSMARCO_DOCUMENTS.fullmatch(file.name) else bare_entry
            yield from table_rows(file, fields.columns, bare, problems)


def _judgement_rows(files: Sequence[File], problems: Problems) -> Iterator[tuple[Place, Row]]:
    for file in files:
        kind = kind_of(file)
        if kind == "parquet":
            yield from parquet_rows(file, None, problems)  # what else is there tells whether the gain has another name
        else:
            yield from json_rows(file, problems) if kind == "json" else table_rows(file, JUDGEMENT, bare_judgement, problems)
