"""Has work come to a halt? Seen from outside, by what it says of its progress and by what its processes do."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dr_validate.errors import TimedOut

LOOK_EVERY_S = 5.0
MAX_STEP_S = 30.0  # of one look: while this process was stopped itself, it saw nothing
BUSY_SHARE = 0.02  # of the limit, in seconds of processors: what a process that only waits does not come to
BUSY_BYTES = 1 << 20  # read or written within the limit: more than tries to reach a server come to

Activity = tuple[float, int]
"""Seconds of processors, and bytes read and written, since processes began."""


class StallLimit:
    """Ends work that has not moved for `limit_s` (None or 0: never), whatever its phase.

    Work that counts documents moves when the count does, for a device that hangs keeps a processor busy. All else, and all
    work `on_processors`, moves as well while its processes compute, read or write: a corpus that is read, BM25, an index that
    is trained.
    """

    def __init__(self, limit_s: float | None, activity: Callable[[], Activity | None]) -> None:
        """`activity`: of the processes that work, or None where that cannot be known, which counts as moving."""
        self._limit_s, self._activity, self.on_processors = limit_s, activity, False
        self.begin("start")

    def begin(self, phase: str) -> None:
        """New work, which moves now."""
        self._phase, self._counted = phase, False
        self._progress: Mapping[str, Any] | None = None
        self._still_s, self._looked_at, self._sampled_at = 0.0, time.monotonic(), 0.0
        self._before: Activity | None = None

    def look(self, progress: Mapping[str, Any] | None) -> None:
        """Called all the time, with news or None. Raises TimedOut that names the phase and the key."""
        if not self._limit_s:
            return
        now = time.monotonic()
        self._still_s += min(now - self._looked_at, MAX_STEP_S)
        self._looked_at = now
        if progress is not None and dict(progress) != self._progress:
            self._progress, self._phase, self._counted = dict(progress), str(progress["phase"]), progress["total"] > 0
            self._moved()
        elif (self.on_processors or not self._counted) and now - self._sampled_at >= LOOK_EVERY_S:
            self._sampled_at = now
            if self._is_busy(self._limit_s):
                self._moved()
        if self._still_s >= self._limit_s:
            way_out = "raise it for work that is that slow, or set it to 0 for no limit"
            raise TimedOut(f"no progress for watch.stall_timeout_s={self._limit_s:g} in phase {self._phase!r}; {way_out}")

    def _moved(self) -> None:
        self._still_s, self._before = 0.0, None

    def _is_busy(self, limit_s: float) -> bool:
        """Whether enough was done since the last movement."""
        if (now := self._activity()) is None:
            return True
        before = self._before
        if before is None or now[0] < before[0] or now[1] < before[1]:  # one of several processes has ended
            self._before = now
            return False
        return now[0] - before[0] >= BUSY_SHARE * limit_s or now[1] - before[1] >= BUSY_BYTES


def activity_of(pid: int) -> Activity | None:
    """Of a process and those that it has started and that live; None where the system does not tell."""
    if sys.platform != "linux" or not Path(f"/proc/{pid}/stat").exists():
        return None
    seconds, count = 0.0, 0
    for one in _tree(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            numbers = dict(line.split(": ") for line in Path(f"/proc/{one}/io").read_text().splitlines())
            count += sum(int(numbers[name]) for name in ("rchar", "wchar", "read_bytes", "write_bytes"))
    return seconds, count


def _tree(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *(below for child in children for below in _tree(child))]
