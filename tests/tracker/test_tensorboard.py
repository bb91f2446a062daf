"""TensorBoard's own reader finds the rows of W&B, each Report once."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dr_validate.stages import TrackerRun
from dr_validate.tracker.rows import STEP, row
from dr_validate.tracker.tensorboard import TensorboardTracker
from dr_validate.values import Report
from tests.factories import told as report


def started(state_dir: Path) -> TrackerRun:
    names: dict[str, Any] = {"training_run": "ours/run 1", "spec": "s1", "dataset": "vaswani", "sampler": "random"}
    return TensorboardTracker().start(state_dir=state_dir, config={}, **names)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each event by tag, as `tensorboard --logdir` reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader: Any = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_rows_are_scalars_over_the_training_step_each_report_once(tmp_path: Path) -> None:
    reports: list[Report] = [report(500), report(1000), report(700, spec="full"), report(900, error="broken")]
    for _ in range(2):  # the second time as after a restart that lost its receipts
        tracker = started(tmp_path)
        for one in reports:
            tracker.deliver(one, reports)
            assert tracker.settle(one)
        tracker.close(1)
    folder = tmp_path / "tensorboard" / "ours-run-1" / "vaswani-random-s1"
    found = scalars(folder)
    for one, is_baseline in ((reports[0], False), (reports[2], True), (reports[3], False)):
        for key, value in row(one, reports, is_baseline=is_baseline).items():
            if key != STEP:
                assert dict(found[key])[one.checkpoint.step] == pytest.approx(value, rel=1e-6), key
    assert [step for step, _ in found["val/vaswani/mrr@10"]] == [500, 1000]
    assert [step for step, _ in found["full/vaswani/mrr@10"]] == [700]
    assert len(list(folder.iterdir())) == len(reports)


def test_checkpoints_of_another_training_have_a_run_of_their_own(tmp_path: Path) -> None:
    one = report(500)
    other = dataclasses.replace(one, checkpoint=dataclasses.replace(one.checkpoint, training_run="theirs"))
    started(tmp_path).deliver(other, [other])
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["theirs"]
