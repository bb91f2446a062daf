"""TensorBoard: the rows of W&B as scalars over the training step, a run for each training run and spec."""

import io
import re
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dr_validate.component import UserPath, component
from dr_validate.files import write_atomically
from dr_validate.tracker.local import LocalTracker, Row
from dr_validate.tracker.rows import STEP


@component
class TensorboardTracker(LocalTracker):
    """Writes event files under `dir`; null: tensorboard/ in state_dir. Nothing leaves this machine, no torch is imported."""

    package = "tensorboard"
    dir: UserPath | None = None

    def examine(self) -> str:
        """What `task=doctor` says. Raises SetupError where the package is not installed."""
        self.check()
        return f"tensorboard, event files in {self.dir or 'state_dir/tensorboard'}"

    def write(self, told: Row, state_dir: Path, config: Mapping[str, Any]) -> None:
        """One event file for each Report, named after it, so that it is there once and whole, or not."""
        folder = (self.dir or state_dir / "tensorboard") / _plain(told.training_run) / _plain(told.name)
        if folder.is_dir() and any(folder.glob(f"events.out.tfevents.*.{told.key}")):
            return
        # Readers go through the files in the order of their names, and never back.
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"events.out.tfevents.{time.time_ns():020d}.{told.key}", _events(told.numbers, _at(told.at)))


def _plain(name: str) -> str:
    """A name in the characters of a folder's."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip(".-") or "training"


def _at(told: str) -> float:
    try:
        return datetime.fromisoformat(told).timestamp()
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
