"""No tracker but the JSONL file, which is always written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.component import component
from dr_validate.ledger.findings import Find, find_nothing
from dr_validate.ledger.strategies import Sweep
from dr_validate.stages import TrackerRun
from dr_validate.values import Report


@component
class NoTracker:
    """Takes every Report and does nothing with it."""

    def examine(self) -> str:
        """What `task=doctor` says."""
        return "none; reports.jsonl is written"

    def check(self) -> None:
        """See WandbTracker.check."""

    def start(
        self,
        *,
        state_dir: Path,
        training_run: str,
        spec: str,
        dataset: str,
        sampler: str,
        config: Mapping[str, Any],
        find: Find = find_nothing,
    ) -> TrackerRun:
        """See WandbTracker.start."""
        return self

    def log_sweep(self, sweep: Sweep) -> str:
        """See WandbTracker.log_sweep; nowhere."""
        return ""

    @property
    def is_remote(self) -> bool:
        """See `TrackerRun.is_remote`."""
        return False

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        pass

    def settle(self, report: Report) -> bool:
        return True

    def close(self, timeout_s: float) -> None:
        pass
