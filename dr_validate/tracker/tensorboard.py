"""TensorBoard: the rows of W&B as scalars over the training step, a run for each training run and spec."""

import importlib.util
import io
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dr_validate.component import UserPath, component
from dr_validate.errors import SetupError
from dr_validate.files import write_atomically
from dr_validate.ledger.findings import Find, find_nothing
from dr_validate.ledger.strategies import Sweep
from dr_validate.tracker.rows import STEP, report_id, row, suite_of
from dr_validate.values import Report


@component
class TensorboardTracker:
    """Writes event files under `dir`; null: tensorboard/ in state_dir. Nothing leaves this machine, no torch is imported."""

    dir: UserPath | None = None

    def examine(self) -> str:
        """What `task=doctor` says. Raises SetupError where the package is not installed."""
        self.check()
        return f"tensorboard, event files in {self.dir or 'state_dir/tensorboard'}"

    def check(self) -> None:
        """See WandbTracker.check."""
        if importlib.util.find_spec("tensorboard") is None:
            raise SetupError("tracker: tensorboard is not installed; pip install tensorboard, or set tracker=none")

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
    ) -> "EventFiles":
        """See WandbTracker.start."""
        folder = self.dir or state_dir / "tensorboard"
        of_suite = suite_of(config)
        return EventFiles(folder=folder, training_run=training_run, spec=spec, name=f"{dataset}-{sampler}-{spec}", **of_suite)

    def log_sweep(self, sweep: Sweep) -> str:
        """See WandbTracker.log_sweep; its table is in sweep.csv alone."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFiles:
    """The event files of one watcher: one for each Report, named after it, so that it is there once and whole, or not."""

    folder: Path
    training_run: str  # of checkpoints that name none
    whole: str = ""  # of a suite the mean: see `rows.row`
    members: tuple[str, ...] = ()  # specs of a suite's collections
    spec: str
    name: str

    @property
    def is_remote(self) -> bool:
        """See `TrackerRun.is_remote`."""
        return False

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Write one Report's numbers, at the checkpoint's training step, unless they are there."""
        training_run = self._training_run(report)
        folder = self.folder / _plain(training_run) / _plain(self.name)
        key = report_id(report)
        if folder.is_dir() and any(folder.glob(f"events.out.tfevents.*.{key}")):
            return
        known = [other for other in history if self._training_run(other) == training_run]
        numbers = row(report, known, is_baseline=report.spec not in (self.spec, *self.members), whole=self.whole)
        # Readers go through the files in the order of their names, and never back.
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"events.out.tfevents.{time.time_ns():020d}.{key}", _events(numbers, _at(report)))

    def settle(self, report: Report) -> bool:
        """A file that was written is there for good."""
        return True

    def close(self, timeout_s: float) -> None:
        """Nothing is open between two deliveries."""

    def _training_run(self, report: Report) -> str:
        return report.checkpoint.training_run or self.training_run


def _plain(name: str) -> str:
    """A name in the characters of a folder's."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip(".-") or "training"


def _at(report: Report) -> float:
    try:
        return datetime.fromisoformat(report.at).timestamp()
    except ValueError:
        return time.time()


def _events(numbers: Mapping[str, float], at: float) -> bytes:
    """An event file: its version, then one event with a scalar for each number."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers.items() if key != STEP]
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    writer.write(Event(wall_time=at, file_version="brain.Event:2").SerializeToString())
    writer.write(Event(wall_time=at, step=int(numbers[STEP]), summary=Summary(value=values)).SerializeToString())
    return stream.getvalue()
