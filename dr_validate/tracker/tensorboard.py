"""TensorBoard: the rows of W&B as scalars over the training step, a run for each training run and spec."""

import io
import re
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dr_validate.component import UserPath, component
from dr_validate.files import write_atomically
from dr_validate.tracker.local import LocalTracker, TrackedRow
from dr_validate.tracker.rows import STEP

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.(\d+)\.\w+$")  # when it was written, the step, the Report


@component
class TensorboardTracker(LocalTracker):
    """Writes event files under `dir`; null: tensorboard/ in state_dir. Nothing leaves this machine, no torch is imported."""

    package = "tensorboard"
    dir: UserPath | None = None

    def examine(self) -> str:
        """What `task=doctor` says. Raises SetupError where the package is not installed."""
        self.check()
        return f"tensorboard, event files in {self.dir or 'state_dir/tensorboard'}"

    def write(self, told: TrackedRow) -> None:
        """One event file for each Report, named after it, so that it is there once and whole, or not."""
        folder = (self.dir or told.about.state_dir / "tensorboard") / _plain(told.training_run) / _plain(told.name)
        if folder.is_dir() and any(folder.glob(f"events.out.tfevents.*.{told.key}")):
            return
        known = sorted(
            _Written(int(name[1]), int(name[2]), path) for path in folder.glob("*") if (name := NAME.match(path.name))
        )
        folder.mkdir(parents=True, exist_ok=True)
        # Readers go through the files in the order of their names, and never back.
        time_ns = max(time.time_ns(), *(one.time_ns + 1 for one in known), 0)
        mine = _event(told)
        path = folder / f"events.out.tfevents.{time_ns:020d}.{mine.step}.{told.key}"
        again = {one: one.row() for one in known if one.step >= mine.step}
        tags = {value.tag for value in mine.summary.value}
        if not any(row.step > mine.step and tags & {value.tag for value in row.summary.value} for row in again.values()):
            write_atomically(path, _file([mine]))
            return
        # What comes after a later step, in a value of the same name, makes TensorBoard forget that step: so it is told again.
        rows = sorted([*again.values(), mine], key=lambda row: row.step)  # of equal steps the newest last
        write_atomically(path, _file(rows, starts_at=mine.step))
        for one, row in again.items():  # which may have been telling others again
            write_atomically(one.path, _file([row]))


@dataclass(frozen=True, slots=True, order=True)
class _Written:
    """An event file of ours: when it was written, and of which step its own row is."""

    time_ns: int
    step: int
    path: Path

    def row(self) -> "Event":
        """Its own row is the last one of its step; those of later steps were told again."""
        return [event for event in _events(self.path.read_bytes()) if event.HasField("summary") and event.step == self.step][-1]


def _plain(name: str) -> str:
    """A name in the characters of a folder's."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip(".-") or "training"


def _event(told: TrackedRow) -> "Event":
    """A scalar for each number."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    try:
        at = datetime.fromisoformat(told.at).timestamp()
    except ValueError:
        at = time.time()
    values = [Summary.Value(tag=key, simple_value=value) for key, value in told.numbers.items() if key != STEP]
    return Event(wall_time=at, step=int(told.numbers[STEP]), summary=Summary(value=values))


def _file(rows: "Sequence[Event]", starts_at: int | None = None) -> bytes:
    """An event file: its version, then one event for each row. `starts_at`: what was told of this step and later ones, before
    this file, is void."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.record_writer import RecordWriter

    at = rows[0].wall_time
    events = [Event(wall_time=at, file_version="brain.Event:2")]
    if starts_at is not None:
        # Twice: the first start that a reader meets voids nothing.
        events += [Event(wall_time=at, step=starts_at, session_log=SessionLog(status=SessionLog.START))] * 2
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in [*events, *rows]:
        writer.write(event.SerializeToString())
    return stream.getvalue()


def _events(content: bytes) -> "Iterator[Event]":
    """Of a file: each record is its length, a checksum of that, the event, and a checksum."""
    from tensorboard.compat.proto.event_pb2 import Event

    place = 0
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        yield Event.FromString(content[place + 12 : place + 12 + size])
        place += 16 + size
