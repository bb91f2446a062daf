"""What is said at the end of reports that a tracker is not known to have."""

import logging
from pathlib import Path
from typing import Any

import pytest

from dr_validate.tracker.wandb import WandbTracker
from dr_validate.watcher.delivery import Round


class Tracker:
    """One that never has anything."""

    def __init__(self, *, is_remote: bool) -> None:
        self.is_remote = is_remote

    def deliver(self, *args: Any) -> None:
        pass

    def settle(self, report: Any) -> bool:
        return False

    def close(self, timeout_s: float) -> None:
        pass


class Ledger:
    def undelivered(self, name: str) -> list[tuple[int, Any]]:
        return [(1, None)]


@pytest.mark.parametrize(("is_remote", "level"), [(True, logging.WARNING), (False, logging.INFO)])
def test_only_what_can_arrive_is_missed(is_remote: bool, level: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dr_validate")
    ledger: Any = Ledger()
    Round("wandb", Tracker(is_remote=is_remote), ledger).close(1.0)
    (record,) = caplog.records
    assert record.levelno == level
    assert ("known to have arrived" in record.message) is is_remote


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_an_offline_run_has_no_server(mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    about: dict[str, Any] = {"training_run": "t", "spec": "s", "dataset": "d", "sampler": "full", "config": {}}
    assert WandbTracker(mode=mode).start(state_dir=tmp_path, **about).is_remote is (mode == "online")
