"""Documents in an Arrow file that stays on disk: what is asked for is read, nothing else."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.dataset.manifest import is_sealed
from dr_validate.values import Int64

FORMAT_VERSION = 2  # of the folder, and of how texts are read: it is part of what a test set is
DOCUMENTS = "documents.arrow"
TIE_RANK = "tie_rank.npy"
ID_HASH = "id_hash.npy"
ARROW_MAGIC = b"ARROW1"


class ArrowCorpus:
    """`values.Corpus` over a folder that `convert` wrote; opening it reads the footer of one file.

    Memory is the kernel's page cache: neither ids nor texts are held by this process.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        with pa.memory_map(str(folder / DOCUMENTS)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        self._ids = table.column(0)
        self._texts = table.column(1)
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._ids.chunks)], dtype=np.int64)
        self._tie_rank: Int64 = np.load(folder / TIE_RANK, mmap_mode="r").view(np.ndarray)
        self._id_hash: NDArray[np.uint64] = np.load(folder / ID_HASH, mmap_mode="r").view(np.ndarray)
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

    @property
    def tie_rank(self) -> Int64:
        return self._tie_rank

    @property
    def id_hash(self) -> NDArray[np.uint64]:
        return self._id_hash

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


def is_usable(folder: Path) -> bool:
    """Whether `folder` holds a complete corpus of this format: every file there, as long as it was written, and readable."""
    if not is_sealed(folder, FORMAT_VERSION):
        return False
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
