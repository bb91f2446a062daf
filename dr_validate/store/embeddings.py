"""Vectors worth keeping: each document of a checkpoint is encoded once, whatever samples it is in."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from dr_validate.component import fingerprint
from dr_validate.stages import Vectors
from dr_validate.store.kept import KeptVectors, NothingKept
from dr_validate.store.leased_cache import LeasedCache, key_of
from dr_validate.values import Side

FORMAT = 2  # to be raised when encoding changes in this package: older vectors are then not found
RESERVED_SHARE = 0.05  # of the disk, left to everything else ...
RESERVED_BYTES = 2 * 2**30  # ... but no more than this
SHARE_AT_ONCE = 1 / 16  # of the limit, between two looks at the disk and at what other processes keep
log = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(
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
    key = f"{key_of(digest)}-{fingerprint({'format': FORMAT, **terms})}"
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
