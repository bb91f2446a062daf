"""Rows that the SDK gives up, and who notices."""

from pathlib import Path

import pytest

from dr_validate.tracker.validation_run import Arrivals, Lost
from tests.processes import wait_for
from tests.tracker.watching import REPORTS, Start, rows, steps, undelivered, wait_for_rows
from tests.wandb_server.fixture import ServerHandle

SOON = {"CONFIRM_AFTER_S": 1.0, "LOST_AFTER_S": 3.0}


def test_rows_that_the_sdk_gave_up_come_when_the_run_is_opened_again(
    server: ServerHandle, start: Start, state_dir: Path
) -> None:
    watcher = start(arrivals=SOON)
    watcher.send(*REPORTS[:2])
    wait_for_rows(server, 2)
    server.fault("status", status=401, route="file_stream")  # one answer, and the SDK sends no more rows
    watcher.send(*REPORTS[2:])

    def all_arrived() -> bool:
        watcher.poll()
        return len(rows(server)) == len(REPORTS) and undelivered(state_dir) == 0

    wait_for(all_arrived)  # while it lives
    said = watcher.close()
    assert sorted(steps(server)) == [500, 500, 1000, 1500, 2000, 2500]
    assert [run.state for run in server.runs()] == ["finished"]
    assert "rows have not arrived in 3 s, though the server answers" in said


def test_what_should_have_arrived_is_looked_for_and_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dr_validate.tracker.validation_run.CONFIRM_AFTER_S", -1.0)
    rows = Arrivals()
    assert rows.is_complete and not rows.is_time_to_look()
    rows.log("a")
    rows.arrived = {"b"}
    assert "a" in rows and "b" in rows and not rows.is_complete and rows.is_time_to_look()
    rows.require()
    monkeypatch.setattr("dr_validate.tracker.validation_run.LOST_AFTER_S", -1.0)
    with pytest.raises(Lost, match="1 rows"):
        rows.require()
    rows.arrived.add("a")
    rows.require()
    assert rows.is_complete and not rows.is_time_to_look()
