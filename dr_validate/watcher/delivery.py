"""From the ledger to the trackers: every Report once, in order, later if a tracker is out of reach. And what is done for each
new best: `watch.on_best`, `store.keep_best`.

The JSONL file is written at once. What may be far away is served by a thread of its own, so that encoding goes on meanwhile.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dr_validate.config import Run, Watch
from dr_validate.errors import CheckpointDeleted, LedgerLost, Outage
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import best_of, named_folder, report_to_json
from dr_validate.process import how_it_ended
from dr_validate.stages import Tracked, TrackerRun
from dr_validate.tracker.local import JsonlFile, LocalRun
from dr_validate.tracker.rows import is_best
from dr_validate.values import Findings, Report
from dr_validate.watcher.polling import source_key

FIRST_PAUSE_S = 2.0  # after a failed round; doubled each time
MAX_PAUSE_S = 300.0
log = logging.getLogger(__name__)


class Delivery:
    """The trackers of one run and what they have not seen yet; `with` closes all of them within watch.exit_timeout_s."""

    def __init__(
        self,
        run: Run,
        ledger: Ledger,
        names: Mapping[str, Any],
        now: Callable[[], str],
        collections: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """`names`: of the mean where there are several `collections`, whose Reports go to the same places."""
        self.run, self.ledger, self.names, self.collections, self.now = run, ledger, names, collections, now
        self._lost = ""  # digest of a best checkpoint that was deleted before it was kept

    def __enter__(self) -> "Delivery":
        settings = self.run.settings
        whole = (self.names, *self.collections)
        self._specs = list(dict.fromkeys(names[key] for names in whole for key in ("spec", "full_spec")))
        self._file = TrackerQueue("jsonl", file := JsonlFile(path=settings.state_dir / "reports.jsonl"), self)
        with contextlib.suppress(OSError):  # a full disk: `deliver` says so
            file.restore(self.ledger.delivered_to(self._address("jsonl"), self._specs))
        suite = {"collections": [_told(names) for names in self.collections]} if self.collections else {}
        about = Tracked(
            state_dir=settings.state_dir,
            training_run=self.names["training_run"],
            spec=self.names["spec"],
            dataset=self.names["dataset"],
            sampler=self.names["sampler"],
            config={**_uploadable(self.run, self.names), **suite},
            folder=named_folder(self.run.source),
            find=self._find,
        )
        tracker = self.run.tracker.start(about)
        name = type(self.run.tracker).__module__.rpartition(".")[2]
        self._threads = [DeliveryThread(TrackerQueue(name, tracker, self))]
        watch, spec = self.run.watch, self.names["spec"]
        if watch.on_best:
            self._threads.append(DeliveryThread(TrackerQueue("on_best", OnBest(spec, watch), self)))
        if getattr(self.run.store, "keep_best", None) is not None:
            self._threads.append(DeliveryThread(TrackerQueue("keep_best", KeepBest(self._keep_best), self)))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.deliver()
        limit_s = self.run.watch.exit_timeout_s
        end = time.monotonic() + limit_s
        for thread in self._threads:
            thread.finish(end - limit_s / 2)
        for thread in self._threads:
            thread.close(end)

    def deliver(self) -> None:
        """Append what the JSONL file lacks, and wake the threads that serve the others. Never waits for a server."""
        self._file.offer_all()
        for thread in self._threads:
            thread.wake()

    def undelivered(self, name: str) -> list[tuple[int, Any]]:
        """Ids and Reports that tracker `name` is not known to have."""
        return self.ledger.undelivered(self._address(name), self._specs)

    def delivered(self, report_id: int, name: str) -> None:
        """Tracker `name` has it for good."""
        self.ledger.delivered(report_id, self._address(name), self.now())

    def _keep_best(self) -> None:
        """The best by all that is known now: as on the page by the full corpus, where that knows every checkpoint."""
        store: Any = self.run.store  # of a class that has this key
        state_dir = self.run.settings.state_dir
        known = self.ledger.revised(self.names["spec"])
        done = {report.checkpoint.digest: report for report in known if report.status == "done"}
        if not done:
            return
        full = [one for one in self.ledger.reports(self.names["full_spec"], ["done"]) if one.checkpoint.digest in done]
        knows_all = len({one.checkpoint.digest for one in full}) == len(done)
        chosen = best_of(full if knows_all else done.values(), next(iter(next(iter(done.values())).metrics)))
        assert chosen is not None
        best = done[chosen.checkpoint.digest]
        if best.checkpoint.digest == self._lost or store.keeps(best.checkpoint, best.spec):
            return
        try:
            # Another checkpoint may have taken the place of its copy meanwhile.
            store.take(best.checkpoint, self.run.source.fetch, state_dir, source_key(self.run.source))
            store.link_best(best.checkpoint, report_to_json(best), {one.checkpoint.digest for one in known}, state_dir)
        except CheckpointDeleted as error:
            log.warning("store.keep_best: %s is the best, but is not kept: %s", best.checkpoint.label, error)
            self._lost = best.checkpoint.digest

    def _find(self, training_run: str) -> Findings:
        from dr_validate.report.verdict import findings  # at the start there is nothing to find yet

        try:
            return findings(self.ledger, self.names, training_run)
        except Exception as error:  # what cannot be summed up must not keep the rows waiting
            log.warning("no verdict and no tables for the trackers (%s: %s); rows go on", type(error).__name__, error)
            return Findings()

    def _address(self, name: str) -> str:
        # A baseline serves several specs: each spec's W&B run shows it, the JSONL file once.
        return name if name == "jsonl" else f"{name}:{self.names['spec']}"


class KeepBest(LocalRun):
    """Has `keep` look for the best after each Report, and waits for the end of it. Any exception means: again later."""

    def __init__(self, keep: Callable[[], None]) -> None:
        self._keep = keep

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """To be called in a thread of its own."""
        self._keep()


class OnBest(LocalRun):
    """Runs the command of `watch.on_best` (of a shell) for each Report of `spec` that has the best first metric by all that is
    known then, as JSON on its standard input. One that fails, or takes longer than `on_best_timeout_s`, is not run again; one
    that the end of the run kills is, at the next start."""

    def __init__(self, spec: str, watch: Watch) -> None:
        self._spec, self._watch = spec, watch
        self._process: subprocess.Popen[str] | None = None
        self._name = ""
        self._is_closed = False

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """To be called in a thread of its own; waits for the command. Any exception means: again later."""
        if report.spec == self._spec and is_best(report, history):
            self._run(report)

    def close(self, timeout_s: float) -> None:
        """Kill a command that still runs: nobody would be there to end it later."""
        self._is_closed = True
        if self._kill():
            told = (self._name, self._watch.exit_timeout_s)
            log.warning("watch.on_best: killed for %s after watch.exit_timeout_s=%g; the next start sees to it again", *told)

    def _run(self, report: Report) -> None:
        self._name, limit_s = report.checkpoint.label, self._watch.on_best_timeout_s
        text = json.dumps(report_to_json(report), ensure_ascii=False, allow_nan=False)
        command = ["/bin/sh", "-c", str(self._watch.on_best)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, start_new_session=True, text=True, **pipes) as process:
            self._process = process
            if self._is_closed:  # while it began
                self._kill()
            try:
                _, said = process.communicate(text, timeout=limit_s)
            except subprocess.TimeoutExpired:
                self._kill()
                log.warning("watch.on_best: ended after watch.on_best_timeout_s=%g for %s", limit_s, self._name)
                return
        if self._is_closed:
            raise Outage("killed at the end of the run")
        if process.returncode:
            words = (said.strip().splitlines() or [""])[-1]
            log.warning("watch.on_best for %s: %s %s", self._name, how_it_ended(process.returncode), words)

    def _kill(self) -> bool:
        """Kill the command and what it has started; whether it ran."""
        if self._process is None or self._process.returncode is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return True


class TrackerQueue:
    """One tracker, offered all that it is not known to have: first every Report, then what each still needs."""

    def __init__(self, name: str, tracker: TrackerRun, delivery: Delivery) -> None:
        self.name, self.tracker, self.delivery = name, tracker, delivery
        self._label = {"on_best": "watch.on_best", "keep_best": "store.keep_best"}.get(name, f"tracker {name}")
        self.is_local = isinstance(tracker, LocalRun)  # a delivery is over when it returns
        self._said: set[str] = set()
        self._num_tries: Counter[int] = Counter()
        self._given: set[int] = set()  # ids of Reports that the tracker has taken: there is nothing to settle of others
        self.ends_at = float("inf")  # monotonic seconds, after which a round that hangs has nothing more to say

    def offer_all(self, is_urgent: Callable[[], bool] = lambda: False) -> bool:
        """Whether nothing went wrong. `is_urgent` ends the round early: there is something better to do."""
        try:
            waiting = self.delivery.undelivered(self.name)
            histories = {spec: self.delivery.ledger.reports(spec) for spec in {report.spec for _, report in waiting}}
            for report_id, report in waiting:
                if self._is_over():  # while it hung in the one before
                    return False
                self.tracker.deliver(report, histories[report.spec])
                self._given.add(report_id)
                if self.is_local:  # now, or what is urgent would have it delivered again, and a command run twice
                    self._settle([(report_id, report)], self._is_over)
            if not self.is_local:
                self._settle(waiting, lambda: self._is_over() or is_urgent())
        except LedgerLost:
            return False
        except Exception as error:  # an outage of a tracker costs a later delivery, never a result
            if self._is_over():
                return False
            self._warn(str(error) or type(error).__name__)
            return False
        if self._said:
            log.info("%s: it works again", self._label)
            self._said.clear()
        return True

    def close(self, timeout_s: float) -> None:
        """Close the tracker, and note what it has by then."""
        self.ends_at = float("-inf")
        try:
            self.tracker.close(timeout_s)
            self._settle(self.delivery.undelivered(self.name), lambda: False)
            if late := len(self.delivery.undelivered(self.name)):
                if self.tracker.is_remote:
                    say, state = log.warning, "known to have arrived"
                else:
                    say, state = log.info, "delivered yet"  # nothing was to arrive anywhere
                say("%s: %d reports are not %s; the next start sees to them", self._label, late, state)
        except LedgerLost:
            return
        except Exception as error:  # as above: this is the end of a run whose results are safe
            self._warn(str(error) or type(error).__name__)

    def _settle(self, waiting: list[tuple[int, Any]], is_urgent: Callable[[], bool]) -> None:
        # The one tried least comes first: what W&B will not take must not keep the others waiting.
        for report_id, report in sorted(waiting, key=lambda one: self._num_tries[one[0]]):
            if is_urgent():
                return
            self._num_tries[report_id] += 1
            if report_id in self._given and self.tracker.settle(report):
                self.delivery.delivered(report_id, self.name)

    def _is_over(self) -> bool:
        return time.monotonic() > self.ends_at

    def _warn(self, message: str) -> None:
        message = " ".join(message.split())
        level = logging.DEBUG if message in self._said else logging.WARNING  # one line per outage, not one per try
        log.log(level, "%s: %s; the reports are kept and delivered later", self._label, message)
        self._said.add(message)


class DeliveryThread:
    """Runs rounds when woken, and again after growing pauses while they fail."""

    def __init__(self, queue: TrackerQueue) -> None:
        self._queue = queue
        self._woken, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"deliver-{queue.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There may be something new."""
        self._woken.set()

    def finish(self, by: float) -> None:
        """Begin the last round, which is over `by` then (monotonic seconds)."""
        self._queue.ends_at = by
        self._closing.set()
        self._woken.set()

    def close(self, by: float) -> None:
        """Wait for the last round, and close the tracker `by` then."""
        # What is local has nothing left to do at its end: the delivery that runs may have all of the time.
        until = by if self._queue.is_local else self._queue.ends_at
        self._thread.join(max(0.0, until - time.monotonic()))
        self._queue.close(max(0.0, by - time.monotonic()))

    def _run(self) -> None:
        failures = 0
        is_last = False
        while not is_last:
            if failures:
                self._closing.wait(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (failures - 1)))
            else:
                self._woken.wait()
            self._woken.clear()
            is_last = self._closing.is_set()
            # New rows go before the lineage of old ones; at the end, finishing goes before it.
            failures = 0 if self._queue.offer_all(self._woken.is_set) else failures + 1


def _uploadable(run: Run, names: Mapping[str, Any]) -> dict[str, Any]:
    """The allow-list: nothing else of the configuration leaves this machine."""
    settings = run.settings
    return _told(names) | {
        "metrics": list(settings.metrics),
        "top_k": settings.top_k,
        "seed": settings.seed,
        "device": names["device"],
    }


def _told(names: Mapping[str, Any]) -> dict[str, Any]:
    about = ("dataset", "sampler", "spec", "full_spec", "documents", "encoded", "queries")
    keys = (*about, "dataset_fingerprint", "sample_fingerprint", "members")
    return {key: names[key] for key in keys if key in names}
