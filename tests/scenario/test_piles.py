"""Checkpoints come a hundred at a time, faster than they can be validated: what each order does with the pile."""

import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tests.processes import LIMIT_S, wait_for

PILE = 100
Report = Mapping[str, Any]


class Piles:
    """A watcher over a folder in which a first pile lies; the second one waits beside it."""

    def __init__(self, command_line: Any, checkpoints: Path, collection: Path, *overrides: str) -> None:
        self._command_line, self._checkpoints = command_line, checkpoints
        self.log_file = command_line.folder / "watcher.log"
        arguments = [f"source.path={checkpoints}", "dataset=beir", f"dataset.path={collection}", "sampler=full"]
        arguments += ["tracker=none", "metrics=[mrr@10]", "encoder.pooling=mean", "encoder.normalize=true", "device=cpu"]
        command_line.environment["OMP_NUM_THREADS"] = "1"
        with self.log_file.open("w") as log:
            self.process = command_line.start(*arguments, "watch.poll_s=0.2", *overrides, stdout=log, stderr=log)

    def __enter__(self) -> "Piles":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def reports(self) -> list[Report]:
        found: list[Report] = self._command_line.reports()
        return found

    def done(self) -> list[int]:
        """Steps in the order in which they were validated."""
        return [report["checkpoint"]["step"] for report in self.reports if report["status"] == "done"]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        wait_for(lambda: self.process.poll() is not None or condition())
        assert self.process.poll() is None, self.log_file.read_text()

    def add_second_pile(self) -> None:
        """The newest first, so that no look finds a newest one that is not the newest."""
        for step in range(2 * PILE, PILE, -1):
            name = f"checkpoint-{step}"
            (self._checkpoints.parent / "later" / name).rename(self._checkpoints / name)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(LIMIT_S) == 0, self.log_file.read_text()


@pytest.fixture(scope="module")
def two_piles(tmp_path_factory: pytest.TempPathFactory, write_checkpoint: Callable[..., Path]) -> Path:
    """Folders `checkpoints` and `later` with a hundred small checkpoints each, no two with the same weights."""
    root = tmp_path_factory.mktemp("piles")
    first = write_checkpoint(root / "first")
    with safe_open(first / "model.safetensors", "pt") as stream:
        weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # no mapping
    name = next(iter(sorted(weights)))
    for step in range(1, 2 * PILE + 1):
        folder = root / ("checkpoints" if step <= PILE else "later") / f"checkpoint-{step}"
        shutil.copytree(first, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file({**weights, name: weights[name] + step / 1000}, folder / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture
def start(two_piles: Path, tmp_path: Path, collection: Path, dr_validate: Any) -> Iterator[Callable[..., Piles]]:
    """`start(overrides)`: a watcher on piles of its own."""
    shutil.copytree(two_piles, tmp_path / "piles", copy_function=shutil.copyfile)
    yield lambda *overrides: Piles(dr_validate, tmp_path / "piles" / "checkpoints", collection, *overrides)


def test_newest_first_turns_to_what_is_newest_now(start: Callable[..., Piles]) -> None:
    with start("watch.order=newest_first") as piles:
        piles.wait_for(lambda: len(piles.done()) >= 2)
        piles.add_second_pile()
        piles.wait_for(lambda: sum(step > PILE for step in piles.done()) >= 3)
        piles.end()
        done = piles.done()
    turn = next(place for place, step in enumerate(done) if step > PILE)
    assert done[:turn] == list(range(PILE, PILE - turn, -1)) and turn >= 2
    assert done[turn:] == list(range(2 * PILE, 2 * PILE - len(done[turn:]), -1))


def test_oldest_first_keeps_to_the_order_of_the_training(start: Callable[..., Piles]) -> None:
    with start("watch.order=oldest_first") as piles:
        piles.wait_for(lambda: len(piles.done()) >= 2)
        piles.add_second_pile()
        before = len(piles.done())
        piles.wait_for(lambda: len(piles.done()) >= before + 3)
        piles.end()
        assert piles.done() == list(range(1, len(piles.done()) + 1))


def test_stale_ones_are_skipped_and_each_is_told_what_overtook_it(start: Callable[..., Piles]) -> None:
    with start("watch.skip=stale") as piles:
        piles.wait_for(lambda: piles.done() == [PILE])
        piles.add_second_pile()
        piles.wait_for(lambda: len(piles.reports) >= 2 * PILE)
        piles.end()
        assert piles.done() == [PILE, 2 * PILE]
        skipped = {r["checkpoint"]["step"]: r["error"] for r in piles.reports if r["status"] == "skipped"}
        assert len(piles.reports) == 2 * PILE and len(skipped) == 2 * PILE - 2
        said = piles.log_file.read_text()
    for step, reason in skipped.items():
        newest = PILE if step < PILE else 2 * PILE
        assert reason == f"stale: overtaken by checkpoint-{newest} at step {newest}"
        assert said.count(f"skipped checkpoint-{step}: {reason}\n") == 1
