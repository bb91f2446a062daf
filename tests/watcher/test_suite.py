"""A checkpoint on several collections: one Report for each and their mean, whatever happens between; the worker is a fake."""

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dr_validate.config import Run, Settings, Watch
from dr_validate.engine.local import LocalEngine
from dr_validate.errors import CheckpointError, Stopped
from dr_validate.fidelity.against_full import AgainstFull
from dr_validate.ledger.ledger import Ledger
from dr_validate.store.checkpoints import CheckpointStore
from dr_validate.tracker.none import NoTracker
from dr_validate.values import Checkpoint, Estimate, Incomplete, Listing, Report
from dr_validate.watcher.loop import Outcome, watch
from tests.processes import wait_for

AT = "2026-11-21T03:15:10Z"
VALUES = {"a": 0.25, "b": 0.5, "c": 0.75}
Behaviour = Callable[[int, str], None]


class Collections:
    """A worker with three collections; `behave(step, name)` may raise what a worker raises."""

    def __init__(self, behave: Behaviour = lambda step, name: None, *, is_sampled: bool = False) -> None:
        self._behave, self._is_sampled = behave, is_sampled
        self.asked: list[tuple[int, str]] = []
        self.held: list[bool] = []  # whether the model was to be held for more, each time
        self.baselines: list[tuple[int, str]] = []

    def start(self, tick: Any) -> Mapping[str, Any]:
        return {"collections": [self._names(name) for name in VALUES]}

    def validate(self, checkpoint: Checkpoint, folder: Path, *, full: bool, tick: Any, collection: int, more: bool) -> Report:
        name = list(VALUES)[collection]
        (self.baselines if full else self.asked).append((checkpoint.step, name))
        self.held.append(more)
        assert folder.is_dir()
        self._behave(checkpoint.step, name)
        value = VALUES[name] - (0.125 if full else 0.0)
        names = self._names(name)
        low, high = (value, value) if full or not self._is_sampled else (value - 0.125, value + 0.125)
        return Report(
            checkpoint=checkpoint,
            dataset=name,
            sampler="full" if full else names["sampler"],
            spec=names["full_spec" if full else "spec"],
            status="done",
            at=AT,
            metrics={"mrr@10": Estimate(value=value, low=low, high=high, naive=high)},
            corpus={"documents": 100, "encoded": 10, "encoded_now": 10, "fraction": 0.1},
            seconds={"total": 1.0},
        )

    def activity(self) -> None:
        """None of its own."""

    def close(self) -> None:
        """Nothing to close."""

    def _names(self, name: str) -> dict[str, Any]:
        spec = f"{name}-sampled" if self._is_sampled else f"{name}-full"
        names = {"spec": spec, "full_spec": f"{name}-full", "dataset": name, "device": "cpu"}
        names |= {"sampler": "random" if self._is_sampled else "full", "dataset_fingerprint": name, "sample_fingerprint": name}
        return {**names, "queries": 1, "documents": 100, "encoded": 10}


class Source:
    """Checkpoints of one file each; `fetched` counts copies."""

    training_run = "t"

    def __init__(self, *steps: int) -> None:
        self.listing = Listing(checkpoints=tuple(map(checkpoint, steps)))
        self.fetched: list[int] = []

    def identity(self) -> Mapping[str, Any]:
        return {}

    def list(self, state_dir: Path) -> Listing:
        return self.listing

    def fetch(self, wanted: Checkpoint, into: Path) -> None:
        self.fetched.append(wanted.step)
        (into / "model.safetensors").write_text(wanted.digest)

    def still_has(self, wanted: Checkpoint) -> bool:
        return wanted in self.listing.checkpoints


def checkpoint(step: int) -> Checkpoint:
    name, digest = f"checkpoint-{step}", f"sha256:{step:064x}"
    about = {"step": step, "step_from": "folder name", "created_at": AT, "uri": name}
    return Checkpoint(name=name, version=name, digest=digest, **about)  # type: ignore[arg-type]  # of many types


class Validation:
    """`watch` with a source of its own, as often as it is started."""

    def __init__(self, state_dir: Path, monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
        self.state_dir, self._monkeypatch, self.source = state_dir, monkeypatch, source

    def run(self, worker: Collections, baseline: str = "off", **watch_settings: Any) -> Outcome:
        self._monkeypatch.setattr("dr_validate.watcher.loop.WorkerClient", lambda raw, hub: worker)
        return watch(self._run(baseline, {"mode": "once", "order": "oldest_first", "max_attempts": 1, **watch_settings}))

    def _run(self, baseline: Any, watch_settings: Mapping[str, Any]) -> Run:
        others: Any = dict.fromkeys(("encoder", "sampler", "index", "dataset"), None)
        source: Any = self.source
        run = Run(
            engine=LocalEngine(),
            settings=Settings(state_dir=self.state_dir, metrics=("mrr@10",)),
            watch=Watch(**watch_settings),
            source=source,
            store=CheckpointStore(),
            fidelity=AgainstFull(baseline=baseline),
            tracker=NoTracker(),
            raw={},
            **others,
        )
        object.__setattr__(run, "members", {name: run for name in VALUES})
        return run

    def reports(self) -> dict[str, list[tuple[int, str, float | None]]]:
        """Of each collection, and of the mean: step, status and value."""
        with Ledger(self.state_dir / "ledger.db") as ledger:
            found: dict[str, list[tuple[int, str, float | None]]] = {}
            for spec, description in ledger.specs().items():
                for one in ledger.reports(spec):
                    value = one.metrics["mrr@10"].value if one.metrics else None
                    key = f"{description['dataset']}{' full' if description['baseline'] else ''}"
                    found.setdefault(key, []).append((one.checkpoint.step, one.status, value))
            return found


@pytest.fixture
def validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Validation:
    return Validation(tmp_path, monkeypatch, Source(100, 200))


def test_a_checkpoint_goes_through_all_collections_before_the_next_with_one_copy_and_one_model(validation: Validation) -> None:
    worker = Collections()
    outcome = validation.run(worker)
    assert worker.asked == [(step, name) for step in (100, 200) for name in VALUES]
    assert worker.held == [True, True, False] * 2
    assert sorted(validation.source.fetched) == [100, 200]
    assert outcome.exit_code == 0 and outcome.target is not None and outcome.target.dataset == "mean"
    expected = {name: [(100, "done", value), (200, "done", value)] for name, value in {**VALUES, "mean": 0.5}.items()}
    assert validation.reports() == expected


def test_a_second_start_does_nothing_again(validation: Validation) -> None:
    validation.run(Collections())
    before = validation.reports()
    again = Collections()
    assert validation.run(again).exit_code == 0
    assert again.asked == [] and validation.reports() == before


def test_a_collection_that_fails_costs_its_own_report_and_that_mean(
    validation: Validation, caplog: pytest.LogCaptureFixture
) -> None:
    def behave(step: int, name: str) -> None:
        if (step, name) == (100, "b"):
            raise CheckpointError("vectors hold NaN or Inf")

    assert validation.run(Collections(behave)).exit_code == 1
    assert validation.reports() == {
        "a": [(100, "done", 0.25), (200, "done", 0.25)],
        "b": [(100, "failed", None), (200, "done", 0.5)],
        "c": [(100, "done", 0.75), (200, "done", 0.75)],
        "mean": [(100, "failed", None), (200, "done", 0.5)],
    }
    assert "failed checkpoint-100: no mean, for 1 of its collections failed: b: vectors hold NaN or Inf" in caplog.messages
    worker = Collections()
    assert validation.run(worker, retry_failed=True).exit_code == 0
    assert worker.asked == [(100, "b")]
    assert [part[:2] for part in validation.reports()["mean"]] == [(100, "done"), (200, "done")]


@pytest.mark.parametrize("died_at", [(100, "a"), (100, "b"), (200, "c")])
def test_what_was_stopped_in_the_middle_goes_on_there(validation: Validation, died_at: tuple[int, str]) -> None:
    def behave(step: int, name: str) -> None:
        if (step, name) == died_at:
            raise Stopped

    first = Collections(behave)
    validation.run(first)
    second = Collections()
    validation.run(second)
    everything = [(step, name) for step in (100, 200) for name in VALUES]
    assert first.asked + second.asked == sorted([*everything, died_at])
    assert [len(found) for found in validation.reports().values()] == [2] * 4


def test_a_mean_that_is_missing_is_made_up_for(validation: Validation) -> None:
    """The watcher was killed between the last collection and the mean; or a suite is made of what ran alone before."""
    validation.run(Collections())
    with Ledger(validation.state_dir / "ledger.db") as ledger:
        (mean,) = [spec for spec, description in ledger.specs().items() if "members" in description]
    with sqlite3.connect(validation.state_dir / "ledger.db") as connection:
        connection.execute("DELETE FROM deliveries")
        connection.execute("DELETE FROM reports WHERE spec = ?", (mean,))
        connection.execute("DELETE FROM states WHERE spec = ?", (mean,))
    again = Collections()
    validation.run(again)
    assert again.asked == [] and validation.reports()["mean"] == [(100, "done", 0.5), (200, "done", 0.5)]


def test_baselines_of_all_collections_give_one_of_the_mean_and_its_agreement(validation: Validation) -> None:
    worker = Collections(is_sampled=True)
    validation.run(worker, baseline="always")
    assert worker.baselines == [(step, name) for step in (100, 200) for name in VALUES]
    found = validation.reports()
    assert found["mean"] == [(100, "done", 0.5), (200, "done", 0.5)]
    assert found["mean full"] == [(100, "done", 0.375), (200, "done", 0.375)]
    with Ledger(validation.state_dir / "ledger.db") as ledger:
        (full,) = [s for s, told in ledger.specs().items() if told["dataset"] == "mean" and told["baseline"]]
        agreement = ledger.reports(full)[-1].agreement
    assert agreement is not None and agreement.checkpoints == 2 and agreement.bias == 0.125


def test_what_is_incomplete_is_skipped_once_for_each_collection_and_the_mean(validation: Validation) -> None:
    half = Incomplete(name="checkpoint-300", uri="x", step=300, lacks="model.safetensors")
    validation.source.listing = Listing(checkpoints=validation.source.listing.checkpoints, incomplete=(half,))
    validation.run(Collections())
    validation.run(Collections())
    assert {name: found[-1] for name, found in validation.reports().items()} == dict.fromkeys(
        (*VALUES, "mean"), (300, "skipped", None)
    )
    assert [len(found) for found in validation.reports().values()] == [3] * 4


def test_a_checkpoint_that_has_begun_is_not_overtaken_on_its_other_collections(validation: Validation) -> None:
    validation.source.listing = Listing(checkpoints=(checkpoint(100),))
    over = validation.state_dir / "over"
    over.touch()

    def behave(step: int, name: str) -> None:
        if (step, name) == (100, "a"):
            validation.source.listing = Listing(checkpoints=(checkpoint(100), checkpoint(200)))
            wait_for(lambda: checkpoint(200).digest in CheckpointStore().digests(validation.state_dir))

    worker = Collections(behave)
    validation.run(worker, mode="follow", order="newest_first", skip="stale", poll_s=0.01, stop_file=over)
    assert worker.asked == [(step, name) for step in (100, 200) for name in VALUES]
    assert validation.reports()["mean"] == [(100, "done", 0.5), (200, "done", 0.5)]
