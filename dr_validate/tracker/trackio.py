"""Trackio, Hugging Face's local tracker: the rows of W&B, a run for each training run and spec, in Trackio's own folder."""

import contextlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from dr_validate.component import component
from dr_validate.errors import Outage, SetupError
from dr_validate.ledger.findings import Find, find_nothing
from dr_validate.ledger.strategies import Sweep
from dr_validate.tracker.rows import REPORT, STEP, allowed, report_id, row, suite_of
from dr_validate.values import Report

CONFIG_KEYS = ("dataset", "sampler", "spec", "documents", "encoded", "queries", "metrics", "top_k", "seed")


@component
class TrackioTracker:
    """Logs to `project` in TRACKIO_DIR, a folder on this machine; nothing leaves it. `trackio show` is its dashboard."""

    project: str = Field(default="dr_validate", pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")

    def examine(self) -> str:
        """What `task=doctor` says. Raises SetupError where the package is not installed."""
        self.check()
        return f"trackio {importlib.metadata.version('trackio')}, project {self.project}"

    def check(self) -> None:
        """See WandbTracker.check."""
        if importlib.util.find_spec("trackio") is None:
            raise SetupError("tracker: trackio is not installed; pip install trackio, or set tracker=none")

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
    ) -> "TrackioRuns":
        """See WandbTracker.start."""
        name = f"{dataset}-{sampler}-{spec}"
        told = allowed(config, CONFIG_KEYS)
        of_suite = suite_of(config)
        return TrackioRuns(project=self.project, training_run=training_run, spec=spec, name=name, config=told, **of_suite)

    def log_sweep(self, sweep: Sweep) -> str:
        """See WandbTracker.log_sweep; its table is in sweep.csv alone."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackioRuns:
    """The runs of one watcher. Each delivery opens its run, asks it what it has, and closes it: nothing waits in between."""

    project: str
    training_run: str  # of checkpoints that name none
    whole: str = ""  # of a suite the mean: see `rows.row`
    members: tuple[str, ...] = ()  # specs of a suite's collections
    spec: str
    name: str
    config: Mapping[str, Any]

    @property
    def is_remote(self) -> bool:
        """See `TrackerRun.is_remote`."""
        return False

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Log one row at the checkpoint's training step, unless it is there."""
        training_run = self._training_run(report)
        name, key = f"{training_run} {self.name}", report_id(report)
        known = [other for other in history if self._training_run(other) == training_run]
        numbers = row(report, known, is_baseline=report.spec not in (self.spec, *self.members), whole=self.whole)
        with _silent():
            import trackio

            if _has(self.project, name, key):
                return
            own = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False, "config": dict(self.config)}
            run = trackio.init(project=self.project, name=name, group=training_run, resume="allow", **own)
            run.log({**numbers, REPORT: key}, step=int(numbers[STEP]))
            trackio.finish()
            if not _has(self.project, name, key):  # which it only warns of
                raise Outage("trackio has not written the row to its database")

    def settle(self, report: Report) -> bool:
        """A row that was logged is in Trackio's database."""
        return True

    def close(self, timeout_s: float) -> None:
        """Nothing is open between two deliveries."""

    def _training_run(self, report: Report) -> str:
        return report.checkpoint.training_run or self.training_run


def _has(project: str, name: str, key: str) -> bool:
    """Whether the run has the row of a Report."""
    from trackio.sqlite_storage import SQLiteStorage  # its public API does not give rows back

    return any(logged.get(REPORT) == key for logged in SQLiteStorage.get_logs(project, name))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Trackio prints on standard output, which is for our tables."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
