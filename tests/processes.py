"""What tests wait for, and what runs below a process of a test."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

# The only limit of a test: a hung program fails it, a busy machine does not. Nothing ever waits that long.
LIMIT_S = 3600


def wait_for(condition: Callable[[], bool]) -> None:
    """Until `condition` holds, asked the more rarely the longer that takes; fails where it never comes."""
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        assert waited_s < LIMIT_S, f"not within {LIMIT_S} s"
        time.sleep(min(max(waited_s / 10, 0.01), 0.1))


def children(pid: int) -> set[int]:
    """Of all its threads; one that ends meanwhile leaves its children to another, so they are looked at twice."""
    found: set[int] = set()
    for task in [*Path(f"/proc/{pid}/task").iterdir(), *Path(f"/proc/{pid}/task").iterdir()]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update(map(int, (task / "children").read_text().split()))
    return found
