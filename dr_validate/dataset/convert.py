"""From documents to the Arrow folder of `ArrowCorpus`, once per corpus, in memory that does not grow with the texts."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.dataset.corpus import DOCUMENTS, FORMAT_VERSION, ID_HASH, TIE_RANK, ArrowCorpus, is_usable
from dr_validate.dataset.manifest import made_once, seal
from dr_validate.dataset.read import MAX_PROBLEMS, Problems, shorten
from dr_validate.dataset.records import Entry, Part
from dr_validate.values import Int64

log = logging.getLogger(__name__)

BATCH_ROWS = 16_384
BATCH_CHARACTERS = 1 << 25  # long documents: flush earlier than by rows


class _Refused(Exception):
    """The documents have problems (already collected): do not keep what was written."""


def open_corpus(documents: Part[Entry], folder: Path, problems: Problems) -> ArrowCorpus | None:
    """The corpus in `folder`, converted into it first unless it is there and complete; None if there are problems with it."""
    try:
        made_once(folder, is_usable, lambda fresh: _convert(documents, fresh, problems))
    except _Refused:
        return None
    return ArrowCorpus(folder)


def _convert(documents: Part[Entry], folder: Path, problems: Problems) -> None:
    log.info("converting %s (once)", documents.names)
    before = len(problems)
    writer = _Writer(folder / DOCUMENTS, problems)
    try:
        for entry in documents.read(problems):
            writer.add(entry)
    finally:
        writer.close()
    hashes = np.frombuffer(writer.hashes, dtype="<u8").astype(np.uint64)
    if not len(hashes) and len(problems) == before:
        problems.add(documents.names, "no documents: the corpus is empty; check dataset.path or dataset.corpus")
    if len(problems) > before:
        raise _Refused
    if writer.empty:
        log.warning("%d documents have an empty text, the first is %s", writer.empty, writer.first_empty)
    ranks, duplicates = _rank(folder / DOCUMENTS, hashes)
    if duplicates:
        _report_duplicates(documents, duplicates, problems)
        raise _Refused
    np.save(folder / ID_HASH, hashes)
    np.save(folder / TIE_RANK, ranks)
    seal(folder, FORMAT_VERSION)
    log.info("converted %d documents", len(hashes))


class _Writer:
    """Streams entries into record batches; the first entry decides whether this is a corpus of texts or of token ids."""

    def __init__(self, file: Path, problems: Problems) -> None:
        self.hashes = bytearray()  # 8 bytes per document
        self.empty = 0
        self.first_empty: str = ""
        self._file = file
        self._problems = problems
        self._kind: type | None = None
        self._writer: Any = None
        self._batch: list[Entry] = []
        self._characters = 0

    def add(self, entry: Entry) -> None:
        if self._kind is None:
            self._start(type(entry.text))
        if type(entry.text) is not self._kind:
            self._problems.add(entry.place, f"text: got {shorten(entry.text)}, but the first document has {_words(self._kind)}")
            return
        self.hashes += hashlib.blake2b(entry.id.encode(), digest_size=8).digest()
        if not entry.text or (isinstance(entry.text, str) and entry.text.isspace()):
            self.empty += 1
            self.first_empty = self.first_empty or f"{entry.id!r} at {entry.place}"
        self._batch.append(entry)
        self._characters += len(entry.text)
        if len(self._batch) >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self._flush()

    def close(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()

    def _start(self, kind: type) -> None:
        import pyarrow as pa

        self._kind = kind
        column = ("tokens", pa.large_list(pa.int32())) if kind is list else ("text", pa.large_string())
        self._schema = pa.schema([("id", pa.string()), column])
        self._writer = pa.ipc.new_file(str(self._file), self._schema)

    def _flush(self) -> None:
        import pyarrow as pa

        batch, self._batch, self._characters = self._batch, [], 0
        if not batch:
            return
        ids = pa.array([entry.id for entry in batch], type=self._schema.field(0).type)
        texts = pa.array([entry.text for entry in batch], type=self._schema.field(1).type)
        self._writer.write_batch(pa.record_batch([ids, texts], schema=self._schema))


def _words(kind: type | None) -> str:
    return "token ids" if kind is list else "a string"


def _rank(file: Path, hashes: NDArray[np.uint64]) -> tuple[Int64, list[tuple[int, int]]]:
    """Place of each document by descending id bytes, and pairs of ordinals with the same id (the first few)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with pa.memory_map(str(file)) as mapped:
        ids = pa.ipc.open_file(mapped).read_all().column(0)
    order = pc.array_sort_indices(ids, order="descending").to_numpy().astype(np.int64)
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    # Equal ids stand side by side in this order and have equal hashes; the few that do are compared themselves.
    hashed = hashes[order]
    duplicates = []
    for place in np.flatnonzero(hashed[1:] == hashed[:-1]).tolist():
        first, second = sorted((int(order[place]), int(order[place + 1])))
        if ids[first].as_py() == ids[second].as_py():
            duplicates.append((first, second))
        if len(duplicates) >= MAX_PROBLEMS:
            break
    return ranks, sorted(duplicates, key=lambda pair: pair[1])


def _report_duplicates(documents: Part[Entry], duplicates: list[tuple[int, int]], problems: Problems) -> None:
    wanted = {ordinal for pair in duplicates for ordinal in pair}
    entries = {n: entry for n, entry in enumerate(_reread(documents)) if n in wanted}
    for first, second in duplicates:
        message = f"document id {entries[second].id!r} again, first at {entries[first].place}; ids must be unique"
        problems.add(entries[second].place, message)


def _reread(documents: Part[Entry]) -> Iterator[Entry]:
    """The same entries again, for their places: keeping those in memory would cost every user for the few with duplicates."""
    return documents.read(Problems("again"))
