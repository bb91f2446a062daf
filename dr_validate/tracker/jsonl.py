"""reports.jsonl: a line per Report, only ever appended to, each Report once, whoever shares the file."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dr_validate.component import component
from dr_validate.files import locked
from dr_validate.ledger.report_json import report_to_json
from dr_validate.tracker.local import LocalRun
from dr_validate.values import Report

log = logging.getLogger(__name__)


@component
class JsonlTracker(LocalRun):
    """Appends under a lock on the file itself, so jobs of several specs can share it."""

    path: Path

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Append a line, durably, unless it is there: the process may have died between the line and its receipt."""
        written = report_to_json(report)
        line = (json.dumps(written, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with locked(self.path) as stream:
            content = self._repaired(stream.fileno())
            if not _holds(content, written):
                _append(stream.fileno(), line, len(content))

    def restore(self, reports: Sequence[Report]) -> None:
        """Append those that are not there, though they were: somebody removed the file, or a part of it."""
        if not reports:
            return
        with locked(self.path) as stream:
            content = self._repaired(stream.fileno())
            written = [
                line for part in content.splitlines() if isinstance((line := _parsed(part) or {}).get("checkpoint"), dict)
            ]
            there = {json.dumps(_identity(line)) for line in written}
            lost = [report for report in reports if json.dumps(_identity(report_to_json(report))) not in there]
        for report in lost:
            self.deliver(report, reports)
        if lost:
            log.warning(
                "%s lacked %d of the %d Reports of the ledger: they are there again", self.path, len(lost), len(reports)
            )

    def _repaired(self, handle: int) -> bytes:
        """The content, ending in whole lines: what a killed process left of its last line is cut off."""
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end == len(content):
            return content
        if _parsed(content[end:]) is not None:  # whole, only the line's end is missing: an editor did that
            os.write(handle, b"\n")
            return content + b"\n"
        log.warning("%s: cut off an unfinished last line of %d bytes", self.path, len(content) - end)
        os.ftruncate(handle, end)
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


def _holds(content: bytes, written: dict[str, Any]) -> bool:
    digest = json.dumps(written["checkpoint"]["digest"]).encode()
    candidates = (_parsed(line) for line in content.splitlines() if digest in line)
    return any(_identity(line) == _identity(written) for line in candidates if line is not None)


def _identity(written: dict[str, Any]) -> tuple[Any, ...]:
    # Two names of the same weights are skipped in the same second: the name and the reason tell them apart.
    checkpoint = written.get("checkpoint", {})
    return checkpoint.get("digest"), checkpoint.get("name"), *(written.get(key) for key in ("spec", "status", "at", "error"))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
