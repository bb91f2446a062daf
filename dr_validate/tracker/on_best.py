"""What is done beside the watcher for each Report that is the best so far: `watch.on_best`, `store.keep_best`."""

import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dr_validate.component import component
from dr_validate.errors import CheckpointDeleted
from dr_validate.ledger.per_query import paired_difference
from dr_validate.ledger.reports import best_of, report_to_json, revised
from dr_validate.process import how_it_ended
from dr_validate.tracker.local import LocalRun
from dr_validate.values import Z_95, Report

log = logging.getLogger(__name__)


class ForBest(LocalRun):
    """Acts on each Report of `spec` that has the best first metric by all that is known then."""

    spec: str

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Act, and wait for the end of it: to be called in a thread of its own."""
        if report.spec == self.spec and is_best(report, history):
            self.act(report, history)

    def act(self, report: Report, history: Sequence[Report]) -> None:
        """Any exception means: again later."""
        raise NotImplementedError


@component
class OnBest(ForBest):
    """Runs `command` (of a shell) with the Report as JSON on its standard input. Once for each Report; one that fails, or takes
    longer than `timeout_s`, is not run again."""

    command: str
    spec: str
    timeout_s: float

    def act(self, report: Report, history: Sequence[Report]) -> None:
        """Run it."""
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


class KeepBest(ForBest):
    """Has `keep(report, digests)` keep the checkpoint, where `digests` are of all that this ledger knows under the spec."""

    def __init__(self, spec: str, keep: Callable[[Report, Collection[str]], None]) -> None:
        self.spec, self._keep = spec, keep

    def act(self, report: Report, history: Sequence[Report]) -> None:
        """Keep it, unless nobody has it any more."""
        try:
            self._keep(report, {one.checkpoint.digest for one in history})
        except CheckpointDeleted as error:
            log.warning("store.keep_best: %s is the best, but is not kept: %s", report.checkpoint.label, error)


def is_best(report: Report, history: Sequence[Report]) -> bool:
    """Whether it has the highest first metric of all that are done, as the latest Report sees them; a tie is none."""
    known = {one.checkpoint.digest: one for one in revised(history) if one.status == "done"}
    mine = known.get(report.checkpoint.digest)
    if report.status != "done" or mine is None:
        return False
    metric = next(iter(mine.metrics))
    return all(one.metrics[metric].value < mine.metrics[metric].value for one in known.values() if one is not mine)


def alert_of(report: Report, history: Sequence[Report], state_dir: Path) -> tuple[str, str] | None:
    """Title and text where it is the best so far, or of a later step than the best and worse for other queries like these
    with 95% confidence, by queries in pairs; else None."""
    if report.status != "done":
        return None
    known = [one for one in revised(history) if one.status == "done"]
    metric, estimate = next(iter(report.metrics.items()))
    which = f"{report.checkpoint.label} (step {report.checkpoint.step:,}): {report.dataset} {metric} {estimate.value:.4f}"
    if is_best(report, history):
        return f"New best {metric}", f"{which}, the best of {len(known)}"
    best = best_of(known, metric)
    if best is None or report.checkpoint.step <= best.checkpoint.step:
        return None  # it came before the best: that is no fall
    try:
        found = paired_difference(state_dir, report, best, metric)
    except OSError as error:
        log.warning("tracker.alert: %s", error)
        return None
    if found is None or found[0] + Z_95 * found[1] >= 0:
        return None
    low, high = found[0] - Z_95 * found[1], found[0] + Z_95 * found[1]
    text = f"{which}; minus the best, step {best.checkpoint.step:,}: {found[0]:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"{metric} has fallen", text
