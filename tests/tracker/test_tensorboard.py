"""TensorBoard's own reader finds the rows of W&B, each Report once."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dr_validate.tracker.rows import STEP, row
from dr_validate.tracker.tensorboard import EventFiles, TensorboardTracker
from dr_validate.values import Report
from tests.factories import told as report

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def started(state_dir: Path) -> EventFiles:
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


def test_all_collections_of_a_suite_and_their_mean_are_one_run(tmp_path: Path) -> None:
    config = {"dataset": "mean", "collections": [{"spec": "a-s", "full_spec": "a-f"}, {"spec": "b-s", "full_spec": "b-f"}]}
    names: dict[str, Any] = {"training_run": "ours", "spec": "s1", "dataset": "mean", "sampler": "random"}
    tracker = TensorboardTracker().start(state_dir=tmp_path, config=config, **names)
    for dataset, spec in (("a", "a-s"), ("b", "b-s"), ("a", "a-f"), ("mean", "s1"), ("mean", "full")):
        one = dataclasses.replace(report(500, spec=spec), dataset=dataset, seconds={"total": 2.0})
        tracker.deliver(one, [one])
    found = scalars(tmp_path / "tensorboard" / "ours" / "mean-random-s1")
    for key in ("val/a/mrr@10", "val/b/mrr@10", "full/a/mrr@10", "val/mean/mrr@10", "full/mean/mrr@10", "lag/steps"):
        assert len(found[key]) == 1, key
    costs = {"cost/a/total_s", "cost/b/total_s", "cost/a/full_total_s", "cost/total_s", "cost/full_total_s"}
    assert {key for key in found if key.startswith("cost/")} == costs


def test_checkpoints_of_another_training_have_a_run_of_their_own(tmp_path: Path) -> None:
    one = report(500)
    other = dataclasses.replace(one, checkpoint=dataclasses.replace(one.checkpoint, training_run="theirs"))
    started(tmp_path).deliver(other, [other])
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["theirs"]
