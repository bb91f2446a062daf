"""`watch.on_best`: a command of the user's, run beside the watcher for each Report that is the best so far."""

import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Sequence

from dr_validate.component import component
from dr_validate.ledger.report_json import report_to_json
from dr_validate.ledger.revised import refined
from dr_validate.process import how_it_ended
from dr_validate.tracker.local import LocalRun
from dr_validate.values import Report

log = logging.getLogger(__name__)


@component
class OnBest(LocalRun):
    """Runs `command` (of a shell) with the Report as JSON on its standard input, if that has the best first metric of its spec
    by all that is known then. Once for each Report; one that fails, or takes longer than `timeout_s`, is not run again."""

    command: str
    spec: str
    timeout_s: float

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Run it, and wait for its end: to be called in a thread of its own."""
        if report.spec == self.spec and _is_best(report, history):
            self._run(report)

    def _run(self, report: Report) -> None:
        text = json.dumps(report_to_json(report), ensure_ascii=False, allow_nan=False)
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.PIPE,
        }  # mypy knows no options by name
        with subprocess.Popen(["/bin/sh", "-c", self.command], start_new_session=True, text=True, **pipes) as process:  # type: ignore[call-overload]
            try:
                _, said = process.communicate(text, timeout=self.timeout_s)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                log.warning(
                    "watch.on_best: ended after watch.on_best_timeout_s=%g for %s", self.timeout_s, report.checkpoint.label
                )
                return
        if process.returncode:
            words = (said.strip().splitlines() or [""])[-1]
            log.warning("watch.on_best for %s: %s %s", report.checkpoint.label, how_it_ended(process.returncode), words)


def _is_best(report: Report, history: Sequence[Report]) -> bool:
    known = {one.checkpoint.digest: one for one in refined(history) if one.status == "done"}
    mine = known.get(report.checkpoint.digest)
    if report.status != "done" or mine is None:
        return False
    metric = next(iter(mine.metrics))
    return all(one.metrics[metric].value < mine.metrics[metric].value for one in known.values() if one is not mine)
