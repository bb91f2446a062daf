"""What tests wait for, and what runs below a process of a test."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

# The only limit of a test: a hung program fails it, a busy machine does not. Nothing ever waits that long.
LIMIT_S = 3600


def wait_for(condition: Callable[[], bool], between_s: float = 0.02) -> None:
    """Until `condition` holds; fails where that never comes."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"not within {LIMIT_S} s"
        time.sleep(between_s)


def children(pid: int) -> set[int]:
    """Of all its threads; one that ends meanwhile leaves its children to another, so they are looked at twice."""
    found: set[int] = set()
    for task in [*Path(f"/proc/{pid}/task").iterdir(), *Path(f"/proc/{pid}/task").iterdir()]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update(map(int, (task / "children").read_text().split()))
    return found


def is_alive(pid: int) -> bool:
    """Whether any of its threads has not ended yet."""
    states = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    return any(state != "Z" for state in states)
