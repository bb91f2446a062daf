"""What was read of files that have not changed since: what makes polling checkpoints again cheap."""

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from dr_validate.files import sha256_of_file, write_atomically

T = TypeVar("T")
Stamp = tuple[int, int, int, int]  # size, mtime, ctime, inode; ctime also moves where a copy keeps the old mtime

MAX_UNFINISHED = 1_000  # folders
MAX_REMEMBERED = 50_000  # files, for each function
SETTLED_NS = 200_000_000  # the clock of a file system may stand still for some milliseconds: two writes with one stamp
REST_POLLS, REST_S = 3, 10.0  # polls, and the time between the first and the last of them
LONG_REST_S = 120.0  # since the last change by the file system's clock: one poll is enough


class ChangedMeanwhile(OSError):
    """A file was written to while it was read."""


class Digests:
    """SHA-256 by path and stamp; `with` reads what is remembered of `place`, and writes it back where it grew or shrank."""

    def __init__(self, state_dir: Path, place: Path) -> None:
        key = hashlib.sha256(str(place.absolute()).encode()).hexdigest()[:16]
        self.file = state_dir / "digests" / f"{key}.json"
        self._old: dict[str, list[object]] = {}
        self._new: dict[str, list[object]] = {}

    def __enter__(self) -> "Digests":
        try:
            known = json.loads(self.file.read_bytes())
        except (FileNotFoundError, ValueError):
            known = {}  # a damaged memory costs one more reading of the files
        self._old = known if isinstance(known, dict) else {}
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        if kind is None and self._new != self._old:
            # Where it cannot be written (task=status of somebody else's state_dir) files are read again the next time.
            with contextlib.suppress(OSError):
                write_atomically(self.file, json.dumps(self._new))

    def knows(self, path: Path) -> bool:
        """Whether the file is as it was when it was hashed."""
        return self._known(path, stamp(path)) is not None

    def of(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Hex SHA-256 of each file, by the same names. Raises ChangedMeanwhile."""
        return {name: self._of_file(path) for name, path in files.items()}

    def _of_file(self, path: Path) -> str:
        before = stamp(path)
        digest = self._known(path, before) or sha256_of_file(path)
        if stamp(path) != before:
            raise ChangedMeanwhile(f"{path.name} is being written")
        self._new[str(path.absolute())] = [*before, digest]
        return digest

    def _known(self, path: Path, now: Stamp) -> str | None:
        known = self._old.get(str(path.absolute()))
        is_same = isinstance(known, list) and known[:-1] == list(now) and isinstance(known[-1], str)
        return str(known[-1]) if known and is_same else None


def by_stamp(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """Decorate a function of one file: its answer, or the ValueError that it raised, is remembered while the file is unchanged.

    In this process; answers are to be small.
    """
    known: dict[str, tuple[Stamp, T | ValueError]] = {}

    @functools.wraps(read)
    def remembered(path: Path) -> T:
        before = stamp(path)
        found = known.pop(str(path), None)
        if found is None or found[0] != before:
            is_settled = time.time_ns() - max(before[1], before[2]) > SETTLED_NS
            try:
                found = before, read(path)
            except ValueError as error:
                found = before, error
            if not is_settled or stamp(path) != before:
                return _given(found[1])
        known[str(path)] = found  # last, as the one used last
        if len(known) > MAX_REMEMBERED:
            known.pop(next(iter(known)))
        return _given(found[1])

    return remembered


def _given(answer: T | ValueError) -> T:
    if isinstance(answer, ValueError):
        raise answer.with_traceback(None)
    return answer


def stamp(path: Path) -> Stamp:
    """What changes with every write to a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def is_at_rest(folder: Path) -> bool:
    """Whether nothing in the folder changes any more: it has not for two minutes, or not between several polls of this process
    (whose clock cannot be set back). Copies that keep old times do not count as old."""
    what = tuple((str(path), stamp(path)) for path in (folder, *sorted(folder.rglob("*"))) if path.exists())
    if time.time() - max(max(one[1], one[2]) for _, one in what) / 1e9 >= LONG_REST_S:
        return True
    now = time.monotonic()
    before = _sights.pop(str(folder), None)
    sight = (what, now, 1) if before is None or before[0] != what else (what, before[1], before[2] + 1)
    _sights[str(folder)] = sight  # last, as the one polled last
    if len(_sights) > MAX_UNFINISHED:
        _sights.pop(next(iter(_sights)))
    return sight[2] >= REST_POLLS and now - sight[1] >= REST_S


_sights: dict[str, tuple[tuple[tuple[str, Stamp], ...], float, int]] = {}
