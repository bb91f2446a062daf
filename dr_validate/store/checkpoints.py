"""Verified local copies of checkpoints, one folder per digest: leased while in use, the oldest evicted."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pydantic import Field

from dr_validate.component import component
from dr_validate.files import atomic_folder, locked
from dr_validate.values import Checkpoint

Fetch = Callable[[Checkpoint, Path], None]
log = logging.getLogger(__name__)


@component
class CheckpointStore:
    """`<root>/checkpoints/<digest>/`, at most about `max_gib` in all; what is leased stays whatever it weighs.

    A lease is a lock of the kernel's on a file beside the copy: it ends with its holder, however that dies.
    """

    max_gib: float = Field(default=50, gt=0)

    @contextlib.contextmanager
    def lease(self, checkpoint: Checkpoint, fetch: Fetch, root: Path) -> Iterator[Path]:
        """The folder of a copy, fetched if need be, that nobody removes within the block. Raises what `fetch` raises."""
        place = _Place(root, checkpoint.digest)
        while True:
            self.prepare(checkpoint, fetch, root)
            with locked(place.lease_file, shared=True):
                if place.folder.is_dir():  # or else it was evicted between the two lines above
                    os.utime(place.folder)
                    yield place.folder
                    return

    def prepare(self, checkpoint: Checkpoint, fetch: Fetch, root: Path) -> None:
        """Fetch a copy if there is none, for a later lease. Two processes that want the same one fetch it once."""
        place = _Place(root, checkpoint.digest)
        with locked(place.fetch_file):
            if place.folder.is_dir():
                return
            _remove_leftovers(place.folder.parent, but=place)
            try:
                self._fetch(checkpoint, fetch, place)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _evict(place.folder.parent, 0, {place.key}):
                    raise
                log.info("disk full: removed copies that nobody uses, fetching %s again", checkpoint.name)
                self._fetch(checkpoint, fetch, place)
        self.evict(root, keep=[checkpoint.digest])

    def has(self, digest: str, root: Path) -> bool:
        """Whether there is a copy."""
        return _Place(root, digest).folder.is_dir()

    def evict(self, root: Path, keep: Collection[str] = ()) -> list[str]:
        """Remove the copies used longest ago until `max_gib` is kept; never a leased one or the digests in `keep`.

        Returns the names of the folders that are gone.
        """
        return _evict(root / "checkpoints", self.max_gib * 2**30, {_key(digest) for digest in keep})

    def _fetch(self, checkpoint: Checkpoint, fetch: Fetch, place: "_Place") -> None:
        written = 0
        try:
            with atomic_folder(place.folder) as temporary:
                try:
                    fetch(checkpoint, temporary)
                except OSError:
                    written = _size(temporary)
                    raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(place.folder.parent).free
            so_far = f"after {written:,} bytes of {checkpoint.name}; {free:,} bytes are free"
            way_out = "free some, or lower store.max_gib"
            message = f"no space for checkpoints in {place.folder.parent} {so_far}: {way_out} ({error.strerror or error})"
            raise OSError(error.errno, message) from error


class _Place:
    """Where the copy of one digest is, and the locks that go with it; lock files are never removed, so they never race."""

    def __init__(self, root: Path, digest: str) -> None:
        self.key = _key(digest)
        self.folder = root / "checkpoints" / self.key
        self.lease_file = root / "checkpoints" / ".locks" / f"{self.key}.lease"
        self.fetch_file = root / "checkpoints" / ".locks" / f"{self.key}.fetch"


def _key(digest: str) -> str:
    key = digest.replace(":", "-")
    assert key and "/" not in key and not key.startswith("."), f"{digest!r} cannot name a folder"
    return key


def _evict(copies: Path, limit_bytes: float, keep: Collection[str]) -> list[str]:
    sizes = {folder: _size(folder) for folder in _oldest_first(copies)}
    total = sum(sizes.values())
    gone = []
    for folder, size in sizes.items():
        if total <= limit_bytes:
            break
        if folder.name not in keep and _remove_unleased(folder):
            total -= size
            gone.append(folder.name)
            log.info("removed the local copy %s (%.2f GiB)", folder.name, size / 2**30)
    return gone


def _remove_unleased(folder: Path) -> bool:
    with contextlib.suppress(BlockingIOError), locked(_Place(folder.parents[1], folder.name).lease_file, blocking=False):
        hidden = folder.with_name(f".{folder.name}.evicted")  # gone in one step; a kill leaves a leftover, not half a copy
        shutil.rmtree(hidden, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
            return True
    return False


def _remove_leftovers(copies: Path, but: _Place) -> None:
    """Remove what killed processes left: a temporary folder whose fetch lock nobody holds (`but` is held by the caller)."""
    for folder in copies.glob(".*.*"):
        key = folder.name[1:].rpartition(".")[0]
        if key == but.key:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with contextlib.suppress(BlockingIOError), locked(_Place(copies.parent, key).fetch_file, blocking=False):
            shutil.rmtree(folder, ignore_errors=True)


def _oldest_first(copies: Path) -> list[Path]:
    found = []
    for folder in copies.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # another process may evict as well
            found.append((folder.stat().st_mtime_ns, folder))
    return [folder for _, folder in sorted(found)]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total
