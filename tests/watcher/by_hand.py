"""A watcher's surroundings by hand: a worker that does as it is told, and a source of small files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import Run, Settings, Watch
from dr_validate.engine.local import LocalEngine
from dr_validate.fidelity.against_full import AgainstFull
from dr_validate.store.checkpoints import CheckpointStore
from dr_validate.tracker.none import NoTracker
from dr_validate.values import Checkpoint, Estimate, Listing, Report
from dr_validate.watcher.worker_process import Activity

AT = "2026-11-21T03:15:10Z"
Behaviour = Callable[[Checkpoint, Callable[[Mapping[str, Any] | None], None]], None]


class FakeWorker:
    """In place of the worker process: `behave` may raise what a worker raises, or let time pass and tell of it."""

    def __init__(self, behave: Behaviour) -> None:
        self._behave = behave
        self.asked: list[int] = []

    def start(self, tick: Any) -> Mapping[str, Any]:
        names = {"spec": "s1", "full_spec": "s1", "dataset": "vaswani", "sampler": "full", "device": "cpu"}
        return {**names, "queries": 1, "documents": 1, "encoded": 1, "dataset_fingerprint": "d", "sample_fingerprint": "f"}

    def validate(self, checkpoint: Checkpoint, folder: Path, *, full: bool, tick: Any) -> Report:
        self.asked.append(checkpoint.step)
        self._behave(checkpoint, tick)
        return self.done(checkpoint)

    def done(self, checkpoint: Checkpoint) -> Report:
        """What it hands over."""
        return Report(
            checkpoint=checkpoint,
            dataset="vaswani",
            sampler="full",
            spec="s1",
            status="done",
            at=AT,
            metrics={"mrr@10": Estimate(value=0.5, low=0.5, high=0.5, naive=0.5)},
            corpus={"encoded": 1},
            seconds={"total": 1.0},
        )

    def activity(self) -> Activity | None:
        """None of its own."""
        return 0.0, 0

    def close(self) -> None:
        """Nothing to close."""


class FakeSource:
    """Checkpoints of one file each."""

    training_run = "t"

    def __init__(self, steps: Sequence[int]) -> None:
        self.listing = Listing(checkpoints=tuple(map(checkpoint, steps)))

    def identity(self) -> Mapping[str, Any]:
        return {}

    def list(self, state_dir: Path) -> Listing:
        return self.listing

    def fetch(self, wanted: Checkpoint, into: Path) -> None:
        (into / "model.safetensors").write_text(wanted.digest)

    def still_has(self, wanted: Checkpoint) -> bool:
        return wanted in self.listing.checkpoints


def checkpoint(step: int) -> Checkpoint:
    name = f"checkpoint-{step}"
    return Checkpoint(
        name=name, version=name, digest=f"sha256:{step:064x}", step=step, step_from="folder name", created_at=AT, uri=name
    )


def run_of(state_dir: Path, steps: Sequence[int], **watch_settings: Any) -> Run:
    source: Any = FakeSource(steps)
    others: Any = dict.fromkeys(("dataset", "encoder", "sampler", "index"), None)
    return Run(
        engine=LocalEngine(),
        settings=Settings(state_dir=state_dir),
        watch=Watch(**{"mode": "once", **watch_settings}),
        source=source,
        store=CheckpointStore(),
        fidelity=AgainstFull(baseline="off"),
        tracker=NoTracker(),
        raw={},
        **others,
    )
