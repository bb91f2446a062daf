"""Trackers on this machine, where nothing is sent, so that a delivery is over when it returns: what they share; and
reports.jsonl, which is always written: a line per Report, each once, whoever shares the file."""

import importlib.util
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dr_validate.errors import SetupError
from dr_validate.files import locked
from dr_validate.ledger.reports import of_training, report_to_json
from dr_validate.stages import Tracked, TrackerRun
from dr_validate.tracker.rows import report_id, row
from dr_validate.values import Report, Sweep

log = logging.getLogger(__name__)


class LocalRun:
    """A `TrackerRun` but for `deliver`."""

    is_remote = False

    def settle(self, report: Report) -> bool:
        """What was delivered is there for good."""
        return True

    def close(self, timeout_s: float) -> None:
        """Nothing is open between two deliveries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRow:
    """The numbers of one Report (`report_id` is `key`), as `rows.row` has them, and where they belong: a run of `name` for each
    training run and spec."""

    about: Tracked
    training_run: str
    name: str
    key: str
    numbers: Mapping[str, float]
    at: str


class LocalTracker(ABC):
    """A `Tracker` that writes rows: a choice says how (`write`), and which package that takes (`package`; "" for none)."""

    package: ClassVar[str] = ""

    def check(self) -> None:
        """See `Tracker.check`."""
        if self.package and importlib.util.find_spec(self.package) is None:
            raise SetupError(f"tracker: {self.package} is not installed; pip install {self.package}, or set tracker=none")

    def start(self, about: Tracked) -> TrackerRun:
        """See `Tracker.start`."""
        return _Rows(about, self.write)

    @abstractmethod
    def write(self, told: TrackedRow) -> None:
        """Write one row, unless it is there. Any exception means: later."""

    def log_sweep(self, sweep: Sweep) -> str:
        """See `Tracker.log_sweep`; its table is in sweep.csv alone."""
        return ""


class _Rows(LocalRun):
    """The rows of one watcher."""

    def __init__(self, about: Tracked, write: Callable[[TrackedRow], None]) -> None:
        self._about, self._write = about, write

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Write one row at the checkpoint's training step, unless it is there."""
        about = self._about
        training_run, known = of_training(report, history, about.training_run, about.folder)
        numbers = row(report, known, is_baseline=report.spec not in about.sampled, whole=about.whole)
        self._write(
            TrackedRow(
                about=about,
                training_run=training_run,
                name=f"{about.dataset}-{about.sampler}-{about.spec}",
                key=report_id(report),
                numbers=numbers,
                at=report.at,
            )
        )


class JsonlFile(LocalRun):
    """Appends under a lock on the file itself, so jobs of several specs can share it."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        self._read: dict[tuple[int, int], int] = {}  # by device and inode: how much of the file is known
        self._known: set[str] = set()  # identities of its lines

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Append a line, durably, unless it is there: the process may have died between the line and its receipt."""
        written = report_to_json(report)
        line = (json.dumps(written, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with locked(self.path) as stream:
            size = self._read_on(stream.fileno())
            if _identity(written) not in self._known:
                _append(stream.fileno(), line, size)

    def _read_on(self, handle: int) -> int:
        """The size of the file, which ends in whole lines now; what is in it is known. Reads what came since the last time."""
        state = os.fstat(handle)
        place = (state.st_dev, state.st_ino)
        read = self._read.get(place, 0)
        with self.path.open("rb") as stream:
            stream.seek(max(0, read - 1))
            if read > state.st_size or (read and stream.read(1) != b"\n"):  # cut meanwhile
                read = 0
            if read == 0:
                self._known.clear()
            stream.seek(read)
            content = self._repaired(handle, stream.read(), read)
        self._known.update(_identity(found) for line in content.splitlines() if (found := _parsed(line)) is not None)
        self._read.clear()
        self._read[place] = read + len(content)
        return read + len(content)

    def restore(self, reports: Sequence[Report]) -> None:
        """Take out what is no Report, and append those that are not there, though they were: somebody wrote to the file, or
        removed it, or a part of it."""
        if not reports and not self.path.exists():
            return
        with locked(self.path) as stream:
            self._without_others(stream.fileno())
            self._read_on(stream.fileno())
            lost = [report for report in reports if _identity(report_to_json(report)) not in self._known]
        for report in lost:
            self.deliver(report, reports)
        if lost:
            log.warning(
                "%s lacked %d of the %d Reports of the ledger: they are there again", self.path, len(lost), len(reports)
            )

    def _without_others(self, handle: int) -> None:
        """Leave only lines that are Reports: no reader of the file could use others, which are moved beside it."""
        lines = self._repaired(handle, self.path.read_bytes()).splitlines(keepends=True)
        others = [place for place, line in enumerate(lines) if not _is_report(line)]
        if not others:
            return
        beside = self.path.with_suffix(".removed")
        with beside.open("ab") as stream:
            stream.writelines(lines[place] for place in others)
        start = sum(map(len, lines[: others[0]]))
        tail = b"".join(line for line in lines[others[0] :] if _is_report(line))
        os.ftruncate(handle, start)  # killed before the next line, what follows is restored at the next start
        _append(handle, tail, start)
        self._read.clear()
        told = (self.path, len(others), beside, others[0] + 1)
        log.warning("%s: moved %d lines that are no Report to %s, the first was line %d", *told)

    def _repaired(self, handle: int, content: bytes, start: int = 0) -> bytes:
        """`content`, which the file has from `start` on, ending in whole lines: what a killed process left of its last line is
        cut off."""
        end = content.rfind(b"\n") + 1
        if end == len(content):
            return content
        if _parsed(content[end:]) is not None:  # whole, only the line's end is missing: an editor did that
            os.write(handle, b"\n")
            return content + b"\n"
        log.warning("%s: cut off an unfinished last line of %d bytes", self.path, len(content) - end)
        os.ftruncate(handle, start + end)
        return content[:end]


def _append(handle: int, line: bytes, size: int) -> None:
    try:
        written = 0
        while written < len(line):
            written += os.write(handle, line[written:])
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)  # no half line, even on a full disk
        raise


def _identity(written: dict[str, Any]) -> str:
    # Two names of the same weights are skipped in the same second: the name and the reason tell them apart.
    checkpoint = written.get("checkpoint", {})
    own = [checkpoint.get(key) for key in ("digest", "name")] if isinstance(checkpoint, dict) else []
    return json.dumps([*own, *(written.get(key) for key in ("spec", "status", "at", "error"))])


def _is_report(line: bytes) -> bool:
    checkpoint = (_parsed(line) or {}).get("checkpoint")
    return isinstance(checkpoint, dict) and "digest" in checkpoint


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
