"""reports.jsonl: a line per Report, appended to, each Report once, whoever shares the file."""

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
        """Take out what is no Report, and append those that are not there, though they were: somebody wrote to the file, or
        removed it, or a part of it."""
        if not reports and not self.path.exists():
            return
        with locked(self.path) as stream:
            content = self._without_others(stream.fileno(), self._repaired(stream.fileno()))
            there = {json.dumps(_identity(line)) for part in content.splitlines() if (line := _parsed(part)) is not None}
            lost = [report for report in reports if json.dumps(_identity(report_to_json(report))) not in there]
        for report in lost:
            self.deliver(report, reports)
        if lost:
            log.warning(
                "%s lacked %d of the %d Reports of the ledger: they are there again", self.path, len(lost), len(reports)
            )

    def _without_others(self, handle: int, content: bytes) -> bytes:
        """The content without lines that are no Report, which no reader of the file could use; they are moved beside it."""
        lines = content.splitlines(keepends=True)
        others = [place for place, line in enumerate(lines) if not _is_report(line)]
        if not others:
            return content
        beside = self.path.with_suffix(".removed")
        with beside.open("ab") as stream:
            stream.writelines(lines[place] for place in others)
        start = sum(map(len, lines[: others[0]]))
        tail = b"".join(line for line in lines[others[0] :] if _is_report(line))
        os.ftruncate(handle, start)  # killed before the next line, what follows is restored at the next start
        _append(handle, tail, start)
        log.warning(
            "%s: moved %d lines that are no Report to %s, the first was line %d", self.path, len(others), beside, others[0] + 1
        )
        return content[:start] + tail

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


def _is_report(line: bytes) -> bool:
    checkpoint = (_parsed(line) or {}).get("checkpoint")
    return isinstance(checkpoint, dict) and "digest" in checkpoint


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
