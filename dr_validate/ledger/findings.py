"""What the ledger says of one training under one spec, in the words and tables of the page, for whoever shows them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MAX_ROWS = 1000  # of the newest checkpoints
Cell = str | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Named columns and their rows."""

    columns: tuple[str, ...]
    rows: list[list[Cell]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """`verdict`: what the numbers say; `queries`: how many moved between which checkpoints; "" where there is nothing yet."""

    verdict: str = ""
    queries: str = ""
    tables: Mapping[str, Table] = field(default_factory=dict)


Find = Callable[[str], Findings]
"""From the name of a training run to what is known of it by now."""


def find_nothing(training_run: str) -> Findings:
    """Where there is no ledger to ask."""
    return Findings()
