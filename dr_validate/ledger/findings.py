"""What the ledger says for whoever shows it: of one training under one spec, and at the end of a sweep."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dr_validate.component import fingerprint

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """A row: one job, its best checkpoint's value, and how well its sample of `documents` stood in for the corpus.

    What it costs is the number of `documents` for a checkpoint, of which `encoded` over all checkpoints were not kept from an
    earlier job; `seconds` depend on what else the machine did.
    `tau_low`, `tau_high`: 95%; `covered`: in how many of `with_interval` checkpoints the full value lies in the interval.
    """

    strategy: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    naive: float | None
    tau: float | None
    tau_low: float | None
    tau_high: float | None
    rmse: float | None
    bias: float | None
    regret: float | None
    checkpoints: int | None
    covered: int | None
    with_interval: int | None
    documents: int | None
    encoded: int
    seconds: float
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What the summary run is about; `group` as for the validation runs of the sweep ("" for that of the training run)."""

    training_run: str
    group: str
    dataset: str
    specs: tuple[str, ...]
    strategies: tuple[SweepRow, ...]
    state_dir: Path

    @property
    def run_id(self) -> str:
        """The same for the same specs of the same training: a repeated sweep resumes it."""
        return fingerprint({"training_run": self.training_run, "sweep": sorted(set(self.specs))})

    @property
    def key(self) -> str:
        """Changes with the table."""
        return fingerprint({"rows": [dataclasses.asdict(one) for one in self.strategies]})
