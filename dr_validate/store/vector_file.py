"""Vectors on disk by ordinal, in two files that only grow: the vectors, and for each its ordinal and a checksum.

A vector counts as kept when its checksum is there and fits, so a killed writer, a lost power or a damaged disk can only
ever cost vectors, never change one. Nothing waits for the disk (no fsync): what a power cut takes is encoded again.
"""

import itertools
import logging
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.files import locked
from dr_validate.stages import Kept
from dr_validate.values import Float32, Int64

log = logging.getLogger(__name__)

MAGIC = b"VEC1"
HEADER = struct.Struct("<4sIII")  # magic, dimensions, bytes of a number, CRC-32 of those before
RECORD = np.dtype([("ordinal", "<u4"), ("checksum", "<u4")])  # record n is about vector n
NUMBERS: dict[int, NDArray[Any]] = {2: np.empty(0, "<f2"), 4: np.empty(0, "<f4")}


class VectorFile:
    """`<path>.vectors` and `<path>.records`; several threads and processes may read and append at once.

    `count` bounds the ordinals. 8 bytes of memory for each, touched only where there are some. Every method may raise OSError.
    """

    def __init__(self, path: Path, count: int, dtype: str) -> None:
        self._path, self._dtype = path, dtype
        self._places = np.zeros(count, dtype=np.uint32)  # by ordinal: 1 + number of its vector in the file, 0 for none
        self._checksums = np.zeros(count, dtype=np.uint32)
        self._seen = 0  # records
        self._lock = threading.Lock()  # of those three
        self._header: tuple[int, int] | None = None  # dimensions, bytes of a number
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._vectors = os.open(path.with_suffix(".vectors"), flags, 0o666)
        try:
            self._records = os.open(path.with_suffix(".records"), flags, 0o666)
        except OSError:
            os.close(self._vectors)
            raise

    def close(self) -> None:
        """Let go of the files."""
        os.close(self._vectors)
        os.close(self._records)

    @property
    def num_kept(self) -> int:
        """Vectors that there are."""
        with self._lock:
            self._refresh()
            return int(np.count_nonzero(self._places))

    def read(self, ordinals: Int64) -> Kept:
        """What is kept of these; what is found damaged is no longer kept."""
        with self._lock:
            self._refresh()
            kept = self._places[ordinals] > 0
            if self._header is None or not kept.any():
                return nothing(ordinals)
            wanted, (dim, width) = ordinals[kept], self._header
            rows = self._read_rows(self._places[wanted].astype(np.int64) - 1, dim * width)
            whole = _checksums(rows, wanted) == self._checksums[wanted]
            if not whole.all():
                log.warning("%d vectors in %s are damaged and will be made again", int((~whole).sum()), self._path)
                self._places[wanted[~whole]] = 0
                kept[kept] = whole
        return Kept(mask=kept, vectors=rows.view(NUMBERS[width].dtype)[whole].astype(np.float32, copy=False))

    def append(self, ordinals: Int64, vectors: Float32) -> None:
        """Keep these, (n, dim). In float16 only what that holds exactly is kept."""
        with locked(self._path.with_suffix(".appending")):
            dim, width, number = self._prepare(vectors)
            numbers, exact = _narrowed(vectors, width)
            if not exact.all():
                log.warning("%d vectors for %s are no float16 numbers and are not kept", int((~exact).sum()), self._path)
            rows = np.ascontiguousarray(numbers[exact]).view(np.uint8).reshape(-1, dim * width)
            records = np.empty(len(rows), dtype=RECORD)
            records["ordinal"], records["checksum"] = ordinals[exact], _checksums(rows, ordinals[exact])
            _write(self._vectors, rows.reshape(-1), number * dim * width)
            # Only now do they count. A torn record at the end, of a killed writer, is overwritten.
            _write(self._records, records.view(np.uint8), HEADER.size + number * RECORD.itemsize)

    def _prepare(self, vectors: Float32) -> tuple[int, int, int]:
        """Dimensions, bytes of a number and how many vectors there are; starts anew where the header is missing or broken."""
        header = self._read_header()
        if header is None or header[0] != vectors.shape[1]:
            width = self._choose_width(vectors)
            for handle in (self._records, self._vectors):
                os.ftruncate(handle, 0)
            start = HEADER.pack(MAGIC, vectors.shape[1], width, 0)[:-4]
            _write(self._records, np.frombuffer(start + struct.pack("<I", zlib.crc32(start)), dtype=np.uint8), 0)
            return vectors.shape[1], width, 0
        return *header, self._num_records()

    def _choose_width(self, vectors: Float32) -> int:
        if self._dtype == "float32":
            return 4
        if _narrowed(vectors, 2)[1].all():
            return 2
        log.warning("vectors for %s are kept in float32: float16 would round them, and so change rankings", self._path)
        return 4

    def _refresh(self) -> None:
        """Learn what was appended, here or elsewhere, since the last time."""
        header, number = self._read_header(), self._num_records()
        if header != self._header or number < self._seen:  # someone found it broken and started anew
            self._places[:] = 0
            self._header, self._seen = header, 0
        if header is None or number == self._seen:
            return
        found = np.zeros(number - self._seen, dtype=RECORD)
        _read(self._records, found.view(np.uint8), HEADER.size + self._seen * RECORD.itemsize)
        possible = np.flatnonzero(found["ordinal"] < len(self._places))
        ordinals = found["ordinal"][possible]
        self._places[ordinals] = self._seen + possible + 1  # of several, the last counts
        self._checksums[ordinals] = found["checksum"][possible]
        self._seen = number

    def _read_header(self) -> tuple[int, int] | None:
        content = os.pread(self._records, HEADER.size, 0)
        if len(content) < HEADER.size:
            return None
        magic, dim, width, checksum = HEADER.unpack(content)
        if magic == MAGIC and checksum == zlib.crc32(content[:-4]) and dim > 0 and width in NUMBERS:
            return dim, width
        log.warning("%s is damaged: its vectors will be made again", self._path.with_suffix(".records"))
        return None

    def _num_records(self) -> int:
        return max(0, os.fstat(self._records).st_size - HEADER.size) // RECORD.itemsize

    def _read_rows(self, numbers: Int64, size: int) -> NDArray[np.uint8]:
        """(n, size) bytes of these vectors; those that lie one behind the other are read together."""
        rows = np.zeros((len(numbers), size), dtype=np.uint8)
        cuts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        for start, stop in itertools.pairwise(cuts):
            # No memory map: a file that got shorter, or a broken disk, must not end the process.
            _read(self._vectors, rows[start:stop].reshape(-1), int(numbers[start]) * size)
        return rows


def nothing(ordinals: Int64) -> Kept:
    """Where none of these is kept."""
    return Kept(mask=np.zeros(len(ordinals), dtype=bool), vectors=np.empty((0, 0), dtype=np.float32))


def _checksums(rows: NDArray[np.uint8], ordinals: Int64) -> NDArray[np.uint32]:
    """The ordinal goes into the checksum, so that no vector is taken for another's."""
    pairs = zip(rows, ordinals.tolist(), strict=True)
    return np.fromiter((zlib.crc32(row.data, ordinal) for row, ordinal in pairs), dtype=np.uint32, count=len(rows))


def _narrowed(vectors: Float32, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The vectors in numbers of that many bytes, and which of them stayed exactly what they were."""
    with np.errstate(over="ignore"):
        numbers = np.asarray(vectors, dtype=NUMBERS[width].dtype)
    return numbers, np.asarray((numbers == vectors).all(axis=1))


def _write(handle: int, content: NDArray[np.uint8], offset: int) -> None:
    view = content.data
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _read(handle: int, into: NDArray[np.uint8], offset: int) -> None:
    """Fill `into` as far as the file goes."""
    view = into.data
    while view and (got := os.preadv(handle, [view], offset)):
        view, offset = view[got:], offset + got
