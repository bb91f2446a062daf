"""No tracker but the JSONL file, which is always written."""

from dr_validate.component import component
from dr_validate.tracker.local import LocalTracker, TrackedRow


@component
class NoTracker(LocalTracker):
    """Takes every Report and does nothing with it."""

    def examine(self) -> str:
        """What `task=doctor` says."""
        return "none; reports.jsonl is written"

    def write(self, told: TrackedRow) -> None:
        """Nothing, nowhere."""
