"""Documents in an Arrow file that stays on disk: converted once, in memory that does not grow with the texts; then what is
asked for is read, nothing else.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.dataset.read import MAX_PROBLEMS, Problems, shorten
from dr_validate.dataset.records import Entry, Part
from dr_validate.dataset.storage import is_sealed, made_once
from dr_validate.values import Int64

FORMAT_VERSION = 2  # of the folder, and of how texts are read: it is part of what a test set is
DOCUMENTS = "documents.arrow"
TIE_RANK = "tie_rank.npy"
ID_HASH = "id_hash.npy"
ARROW_MAGIC = b"ARROW1"
log = logging.getLogger(__name__)
BATCH_ROWS = 16_384
BATCH_CHARACTERS = 1 << 25  # long documents: flush earlier than by rows


class ArrowCorpus:
    """`values.Corpus` over a folder that `open_corpus` wrote; opening it reads the footer of one file.

    Memory is the kernel's page cache: neither ids nor texts are held by this process.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        with pa.memory_map(str(folder / DOCUMENTS)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        self._ids = table.column(0)
        self._texts = table.column(1)
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._ids.chunks)], dtype=np.int64)
        self.tie_rank: Int64 = np.load(folder / TIE_RANK, mmap_mode="r").view(np.ndarray)
        self.id_hash: NDArray[np.uint64] = np.load(folder / ID_HASH, mmap_mode="r").view(np.ndarray)
        self.tokenized = str(table.column_names[1]) == "tokens"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def ids(self, ordinals: Int64) -> list[str]:
        return self._take(self._ids, ordinals)

    def texts(self, ordinals: Int64) -> list[str] | list[list[int]]:
        return self._take(self._texts, ordinals)

    def find(self, ids: Sequence[str]) -> Int64:
        """Ordinal of each id, -1 where there is no such document; one pass over the id column whatever the number asked for."""
        import pyarrow as pa
        import pyarrow.compute as pc

        position = {identity: number for number, identity in enumerate(dict.fromkeys(ids))}
        found = np.full(len(position), -1, dtype=np.int64)
        # A pass over the column hashes only the ids asked for, never the corpus.
        hits = pc.index_in(self._ids, value_set=_strings(list(position))) if position else pa.chunked_array([], pa.int32())
        for start, chunk in zip(self._starts, hits.chunks, strict=False):
            places = _numbers(pc.indices_nonzero(chunk.is_valid()), np.uint64).astype(np.int64)
            found[_numbers(chunk.drop_null(), np.int32)] = places + start
        return found[np.fromiter((position[identity] for identity in ids), dtype=np.int64, count=len(ids))]

    def _take(self, column: Any, ordinals: Int64) -> list[Any]:
        """Values of a column at `ordinals`, in that order.

        Chunk by chunk: `ChunkedArray.take` may first join all chunks, which copies the corpus.
        """
        wanted = np.asarray(ordinals, dtype=np.int64)
        if not len(wanted):
            return []
        assert 0 <= wanted.min() <= wanted.max() < len(self), "ordinal outside the corpus"
        order = None if bool(np.all(wanted[1:] >= wanted[:-1])) else np.argsort(wanted, kind="stable")
        ascending = wanted if order is None else wanted[order]
        bounds = np.searchsorted(ascending, self._starts)
        values: list[Any] = []
        for number in np.flatnonzero(np.diff(bounds)):
            local = ascending[bounds[number] : bounds[number + 1]] - self._starts[number]
            values.extend(column.chunk(int(number)).take(_indices(local)).to_pylist())
        if order is None:
            return values
        result: list[Any] = [None] * len(values)
        for place, value in zip(order.tolist(), values, strict=True):
            result[place] = value
        return result


def open_corpus(documents: Part[Entry], folder: Path, problems: Problems) -> ArrowCorpus | None:
    """The corpus in `folder`, converted into it first unless it is there and complete; None if there are problems with it."""
    try:
        made_once(folder, FORMAT_VERSION, lambda fresh: _convert(documents, fresh, problems), _is_readable)
    except _Refused:
        return None
    return ArrowCorpus(folder)


def is_usable(folder: Path) -> bool:
    """Whether `folder` holds a complete corpus of this format: every file there, as long as it was written, and readable."""
    return is_sealed(folder, FORMAT_VERSION) and _is_readable(folder)


def _is_readable(folder: Path) -> bool:
    try:
        with (folder / DOCUMENTS).open("rb") as stream:
            head = stream.read(len(ARROW_MAGIC))
            stream.seek(-len(ARROW_MAGIC), os.SEEK_END)
            if head != ARROW_MAGIC or stream.read() != ARROW_MAGIC:
                return False
        corpus = ArrowCorpus(folder)
    except (OSError, ValueError):  # pyarrow's and numpy's errors about damaged heads and footers are ValueErrors
        return False
    return len(corpus) == len(corpus.tie_rank) == len(corpus.id_hash)


# Arrow's own ways from and to Python values (`pa.array`, `to_numpy`) import pandas: a quarter of a CPU second in every process.
def _strings(values: Sequence[str]) -> Any:
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *(len(value) for value in encoded)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(encoded), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))])


def _indices(values: Int64) -> Any:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def _numbers(array: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """The values of an Arrow array of this type that has no nulls."""
    if not len(array):  # which may have no memory at all
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, count=len(array), offset=array.offset * np.dtype(dtype).itemsize)


class _Refused(Exception):
    """The documents have problems (already collected): do not keep what was written."""


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
            first = "token ids" if self._kind is list else "a string"
            self._problems.add(entry.place, f"text: got {shorten(entry.text)}, but the first document has {first}")
            return
        self.hashes += hashlib.blake2b(entry.id.encode(), digest_size=8).digest()
        if entry.is_empty:
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
    # Read again for their places: keeping those in memory would cost every user for the few with duplicates.
    entries = {n: entry for n, entry in enumerate(documents.read(Problems("again"))) if n in wanted}
    for first, second in duplicates:
        message = f"document id {entries[second].id!r} again, first at {entries[first].place}; ids must be unique"
        problems.add(entries[second].place, message)
