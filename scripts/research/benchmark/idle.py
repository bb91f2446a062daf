"""Between two waiting checkpoints: how long nothing is encoded, by what the watcher logs and reports."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

VALIDATED = re.compile(r"^(\S+ \S+) INFO +validated ([^:\s]+): ", re.MULTILINE)
BUSY = ("encode", "search")


def idle_and_whole(log: str, reports: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Seconds from one checkpoint to the next: without encoding and searching, and in all. The mean over all but the first,
    None where there is only one.

    From the end of one validation to the end of the next everything counts: recording and delivering the one; copying, loading
    and scoring the other.
    """
    busy = {report["checkpoint"]["name"]: sum(report["seconds"][phase] for phase in BUSY) for report in reports}
    ends = [(datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f"), name) for at, name in VALIDATED.findall(log)]
    wholes = [(end - before).total_seconds() for (before, _), (end, _) in zip(ends, ends[1:], strict=False)]
    if not wholes:
        return None
    idle = [whole - busy[name] for whole, (_, name) in zip(wholes, ends[1:], strict=True)]
    return sum(idle) / len(idle), sum(wholes) / len(wholes)
