"""What runs below a process of a test."""

import contextlib
from pathlib import Path


def children(pid: int) -> set[int]:
    """Of all its threads; one that ends meanwhile leaves its children to another, so they are looked at twice."""
    found: set[int] = set()
    for task in [*Path(f"/proc/{pid}/task").iterdir(), *Path(f"/proc/{pid}/task").iterdir()]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update(map(int, (task / "children").read_text().split()))
    return found
