"""Vectors worth keeping: each document of a checkpoint is encoded once, whatever samples it is in, and by one process.

Read where they are kept, made and kept where they are not; locks on ranges of ordinals say who encodes which right now.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.component import fingerprint
from dr_validate.devices import Landing, to_device
from dr_validate.files import name_of_digest, write_atomically
from dr_validate.stages import Encode, Kept, Vectors
from dr_validate.store.leased_cache import LeasedCache
from dr_validate.store.vector_file import RECORD, VectorFile, nothing
from dr_validate.values import Float32, Int64, Side

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
FORMAT = 2  # to be raised when encoding changes in this package: older vectors are then not found
RESERVED_SHARE = 0.05  # of the disk, left to everything else ...
RESERVED_BYTES = 2 * 2**30  # ... but no more than this
SHARE_AT_ONCE = 1 / 16  # of the limit, between two looks at the disk and at what other processes keep
LOCKED_TOGETHER = 256  # ordinals to a lock: 2,048 documents in 1% of a corpus take 800 locks, about a millisecond


@contextlib.contextmanager
def open_vectors(
    cache: LeasedCache,
    digest: str,
    terms: Mapping[str, Any],
    counts: Mapping[Side, int],
    max_gib: float,
    dtype: str,
    baseline: bool,
) -> Iterator[Vectors]:
    """See `CheckpointStore.vectors`. `cache` has a folder for each (checkpoint, encoder contract, test set).

    What was used longest ago goes first; what is in use never does, and takes no more once the limit is reached. A baseline
    removes nothing: it keeps its vectors where there is room for all of them, and else none. Where the disk does not let us,
    nothing is kept, which is logged.
    """
    key = f"{name_of_digest(digest)}-{fingerprint({'format': FORMAT, **terms})}"
    with contextlib.ExitStack() as stack:
        vectors: Vectors = NothingKept()
        if max_gib == 0:
            cache.evict(0)
        else:
            try:
                folder = stack.enter_context(cache.lease(key))
                folder.mkdir(parents=True, exist_ok=True)
                cache.used(key)
                room = _Room(cache, max_gib * 2**30, evicts=not baseline)
                room.take(0)  # the limit may be lower than it was
                kept = KeptVectors(folder, counts, dtype=dtype, take=room.take, whole=baseline)
                vectors = stack.enter_context(contextlib.closing(kept))
            except OSError as error:
                log.warning("vectors are not kept: %s", error)
        try:
            yield vectors
        finally:
            with contextlib.suppress(OSError):
                cache.used(key)


class _Room:
    """How much one user of the store may still keep, as far as the limit, the other users and the disk allow."""

    def __init__(self, cache: LeasedCache, limit: float, *, evicts: bool) -> None:
        self._cache, self._limit, self._evicts = cache, limit, evicts
        self._left = -1.0

    def take(self, size: int) -> bool:
        """Set this many bytes aside; what was used longest ago makes room. False where there is none."""
        if size > self._left:
            disk = shutil.disk_usage(self._cache.root)
            reserved = min(RESERVED_SHARE * disk.total, RESERVED_BYTES)
            allowed = min(self._limit, sum(self._cache.sizes().values()) + disk.free - reserved)
            if self._evicts:
                self._cache.evict(allowed - size)
            self._left = min(allowed - sum(self._cache.sizes().values()), max(size, self._limit * SHARE_AT_ONCE))
        if size > self._left:
            return False
        self._left -= size
        return True


class NothingKept:
    """The `Vectors` protocol where nothing is to be kept."""

    def look(self, side: Side, ordinals: Int64) -> Kept:
        """Nothing."""
        return nothing(ordinals)

    def get(self, side: Side, ordinals: Int64, encode: Encode, device: str = "cpu", kept: Kept | None = None) -> "Tensor":
        """All of them made."""
        import torch

        return torch.as_tensor(encode(np.arange(len(ordinals))), device=device)

    def contract(self, read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """As it is read now."""
        return read()


class KeptVectors:
    """The `Vectors` protocol over one folder; `get` for one thread. `take(num_bytes)` says whether there is room for more.

    New vectors are written behind: copied into one of two buffers while the device goes on, and written by a thread, which
    lets go of their lock. A kill costs those of two slices at most, and makes none wrong. No error of the disk passes: vectors
    that cannot be read are made, and after one that cannot be kept none is. With `whole`, nothing is begun that has no room for
    all documents.
    """

    def __init__(
        self, folder: Path, counts: Mapping[Side, int], *, dtype: str, take: Callable[[int], bool], whole: bool = False
    ) -> None:
        self._folder, self._counts, self._take, self._whole = folder, counts, take, whole
        self._full = self._reserved = False
        with contextlib.ExitStack() as stack:
            self._files = {
                side: stack.enter_context(contextlib.closing(VectorFile(folder / side, count, dtype)))
                for side, count in counts.items()
            }
            self._locks = {
                side: stack.enter_context(contextlib.closing(RangeLocks(folder / f"{side}.claims"))) for side in counts
            }
            self._resources = stack.pop_all()
        self._landings = deque([Landing(), Landing()])
        self._behind: deque[tuple[Side, Int64, Future[None]]] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="vectors")

    def close(self) -> None:
        """Let go of the files, when everything is written."""
        with self._resources, self._writer:
            self.settle()

    def settle(self) -> None:
        """Wait until everything is written."""
        while self._behind:
            self._behind.popleft()[2].result()

    def look(self, side: Side, ordinals: Int64) -> Kept:
        """See `Vectors.look`."""
        try:
            return self._files[side].read(ordinals)
        except OSError as error:
            self._stop_keeping(error)
            return nothing(ordinals)

    def get(self, side: Side, ordinals: Int64, encode: Encode, device: str = "cpu", kept: Kept | None = None) -> "Tensor":
        """See `Vectors.get`. What another process encodes at this moment is waited for; nothing is encoded twice."""
        import torch

        locks, parts = self._locks[side], []

        def found(positions: Int64, kept: Kept) -> Int64:
            """Take what is kept of these; returns those that are missing."""
            if kept.mask.any():
                parts.append((positions[kept.mask], to_device(kept.vectors, device)))
            return positions[~kept.mask]

        def made(positions: Int64) -> "Tensor":
            vectors = torch.as_tensor(encode(positions), device=device)
            parts.append((positions, vectors))
            return vectors

        missing = found(np.arange(len(ordinals)), kept or self.look(side, ordinals))
        while len(missing) and not self._full:
            self._settle(side, ordinals[missing])
            ours = locks.take(ordinals[missing])
            taken = ordinals[missing[ours]]
            try:
                rest = found(missing[ours], self.look(side, taken))  # finished by another just before
                fresh = made(rest) if len(rest) else None
            except BaseException:
                locks.release(taken)
                raise
            if fresh is None:
                locks.release(taken)
            else:
                self._write_behind(side, ordinals[rest], fresh, taken)
            missing = missing[~ours]
            if len(missing):
                locks.wait(ordinals[missing])
                missing = found(missing, self.look(side, ordinals[missing]))
        if len(missing):
            made(missing)
        return _joined(parts, len(ordinals), device)

    def contract(self, read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """See `Vectors.contract`."""
        path = self._folder / "contract.json"
        with contextlib.suppress(OSError, ValueError):
            if isinstance(found := json.loads(path.read_bytes()), dict):
                return found
        contract = read()
        try:
            write_atomically(path, json.dumps(contract, indent=2) + "\n")
        except OSError as error:
            self._stop_keeping(error)
        return contract

    def _write_behind(self, side: Side, ordinals: Int64, vectors: "Tensor", taken: Int64) -> None:
        """Have vectors kept, and then the lock let go; waits only where two slices are behind already."""
        if len(self._behind) == len(self._landings):
            self._behind.popleft()[2].result()
        landing = self._landings[0].fill(vectors)
        self._landings.rotate()

        def write() -> None:
            try:
                self._keep(side, ordinals, landing.array())
            finally:
                self._locks[side].release(taken)

        self._behind.append((side, ordinals, self._writer.submit(write)))

    def _settle(self, side: Side, ordinals: Int64) -> None:
        """Wait for what is being written of these."""
        while any(side == other and np.isin(ordinals, others).any() for other, others, _ in self._behind):
            self._behind.popleft()[2].result()

    def _keep(self, side: Side, ordinals: Int64, vectors: Float32) -> None:
        finite = np.isfinite(vectors).all(axis=1)  # a checkpoint that has others fails, but may be tried again
        if self._full or not finite.any():
            return
        try:
            if self._has_room(side, vectors):
                self._files[side].append(ordinals[finite], vectors[finite])
            else:
                log.warning("no room for more vectors in %s: those that follow are not kept", self._folder)
                self._full = True
        except OSError as error:
            self._stop_keeping(error)

    def _has_room(self, side: Side, vectors: Float32) -> bool:
        if not self._whole or side == "query":
            return self._take(vectors.nbytes)
        if not self._reserved:
            number = self._counts[side] - self._files[side].num_kept
            self._reserved = self._take(number * (vectors.shape[1] * vectors.itemsize + RECORD.itemsize))
        return self._reserved

    def _stop_keeping(self, error: OSError) -> None:
        if not self._full:
            log.warning("vectors are no longer kept in %s: %s", self._folder, error)
        self._full = True


def _joined(parts: Sequence[tuple[Int64, "Tensor"]], number: int, device: str) -> "Tensor":
    """(number, dim) of vectors and their positions, which are all from 0 on."""
    import torch

    if len(parts) == 1:  # in their order
        return parts[0][1]
    joined = torch.empty((number, parts[0][1].shape[1] if parts else 0), device=device)
    for positions, vectors in parts:
        joined[to_device(positions, device)] = vectors
    return joined


class RangeLocks:
    """Locks of the kernel's on ranges of a file: they end with their holder, however that dies.

    They belong to this object (open file description locks): two of them in one process exclude each other as well.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._held: Counter[int] = Counter()  # times that we took it, by range
        self._lock = threading.Lock()

    def take(self, ordinals: Int64) -> NDArray[np.bool_]:
        """Which of these are ours until they are released; the others are being encoded elsewhere. Never waits."""
        ranges, place = np.unique(ordinals // LOCKED_TOGETHER, return_inverse=True)
        return np.array([self._try(int(number)) for number in ranges], dtype=bool)[place]

    def release(self, ordinals: Int64) -> None:
        """Let go of ordinals that one `take` gave, all of them; from any thread."""
        with self._lock:
            for number in np.unique(ordinals // LOCKED_TOGETHER).tolist():
                self._held[number] -= 1  # the border of two slices is in a range of both
                if not self._held[number]:
                    self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, number)

    def wait(self, ordinals: Int64) -> None:
        """Until nobody else holds what was held of these when this was called. Not for what is held here."""
        for number in np.unique(ordinals // LOCKED_TOGETHER):
            self._set(fcntl.F_OFD_SETLKW, fcntl.F_RDLCK, int(number))
            self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, int(number))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)

    def _try(self, number: int) -> bool:
        with self._lock:
            if not self._held[number]:
                try:
                    self._set(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, number)
                except BlockingIOError:
                    return False
            self._held[number] += 1
            return True

    def _set(self, command: int, kind: int, number: int) -> None:
        # struct flock on 64-bit Linux: type, whence, start, length, process id (0 for this kind of lock).
        fcntl.fcntl(self._handle, command, struct.pack("hhqqi0q", kind, os.SEEK_SET, number, 1, 0))
