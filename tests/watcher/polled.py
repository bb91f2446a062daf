"""A source that rotates, fails, hangs and lies, and the thread that polls it."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import Run, Settings, Watch
from dr_validate.errors import CheckpointDeleted
from dr_validate.files import check_interrupt
from dr_validate.store.checkpoints import CheckpointStore
from dr_validate.values import Checkpoint, Listing
from dr_validate.watcher import schedule
from dr_validate.watcher.polling import SourcePoller
from dr_validate.watcher.schedule import Needs
from tests.processes import LIMIT_S

KIB = 2**10


def checkpoint(step: int, size: int = KIB) -> Checkpoint:
    name = f"checkpoint-{step}"
    return Checkpoint(
        name=name,
        version=name,
        digest=f"sha256:{step:04x}",
        step=step,
        step_from="x",
        created_at="x",
        uri=f"/out/{name}",
        num_bytes=size,
    )


class Source:
    """Holds what `there` says; what fetching a step does is in `trouble`."""

    def __init__(self, *steps: int) -> None:
        self.there = [checkpoint(step) for step in steps]
        self.trouble: dict[int, Exception | threading.Event] = {}
        self.list_trouble: Exception | threading.Event | None = None
        self.fetched: list[int] = []
        self.is_listing = False

    training_run = "t"

    def identity(self) -> dict[str, Any]:
        return {"source": "fake"}

    def list(self, state_dir: Path) -> Listing:
        if isinstance(self.list_trouble, Exception):
            raise self.list_trouble
        while self.list_trouble is not None and not self.list_trouble.wait(0.005):
            self.is_listing = True
            check_interrupt()
        return Listing(checkpoints=tuple(self.there), save_steps=100)

    def fetch(self, one: Checkpoint, into: Path) -> None:
        self.fetched.append(one.step)
        trouble = self.trouble.get(one.step)
        if isinstance(trouble, Exception):
            raise trouble
        while trouble is not None and not trouble.wait(0.005):  # as between two chunks
            (into / "half").write_bytes(b"w")
            check_interrupt()
        if one.digest not in {c.digest for c in self.there}:
            raise CheckpointDeleted(f"{one.name} was deleted before it could be copied")
        (into / "model.safetensors").write_bytes(b"w" * one.num_bytes)

    def still_has(self, one: Checkpoint) -> bool:
        return one in self.there


@dataclasses.dataclass
class Polled:
    poller: SourcePoller
    source: Source
    state_dir: Path
    validated: set[str]

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            self.poller.wait(self.poller.changes, 0.05)
            assert time.monotonic() < end, "waited too long"

    def poll(self) -> None:
        asked = self.poller.poll_again()
        self.until(lambda: self.poller.has_answered(asked))

    def copies(self) -> list[int]:
        store = CheckpointStore()
        return [c.step for c in store.taken(self.poller.source_key, self.state_dir)]

    def exist(self) -> list[int]:
        return [c.step for c in self.poller.listing.checkpoints]


@contextlib.contextmanager
def polled(
    state_dir: Path,
    source: Any,
    *,
    max_gib: float = 1,
    mode: Any = "follow",
    poll_s: float = 3600,
    timeout_s: float = 0,
    others: Sequence[str] = (),
    done: Sequence[str] = (),
) -> Iterator[Polled]:
    """A poller that polls when it is asked to; newest first; the digests in `done` need no copy any more."""
    validated = set(done)

    def needs(listing: Listing) -> Needs:
        left = [c for c in schedule.unique(listing) if c.digest not in validated]
        return Needs(order=left[::-1], others=others)

    nothing: Any = dict.fromkeys(("dataset", "encoder", "sampler", "engine", "index", "fidelity", "tracker"), None)
    parts: Any = {"source": source, "store": CheckpointStore(max_gib=max_gib), **nothing}
    run = Run(
        settings=Settings(state_dir=state_dir), watch=Watch(poll_s=poll_s, mode=mode, timeout_s=timeout_s), raw={}, **parts
    )
    with SourcePoller(run, needs) as poller:
        yield Polled(poller, source, state_dir, validated)
