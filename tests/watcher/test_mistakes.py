"""Whose mistake it is: the run's, which ends with one message, or a checkpoint's own; and whose Report, of equal weights."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dr_validate.config import Settings, Watch
from dr_validate.errors import CheckpointDeleted, CheckpointError, NotStated, SetupError
from dr_validate.ledger.ledger import Ledger
from dr_validate.values import Checkpoint, Estimate, Listing, Report
from dr_validate.watcher.attempts import Attempts, warn_of_another_spec
from dr_validate.watcher.schedule import Target

TARGET = Target(dataset="d", sampler="random", spec="s", sampled_spec="s", full_spec="f")
AT = "2026-11-21T03:12:00Z"


def checkpoint(name: str, digest: str = "", folder: str = "/runs/a/output", training_run: str = "") -> Checkpoint:
    content = digest or f"sha256:{name}"
    place: dict[str, Any] = {"uri": f"{folder}/{name}", "training_run": training_run}
    return Checkpoint(name=name, version=name, digest=content, step=1, step_from="", created_at=AT, **place)


def done(one: Checkpoint, spec: str = "s") -> Report:
    exact = Estimate(value=0.5, low=0.5, high=0.5, naive=0.5)
    numbers: dict[str, Any] = {"corpus": {"encoded": 1}, "seconds": {"total": 1.0}, "metrics": {"mrr@10": exact}}
    return Report(checkpoint=one, dataset="d", sampler="random", spec=spec, status="done", at=AT, **numbers)


class Parts:
    """Stands for a run, its store, its poller, its fidelity and a worker that does or raises what it is told."""

    def __init__(self, state_dir: Path) -> None:
        self.settings, self.watch = Settings(state_dir=state_dir), Watch()
        self.store = self.fidelity = self.source = self
        self.training_run = ""
        self.answer: Exception | None = None

    @contextlib.contextmanager
    def lease(self, digest: str, state_dir: Path) -> Iterator[Path]:
        yield state_dir

    def weights_sha256(self, digest: str, state_dir: Path) -> str:
        return ""

    def failure(self, one: Checkpoint) -> None:
        return None

    def fetch_seconds(self, one: Checkpoint) -> float:
        return 0.0

    def compare(self, *args: Any) -> None:
        return None

    def validate(self, one: Checkpoint, folder: Path, *, full: bool, tick: Any) -> Report:
        if self.answer is not None:
            raise self.answer
        return done(one, "f" if full else "s")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def parts(tmp_path: Path) -> Any:
    return Parts(tmp_path)


@pytest.fixture
def attempts(parts: Any, ledger: Ledger) -> Attempts:
    return Attempts(parts, ledger, parts, parts, lambda: AT)


def no_tick(progress: Any) -> None:
    pass


def test_what_is_not_stated_ends_the_run_and_burns_no_attempt(attempts: Attempts, parts: Any, ledger: Ledger) -> None:
    parts.answer = NotStated("set encoder.pooling")
    with pytest.raises(SetupError, match="c1: set encoder.pooling"):
        attempts.validate(checkpoint("c1"), TARGET, no_tick)
    assert ledger.reports("s") == []
    assert [(state.state, state.attempts) for state in ledger.states("s")] == [("waiting", 0)]


def test_once_a_checkpoint_has_been_validated_it_is_the_next_one_s_own_failure(
    attempts: Attempts, parts: Any, ledger: Ledger
) -> None:
    attempts.validate(checkpoint("c1"), TARGET, no_tick)
    parts.answer = NotStated("set encoder.pooling")
    report = attempts.validate(checkpoint("c2"), TARGET, no_tick)
    assert report is not None
    assert (report.status, report.error) == ("failed", "set encoder.pooling")


def test_a_failure_of_another_kind_is_the_first_checkpoint_s_own(attempts: Attempts, parts: Any) -> None:
    parts.answer = CheckpointError("no weights")
    report = attempts.validate(checkpoint("c1"), TARGET, no_tick)
    assert report is not None
    assert report.status == "failed"
    parts.answer = NotStated("set encoder.pooling")
    with pytest.raises(SetupError):  # a failed one shows nothing of how it pools
        attempts.validate(checkpoint("c2"), TARGET, no_tick)


def test_what_was_deleted_before_it_could_be_copied_is_said_once(
    attempts: Attempts, parts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parts.answer = CheckpointDeleted("it was deleted")
    report = attempts.validate(checkpoint("c1"), TARGET, no_tick)
    assert report is not None
    attempts.skip(report.checkpoint, TARGET, str(report.error))  # as on all collections
    assert caplog.messages.count("skipped c1: it was deleted") == 1


def listed(*found: Checkpoint) -> Listing:
    return Listing(checkpoints=found)


A1, A2 = checkpoint("checkpoint-100", "sha256:a1"), checkpoint("checkpoint-200", "sha256:a2")
ELSEWHERE = "/runs/b/output"


@pytest.mark.parametrize(
    "here",
    [
        [checkpoint("checkpoint-100", "sha256:b1", ELSEWHERE)],
        [checkpoint("checkpoint-300", "sha256:b3", ELSEWHERE)],
        # Both began with the same weights.
        [checkpoint("checkpoint-100", "sha256:a1", ELSEWHERE), checkpoint("checkpoint-200", "sha256:b2", ELSEWHERE)],
    ],
    ids=["other weights", "other steps", "same beginning"],
)
def test_a_second_training_without_a_name_is_refused(attempts: Attempts, ledger: Ledger, here: list[Checkpoint]) -> None:
    for one in (A1, A2):
        ledger.finish(done(one))
    with pytest.raises(SetupError) as caught:
        attempts.refuse_another_training(listed(*here), TARGET)
    for part in ("/runs/a/output", ELSEWHERE, "set another state_dir", "source.name="):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "here",
    [
        [],
        [A2, checkpoint("checkpoint-300", "sha256:a3")],
        [checkpoint("checkpoint-300", "sha256:a3")],
        [checkpoint("checkpoint-200", "sha256:a2", ELSEWHERE), checkpoint("checkpoint-300", "sha256:a3", ELSEWHERE)],
        [checkpoint("checkpoint-100", "sha256:b1", ELSEWHERE, training_run="b")],
    ],
    ids=["nothing yet", "goes on", "rotated", "moved", "named"],
)
def test_the_same_training_and_one_with_a_name_are_welcome(attempts: Attempts, ledger: Ledger, here: list[Checkpoint]) -> None:
    for one in (A1, A2):
        ledger.finish(done(one))
    attempts.refuse_another_training(listed(*here), TARGET)


def test_what_was_never_complete_says_nothing_of_a_training(attempts: Attempts, ledger: Ledger) -> None:
    attempts.skip(checkpoint("checkpoint-100", "incomplete:checkpoint-100"), TARGET, "incomplete: no weights")
    attempts.refuse_another_training(listed(checkpoint("checkpoint-100", "sha256:b1", ELSEWHERE)), TARGET)


MADE = {"seed": 13, "metrics": ("mrr@10",), "sampler": {"choice": "stratified", "pool": ("shipped",)}}


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ({"sample_fingerprint": "of a run"}, "the runs that the sampler takes are others"),
        ({"dataset_fingerprint": "of other files", "sample_fingerprint": "of a run"}, "the files of the collection are others"),
        ({"made": {**MADE, "seed": 14}, "sample_fingerprint": "of another seed"}, ""),
        ({"dataset": "another", "dataset_fingerprint": "of another"}, ""),
        ({}, ""),  # another encoder, which is stated and meant
        ({"spec": "s", "sample_fingerprint": "of a run"}, ""),  # there were rows of this one already
    ],
)
def test_a_file_that_is_another_one_at_the_next_start_is_told_with_both_specs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, then: dict[str, Any], said: str
) -> None:
    names = {"dataset": "d", "made": MADE, "dataset_fingerprint": "of files", "sample_fingerprint": "of bm25", "spec": "s"}
    with Ledger(tmp_path / "ledger.db") as ledger:
        before = {**names, "spec": "before", **then}
        ledger.register_spec(before["spec"], {**before, "baseline": False}, AT)
        ledger.register_spec("f", {**before, "spec": "f", "baseline": True}, AT)
        warn_of_another_spec(ledger, TARGET, names)
    assert said in caplog.text and ("spec s now, before then" in caplog.text) is bool(said)


def told(ledger: Ledger) -> list[tuple[str, str, str, str | None]]:
    """In the order in which it was told."""
    reports = [report for _, report in ledger.undelivered("nobody", ["s"])]
    return [(one.checkpoint.training_run, one.checkpoint.name, one.status, one.error) for one in reports]


def test_a_copy_takes_no_result_away_from_the_checkpoint_that_has_it(attempts: Attempts, ledger: Ledger) -> None:
    ledger.finish(done(A2))
    best = checkpoint("best", A2.digest)
    for _ in range(2):
        attempts.skip_same_weights(listed(best, A1, A2), TARGET)
    assert told(ledger) == [("", A2.name, "done", None), ("", "best", "skipped", f"same weights as {A2.name}")]


def test_of_equal_weights_without_a_report_the_first_is_validated(attempts: Attempts, ledger: Ledger) -> None:
    attempts.skip_same_weights(listed(A1, A2, checkpoint("last", A2.digest)), TARGET)
    assert told(ledger) == [("", "last", "skipped", f"same weights as {A2.name}")]


def test_the_weights_of_one_that_was_rotated_away_are_not_passed_over_in_silence(attempts: Attempts, ledger: Ledger) -> None:
    ledger.finish(done(A1))
    attempts.skip_same_weights(listed(checkpoint("checkpoint-300", A1.digest)), TARGET)
    assert told(ledger)[1:] == [("", "checkpoint-300", "skipped", f"same weights as {A1.name}")]


def test_two_more_trainings_that_began_with_the_same_weights_are_told_so(parts: Any, ledger: Ledger) -> None:
    for run in ("a", "b", "c"):
        one = checkpoint("checkpoint-0", "sha256:0", f"/runs/{run}", training_run=run)
        if run == "a":
            ledger.finish(done(one))
        Attempts(parts, ledger, parts, parts, lambda: AT).skip_same_weights(listed(one), TARGET)
    same = "same weights as checkpoint-0 of a"
    assert told(ledger)[1:] == [(run, "checkpoint-0", "skipped", same) for run in ("b", "c")]


@pytest.mark.parametrize(
    "now",
    [
        checkpoint("checkpoint-100", A1.digest, training_run="a"),
        checkpoint("checkpoint-100", A1.digest, ELSEWHERE),
    ],
    ids=["named since", "moved"],
)
def test_one_that_is_named_or_moved_after_it_was_validated_is_the_same(
    attempts: Attempts, ledger: Ledger, now: Checkpoint
) -> None:
    ledger.finish(done(A1))
    attempts.skip_same_weights(listed(now), TARGET)
    assert told(ledger) == [("", A1.name, "done", None)]
