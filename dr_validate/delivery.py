"""From the ledger to the trackers: every Report once, in order, later if a tracker is out of reach."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from dr_validate.config import Run
from dr_validate.ledger import Ledger
from dr_validate.stages import Tracker
from dr_validate.tracker.jsonl import JsonlTracker

log = logging.getLogger(__name__)


class Delivery:
    """The trackers of one run and what they have not seen yet; `with` closes them within watch.exit_timeout_s."""

    def __init__(self, run: Run, ledger: Ledger, names: Mapping[str, Any], now: Callable[[], str]) -> None:
        self.run, self.ledger, self.names, self.now = run, ledger, names, now
        self._trackers: dict[str, Tracker] = {}

    def __enter__(self) -> "Delivery":
        settings = self.run.settings
        self._trackers["jsonl"] = JsonlTracker(path=settings.state_dir / "reports.jsonl")
        tracker = self.run.tracker.start(
            state_dir=settings.state_dir,
            training_run=self.names["training_run"],
            spec=self.names["spec"],
            dataset=self.names["dataset"],
            sampler=self.names["sampler"],
            config=_uploadable(self.run, self.names),
        )
        self._trackers[type(self.run.tracker).__module__.rpartition(".")[2]] = tracker
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name, tracker in self._trackers.items():
            with contextlib.suppress(Exception) if exc_info[0] else _logged(name):
                tracker.close(self.run.watch.exit_timeout_s)

    def deliver(self) -> None:
        """Deliver what each tracker has not seen; a failure ends this round for that tracker only."""
        specs = [self.names["spec"], self.names["full_spec"]]
        for name, tracker in self._trackers.items():
            with _logged(name):
                for report_id, report in self.ledger.undelivered(self._address(name), specs):
                    tracker.deliver(report, self.ledger.reports(report.spec))
                    self.ledger.delivered(report_id, self._address(name), self.now())

    def _address(self, name: str) -> str:
        # A baseline serves several specs: each spec's W&B run shows it, the JSONL file once.
        return name if name == "jsonl" else f"{name}:{self.names['spec']}"


@contextlib.contextmanager
def _logged(name: str) -> Any:
    try:
        yield
    except Exception as error:  # an outage of a tracker costs a later delivery, never a result
        log.warning("tracker %s: %s; the reports are kept and delivered later", name, str(error) or type(error).__name__)


def _uploadable(run: Run, names: Mapping[str, Any]) -> dict[str, Any]:
    """The allow-list: nothing else of the configuration leaves this machine."""
    keys = ("dataset", "sampler", "spec", "full_spec", "documents", "encoded", "queries")
    settings = run.settings
    return {key: names[key] for key in keys} | {
        "metrics": list(settings.metrics),
        "top_k": settings.top_k,
        "seed": settings.seed,
        "device": names["device"],
    }
