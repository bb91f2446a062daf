"""What trackers on this machine share: nothing is sent, so a delivery is over when it returns."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dr_validate.errors import SetupError
from dr_validate.ledger.findings import Find, Sweep, find_nothing
from dr_validate.ledger.reports import of_training
from dr_validate.stages import TrackerRun
from dr_validate.tracker.rows import report_id, row, suite_of
from dr_validate.values import Report


class LocalRun:
    """A `TrackerRun` but for `deliver`."""

    @property
    def is_remote(self) -> bool:
        """See `TrackerRun.is_remote`."""
        return False

    def settle(self, report: Report) -> bool:
        """What was delivered is there for good."""
        return True

    def close(self, timeout_s: float) -> None:
        """Nothing is open between two deliveries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The numbers of one Report (`report_id` is `key`), as `rows.row` has them, and where they belong: a run of `name` for each
    training run and spec."""

    training_run: str
    name: str
    key: str
    numbers: Mapping[str, float]
    at: str


class LocalTracker(ABC):
    """A `Tracker` that writes rows: a choice says how (`write`), and which package that takes (`package`; "" for none)."""

    package: ClassVar[str] = ""

    def check(self) -> None:
        """See WandbTracker.check."""
        if self.package and importlib.util.find_spec(self.package) is None:
            raise SetupError(f"tracker: {self.package} is not installed; pip install {self.package}, or set tracker=none")

    def start(
        self,
        *,
        state_dir: Path,
        training_run: str,
        spec: str,
        dataset: str,
        sampler: str,
        config: Mapping[str, Any],
        find: Find = find_nothing,
    ) -> TrackerRun:
        """See WandbTracker.start."""
        name = f"{dataset}-{sampler}-{spec}"
        own = {"training_run": training_run, "spec": spec, "name": name, **suite_of(config)}
        return _Rows(**own, write=lambda told: self.write(told, state_dir, config))

    @abstractmethod
    def write(self, told: Row, state_dir: Path, config: Mapping[str, Any]) -> None:
        """Write one row, unless it is there. Any exception means: later."""

    def log_sweep(self, sweep: Sweep) -> str:
        """See WandbTracker.log_sweep; its table is in sweep.csv alone."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows(LocalRun):
    """The rows of one watcher."""

    training_run: str  # of checkpoints that name none
    whole: str = ""  # of a suite the mean: see `rows.row`
    members: tuple[str, ...] = ()  # specs of a suite's collections
    spec: str
    name: str
    write: Callable[[Row], None]

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Write one row at the checkpoint's training step, unless it is there."""
        training_run, known = of_training(report, history, self.training_run)
        numbers = row(report, known, is_baseline=report.spec not in (self.spec, *self.members), whole=self.whole)
        self.write(Row(training_run=training_run, name=self.name, key=report_id(report), numbers=numbers, at=report.at))
