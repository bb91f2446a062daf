"""A folder of folders, one for each key: leased while in use, removed when nobody uses them, the oldest first."""

import contextlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from dr_validate.files import locked

log = logging.getLogger(__name__)


class LeasedCache:
    """`<root>/<key>/` for each key, and `<root>/.locks/`; lock files are never removed, so they never race.

    A lease is a lock of the kernel's on a file beside the folder: it ends with its holder, however that dies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        """Where the folder of this key is, or would be."""
        return self.root / key

    def lock_file(self, key: str, purpose: str) -> Path:
        """A file to lock for `purpose`; `lease` is the one that keeps the folder from being removed."""
        return self.root / ".locks" / f"{key}.{purpose}"

    @contextlib.contextmanager
    def lease(self, key: str) -> Iterator[Path]:
        """Nobody removes the folder within the block, whether it is there yet or not; several may hold a lease."""
        with locked(self.lock_file(key, "lease"), shared=True):
            yield self.folder(key)

    def used(self, key: str) -> None:
        """Note that the folder is in use now: what was used longest ago goes first."""
        os.utime(self.folder(key))

    def sizes(self) -> dict[str, int]:
        """Bytes by key, the folder used longest ago first."""
        found = []
        for folder in self.root.glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):  # another process may evict as well
                found.append((folder.stat().st_mtime_ns, folder))
        return {folder.name: folder_size(folder) for _, folder in sorted(found)}

    def evict(self, limit_bytes: float, keep: Collection[str] = (), order: Sequence[str] | None = None) -> list[str] | None:
        """Remove the folders used longest ago until `limit_bytes` is kept; never a leased one or the keys in `keep`.

        With `order` only its keys, its first one first, and nothing where all of them would not be enough: then the answer is
        None. Returns the keys of the folders that are gone.
        """
        for leftover in self.root.glob(".*.evicted"):  # of a removal that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        sizes = self.sizes()
        total = sum(sizes.values())
        if order is not None and total - sum(sizes.get(key, 0) for key in order) > limit_bytes:
            return None
        gone = []
        for key in sizes if order is None else order:
            if total <= limit_bytes:
                break
            if key not in keep and self.remove(key):
                total -= sizes.get(key, 0)
                gone.append(key)
                log.info("removed %s/%s (%.2f GiB)", self.root.name, key, sizes.get(key, 0) / 2**30)
        return gone

    def remove(self, key: str) -> bool:
        """Remove a folder unless it is leased; whether it was removed."""
        folder = self.folder(key)
        with contextlib.suppress(BlockingIOError), locked(self.lock_file(key, "lease"), blocking=False):
            hidden = folder.with_name(f".{folder.name}.evicted")  # gone in one step; a kill leaves a leftover, not half a copy
            shutil.rmtree(hidden, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)
                return True
        return False


def folder_size(folder: Path) -> int:
    """Bytes of the files in it."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total
