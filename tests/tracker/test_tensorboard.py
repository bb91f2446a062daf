"""TensorBoard shows the rows of W&B, each Report once, in whatever order they come."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from dr_validate.stages import Tracked, TrackerRun
from dr_validate.tracker.rows import STEP, row
from dr_validate.tracker.tensorboard import TensorboardTracker
from dr_validate.values import Report
from tests.factories import told as report
from tests.processes import LIMIT_S, wait_for

NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def started(state_dir: Path, folder: str = "") -> TrackerRun:
    names: dict[str, Any] = {"training_run": "ours/run 1", "spec": "s1", "dataset": "vaswani", "sampler": "random"}
    return TensorboardTracker().start(Tracked(state_dir=state_dir, config={}, folder=folder, **names))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each event by tag, as TensorBoard's reader in Python has them."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    reader: Any = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(e.step, e.tensor_proto.float_val[0]) for e in reader.Tensors(tag)] for tag in reader.Tags()["tensors"]}


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
    tracker = TensorboardTracker().start(Tracked(state_dir=tmp_path, config=config, **names))
    for dataset, spec in (("a", "a-s"), ("b", "b-s"), ("a", "a-f"), ("mean", "s1"), ("mean", "full")):
        one = dataclasses.replace(report(500, spec=spec), dataset=dataset, seconds={"total": 2.0})
        tracker.deliver(one, [one])
    found = scalars(tmp_path / "tensorboard" / "ours" / "mean-random-s1")
    for key in ("val/a/mrr@10", "val/b/mrr@10", "full/a/mrr@10", "val/mean/mrr@10", "full/mean/mrr@10", "lag/steps"):
        assert len(found[key]) == 1, key
    costs = {"cost/a/total_s", "cost/b/total_s", "cost/a/full_total_s", "cost/total_s", "cost/full_total_s"}
    assert {key for key in found if key.startswith("cost/")} == costs


@pytest.mark.parametrize("order", list(permutations((100, 200, 300))))
def test_reports_that_come_out_of_order_are_all_shown_once_by_ascending_step(tmp_path: Path, order: tuple[int, ...]) -> None:
    reports = [report(step, at=f"2026-11-21T03:15:{number:02}Z") for number, step in enumerate(order)]
    folder = tmp_path / "tensorboard" / "ours-run-1" / "vaswani-random-s1"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1764200000.machine").touch()  # somebody else's
    baselines = [report(step, "full") for step in (200, 100)]
    for one in [*reports, *baselines]:
        started(tmp_path).deliver(one, reports)
    found = scalars(folder)
    assert [step for step, _ in found["val/vaswani/mrr@10"]] == [100, 200, 300]
    assert [step for step, _ in found["full/vaswani/mrr@10"]] == [100, 200]


def test_what_is_told_again_takes_no_more_room_than_once(tmp_path: Path) -> None:
    reports = [report(step) for step in range(1000, 0, -50)]  # the newest first
    for one in reports:
        started(tmp_path).deliver(one, reports)
    sizes = [path.stat().st_size for path in (tmp_path / "tensorboard" / "ours-run-1" / "vaswani-random-s1").iterdir()]
    assert len(sizes) == 20 and sum(sizes) < 3 * 20 * min(sizes)


def test_checkpoints_of_another_training_have_a_run_of_their_own(tmp_path: Path) -> None:
    one = report(500)
    other = dataclasses.replace(one, checkpoint=dataclasses.replace(one.checkpoint, training_run="theirs"))
    started(tmp_path).deliver(other, [other])
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["theirs"]


def test_checkpoints_without_a_name_from_another_folder_are_no_rows_of_a_training_that_was_given_a_name(tmp_path: Path) -> None:
    for folder in ("named", "other"):
        one = report(500)
        one = dataclasses.replace(
            one, checkpoint=dataclasses.replace(one.checkpoint, uri=f"{tmp_path}/{folder}/checkpoint-500")
        )
        started(tmp_path / "state", f"{tmp_path}/named").deliver(one, [one])
    assert sorted(path.name for path in (tmp_path / "state" / "tensorboard").iterdir()) == ["other", "ours-run-1"]


@contextmanager
def tensorboard(logs: Path, folder: Path) -> Iterator[str]:
    """The address of the program as users start it, which reads by another loader than `scalars`."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0", "--reload_interval", "1"]
    environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        said: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=said.extend, args=(iter(process.stdout.readline, ""),), daemon=True)
        reader.start()
        try:
            wait_for(lambda: any("http://" in line for line in said))
            (address,) = re.findall(r"http://[\w.-]+:(\d+)", "".join(said))
            yield f"http://127.0.0.1:{address}"
        finally:
            process.terminate()
            process.wait(LIMIT_S)
            reader.join(LIMIT_S)


@pytest.mark.slow
def test_the_program_shows_every_step_also_of_what_comes_while_it_runs(tmp_path: Path) -> None:
    reports = [report(step) for step in (300, 200, 400, 100)]  # the newest first, as they come

    def steps(address: str) -> list[int]:
        asked = urllib.parse.urlencode({"run": "ours-run-1/vaswani-random-s1", "tag": "val/vaswani/mrr@10"})
        try:
            with NO_PROXY.open(f"{address}/data/plugin/scalars/scalars?{asked}", timeout=LIMIT_S) as answer:
                return [step for _, step, _ in json.loads(answer.read())]
        except urllib.error.HTTPError:  # before it has read anything
            return []

    for one in reports[:2]:
        started(tmp_path).deliver(one, reports)
    with tensorboard(tmp_path / "tensorboard", tmp_path) as address:
        wait_for(lambda: steps(address) == [200, 300])
        for one in reports[2:]:
            started(tmp_path).deliver(one, reports)
        wait_for(lambda: steps(address) == [100, 200, 300, 400])
