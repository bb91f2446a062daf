"""Rows of JSON lines, tab-separated, TREC and Parquet files, each with its place, and the collector of what is wrong."""

import contextlib
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from dr_validate.columns import Columns, split_quoted
from dr_validate.dataset.storage import File
from dr_validate.errors import DatasetError

Row = Mapping[str, Any]
Bare = Callable[[str], Row | str]  # a line without a header: its row, or what is wrong with it
MAX_PROBLEMS = 10
MAX_SHOWN = 2_000  # characters of one problem ...
MAX_VALUE = 60  # ... and of a value in it
GZIP_MAGIC = b"\x1f\x8b"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".tsv", ".txt", ".trec", ".qrels")
MSMARCO_V2 = re.compile(r"msmarco_(passage|doc)_\d+(\.gz)?")  # JSON lines, whose names do not say so
MSMARCO_DOCUMENTS = re.compile(r"msmarco-docs\.tsv(\.gz)?")  # four columns, which no header names
_TOPIC_TAGS = "top|num|dom|title|desc|smry|narr|con|fac|def|nat|query|question|narrative"
_TOPIC_FIELD = re.compile(rf"<(num|title)>\s*(?:(?:Number|Topic)\s*:)?(.*?)(?=</?(?:{_TOPIC_TAGS})>|\Z)", re.S | re.I)
PARQUET_BATCH_ROWS = 16_384


class Place(NamedTuple):
    """Where a record stands; `number` counts from 1."""

    file: str
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file}, {self.unit} {self.number}"


class Problems:
    """Collects what is wrong with a data set, so that a user sees up to ten things at once instead of one per start."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, place: object, message: str) -> None:
        """Note one, as far as anybody would read it (an id may have megabytes). Raises DatasetError once there are ten."""
        cut = message if len(message) <= MAX_SHOWN else f"{message[: MAX_SHOWN // 2]} ... {message[-MAX_SHOWN // 2 :]}"
        self._lines.append(f"{place}: {cut}")
        if len(self._lines) >= MAX_PROBLEMS:
            raise DatasetError(self._text(f"{MAX_PROBLEMS} problems (there may be more)"))

    def stop_if_any(self) -> None:
        """Raise DatasetError with all of them."""
        if self._lines:
            raise DatasetError(self._text(f"{len(self._lines)} problem{'s' if len(self._lines) != 1 else ''}"))

    def _text(self, count: str) -> str:
        return "\n".join([f"{count} in the data set {self._name}:", *(f"  {line}" for line in self._lines)])


def kind_of(file: File) -> str:
    """`json`, `parquet` or `table` by the file's name, a `.gz` at its end aside. Raises DatasetError for other names."""
    suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
    if suffix in JSON_SUFFIXES or MSMARCO_V2.fullmatch(file.name):
        return "json"
    if suffix == ".parquet":
        return "parquet"
    if suffix in TABLE_SUFFIXES:
        return "table"
    known = ", ".join((*JSON_SUFFIXES, ".parquet", *TABLE_SUFFIXES))
    raise DatasetError(f"{file}: got the suffix {suffix!r}, expected one of {known}, .gz accepted; rename or convert it")


def shorten(value: object) -> str:
    """What a message shows of a value that may be long."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=repr, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} that goes too deep to be shown"
    return repr(text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "...")


def lines(file: File, problems: Problems) -> Iterator[tuple[int, str]]:
    """Number and content of every line that is not blank; gzip is recognised by its first bytes.

    Lines end at a line feed only, so that a separator inside a text (U+2028, form feed) cannot break a record.
    """
    try:
        with _open(file) as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    line = raw.decode()
                except UnicodeDecodeError as error:
                    problem = (
                        f"byte {error.start} of the line (0x{raw[error.start]:02x}) is not UTF-8; convert the file to UTF-8"
                    )
                    problems.add(Place(str(file), number), problem)
                    continue
                line = line.rstrip("\r\n")
                if number == 1:
                    line = line.removeprefix("\ufeff")  # byte order mark of Windows editors
                if line and not line.isspace():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{file}: the gzip data is broken or cut short ({error}); copy or download it again") from error
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error}); check the path, its rights and its disk or server") from error


def json_rows(file: File, problems: Problems) -> Iterator[tuple[Place, Row]]:
    """One JSON object per line."""
    name = str(file)
    for number, line in lines(file, problems):
        place = Place(name, number)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(place, f"not JSON ({error}): got {shorten(line)}, expected one object per line")
            continue
        if isinstance(row, dict):
            yield place, row
        else:
            problems.add(place, f"got {shorten(line)}, expected a JSON object")


def table_rows(file: File, columns: Columns, bare: Bare, problems: Problems) -> Iterator[tuple[Place, Row]]:
    """Rows by the names of a header, which is the first line if it looks like one, else what `bare` makes of each line."""
    name, stream = str(file), lines(file, problems)
    first = list(itertools.islice(stream, 2))
    header: tuple[str, ...] | None = None
    if first:
        try:
            header = columns.header(*(_cells(line) for _, line in first))
        except ValueError as error:
            problems.add(Place(name, first[0][0]), str(error))
            return
    for number, line in itertools.chain(first if header is None else first[1:], stream):
        row = bare(line) if header is None else _named(line, header)
        if isinstance(row, str):
            problems.add(Place(name, number), row)
        else:
            yield Place(name, number), row


def bare_entry(line: str) -> Row | str:
    """`id<TAB>text`, as MS MARCO writes it, or what is wrong with the line."""
    cells = line.split("\t")
    if len(cells) == 1:
        return f"no tab in {shorten(line)}, expected id<TAB>text"
    if len(cells) > 2:
        return (
            f"got {len(cells)} columns in {shorten(line)}, expected id<TAB>text; name the columns in a first line (such as "
            "id<TAB>url<TAB>title<TAB>text), or, if the tab is within a text, write a space for it"
        )
    return {"id": cells[0], "text": cells[1]}


def bare_document(line: str) -> Row | str:
    """`docid<TAB>url<TAB>title<TAB>body`, as `msmarco-docs.tsv` is written, or what is wrong with the line."""
    cells = line.split("\t")
    if len(cells) != 4:
        return f"got {len(cells)} columns in {shorten(line)}, expected MS MARCO's docid<TAB>url<TAB>title<TAB>body"
    return {"docid": cells[0], "title": cells[2], "text": cells[3]}


def are_topics(file: File, problems: Problems) -> bool:
    """Whether a file holds markup in place of rows."""
    return next((line.lstrip().startswith("<") for _, line in lines(file, problems)), False)


def topic_rows(file: File, problems: Problems) -> Iterator[tuple[Place, Row]]:
    """Number and title of each `<top>` of TREC's topics, as rows of `id` and `text`; other markup is a problem."""
    started, parts = 0, list[str]()
    for number, line in lines(file, problems):
        word = line.strip().lower()
        if not started and word != "<top>":
            problems.add(
                Place(str(file), number), f"got {shorten(line)}, expected TREC's topics (<top>, <num>, <title>) or rows"
            )
        elif not started:
            started, parts = number, []
        elif word != "</top>":
            parts.append(line)
        else:
            found = {tag.lower(): " ".join(text.split()) for tag, text in reversed(_TOPIC_FIELD.findall("\n".join(parts)))}
            if lacking := [f"<{tag}>" for tag in ("num", "title") if not found.get(tag)]:
                problems.add(Place(str(file), started), f"this topic has no {' and no '.join(lacking)}")
            else:
                yield Place(str(file), started), {"id": found["num"], "text": found["title"]}
            started = 0
    if started:
        problems.add(Place(str(file), started), "this <top> has no </top>: the file is cut short")


def bare_judgement(line: str) -> Row | str:
    """`query document gain`, or `query 0 document gain` (TREC), or what is wrong with the line."""
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) not in (3, 4):
        cells = line.split()
    if len(cells) not in (3, 4):
        return (
            f"got {len(cells)} columns in {shorten(line)}, expected query-id, corpus-id, score or the four columns of TREC "
            "(query 0 document gain), by tabs or spaces; other columns need a header that names them"
        )
    return {"query-id": cells[0], "corpus-id": cells[-2], "score": cells[-1]}


def parquet_rows(file: File, columns: Sequence[str] | None, problems: Problems) -> Iterator[tuple[Place, Row]]:
    """Rows of a Parquet file with those of `columns` that it has (None: all), a batch in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = str(file)
    try:
        with file.open("rb") as stream, pq.ParquetFile(stream) as reader:
            present = [column for column in reader.schema_arrow.names if columns is None or column in columns]
            if columns is not None and not present:
                problems.add(name, f"got the columns {reader.schema_arrow.names}, expected some of {list(columns)}")
                return
            number = 0
            for batch in reader.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=present):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(name, number, "row"), row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: not a readable Parquet file ({error}); write or download it again") from error


@contextlib.contextmanager
def _open(file: File) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with file.open("rb") as stream:
        if stream.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC):
            with gzip.GzipFile(fileobj=stream) as unzipped:
                yield unzipped
        else:
            yield stream


def _cells(line: str) -> list[str]:
    """By tabs, else by spaces."""
    return split_quoted(line) if "\t" in line else line.split()


def _named(line: str, header: Sequence[str]) -> Row | str:
    cells = _cells(line)
    if len(cells) != len(header):
        return f"got {len(cells)} columns in {shorten(line)}, but the header has {len(header)}: {list(header)}"
    return {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
