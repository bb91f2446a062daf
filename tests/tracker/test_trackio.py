"""Trackio's own database holds the rows of W&B, each Report once."""

from pathlib import Path
from typing import Any

import pytest

from dr_validate.stages import Tracked, TrackerRun
from dr_validate.tracker.rows import REPORT, STEP, row
from dr_validate.tracker.trackio import TrackioTracker
from dr_validate.values import Report
from tests.factories import told as report


def started(state_dir: Path, project: str) -> TrackerRun:
    names: dict[str, Any] = {"training_run": "ours/run 1", "spec": "s1", "dataset": "vaswani", "sampler": "random"}
    return TrackioTracker(project=project).start(Tracked(state_dir=state_dir, config={"seed": 13, "secret": "x"}, **names))


def test_rows_are_logged_over_the_training_step_each_report_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the package is first imported
    from trackio.sqlite_storage import SQLiteStorage

    project = tmp_path.name.replace("_", "-")
    reports: list[Report] = [report(500), report(1000), report(700, spec="full"), report(900, error="broken")]
    for _ in range(2):  # the second time as after a restart that lost its receipts
        tracker = started(tmp_path, project)
        for one in reports:
            tracker.deliver(one, reports)
            assert tracker.settle(one)
        tracker.close(1)
    logged = {line["step"]: line for line in SQLiteStorage.get_logs(project, "ours/run 1 vaswani-random-s1")}
    assert list(logged) == [500, 1000, 700, 900]
    for one in reports:
        expected = row(one, reports, is_baseline=one.spec == "full")
        found = {key: value for key, value in logged[one.checkpoint.step].items() if key in expected}
        assert found == pytest.approx(expected), one.checkpoint.step
        assert logged[one.checkpoint.step][REPORT] and expected[STEP] == one.checkpoint.step
    assert capsys.readouterr().out == ""
