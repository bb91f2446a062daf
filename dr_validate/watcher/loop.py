"""The loop that decides: what exists, which checkpoint is next, have it validated, deliver its Report, again.

What is done is in the ledger before anything else happens to it, so this process may die at any moment.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dr_validate.config import Run
from dr_validate.errors import Preempted, SetupError, Stopped, TimedOut
from dr_validate.files import disk_words, interruptible, is_disk_full, is_read_only
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.made import settings_of
from dr_validate.ledger.means import SuiteMean, mean_names
from dr_validate.ledger.reports import STALE
from dr_validate.process import TIME_IS_UP, ProgressBar, stop_on_signals, stopped_after, until_stopped
from dr_validate.values import Checkpoint, Incomplete, Listing, Report
from dr_validate.watcher import schedule
from dr_validate.watcher.attempts import Attempts, open_books
from dr_validate.watcher.delivery import Delivery
from dr_validate.watcher.lock import Claimed, claim, note_activity
from dr_validate.watcher.polling import SourcePoller
from dr_validate.watcher.schedule import Deleted, Target, Work, WorkQueue
from dr_validate.watcher.worker_pool import WorkerPool
from dr_validate.watcher.worker_process import StallLimit, WorkerClient, WorkerDied, WorkerFailure

STOP_FILE_EVERY_S = 1.0
LOOK_AHEAD_EVERY_S = 0.5
NOTE_EVERY_S = 10.0  # what `task=status` says of what is done now is as old as this
PLACE_KEYS = ("path", "entity", "project", "artifact", "run")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run leaves behind: under which specs the ledger holds its Reports, the exit code, whether the user stopped it."""

    target: Target | None
    exit_code: int
    stopped: bool = False


def watch(run: Run) -> Outcome:
    """Validate what the source has (`once`) or goes on to bring (`follow`); returns when that is done or was stopped."""
    state_dir = run.settings.state_dir
    stop, time_is_up = threading.Event(), threading.Event()
    hub = not all(getattr(one.dataset, "is_here", True) for one in run.collections)
    clients = [WorkerClient(run.raw, hub=hub) for _ in range(run.watch.at_once)]
    worker = WorkerPool(clients, lambda digest: run.store.lease(digest, state_dir)) if len(clients) > 1 else clients[0]
    ledger = Ledger(state_dir / "ledger.db", may_wait=until_stopped(stop, run.watch.exit_timeout_s / 2))
    try:
        with stop_on_signals(stop), ledger, contextlib.ExitStack() as stack:
            stack.enter_context(stopped_after(run.watch.max_hours, stop, time_is_up))
            stack.callback(lambda: [end() for end in (worker.close, run.engine.clean_up)])
            watcher = _Watcher(run, ledger, worker, stop)
            stack.enter_context(watcher.poller)  # copies are taken while the worker makes ready, which may take an hour
            told = watcher.start_worker()
            collections = told.get("collections", [told])
            names = mean_names(collections, settings_of(run)) if run.members else told
            for spec in dict.fromkeys(one["spec"] for one in (names, *collections)):
                stack.enter_context(claim(state_dir, spec, now()))
            outcome = watcher.run_until_done({**names, "training_run": run.source.training_run}, collections)
            return Outcome(target=outcome.target, exit_code=TIME_IS_UP) if time_is_up.is_set() else outcome
    except (TimedOut, WorkerFailure, Stopped) as error:  # of the start, where the other two cost no attempt
        if not isinstance(error, Stopped) and not stop.is_set():  # else a signal, which may have been meant for both
            raise SetupError(f"the worker did not get ready: {error}") from error
        return Outcome(target=None, exit_code=TIME_IS_UP * time_is_up.is_set(), stopped=not time_is_up.is_set())


class _Watcher:
    def __init__(self, run: Run, ledger: Ledger, worker: WorkerClient | WorkerPool, stop: threading.Event) -> None:
        self.run, self.ledger, self.worker, self.stop = run, ledger, worker, stop
        self.queue = WorkQueue(run, ledger)
        self.poller = SourcePoller(run, self.queue.needs)
        self.attempts = Attempts(run, ledger, worker, self.poller, now)
        self.progress = ProgressBar()
        self.stall = StallLimit(run.watch.stall_timeout_s, worker.activity)
        self._has_spec = False
        self._noted = -1  # changes of the poller that have been taken note of
        self._doing, self._next_note = "", 0.0
        self._at: Work | None = None  # what is validated now
        self._ahead, self._next_look_ahead = "", 0.0  # what other processes do meanwhile, in words
        self._seen: dict[str, Checkpoint] = {}  # complete ones by digest: what is deleted later was found all the same
        self._deadline = float("inf")
        self._not_before: dict[tuple[str, str], float] = {}  # digest and spec -> when a failed attempt may be repeated
        self._baseline_not_before: dict[tuple[str, str], float] = {}
        self._mean: SuiteMean | None = None
        self._another_has_baselines = self._waits_for_disk = False  # which is said once

    def run_until_done(self, names: Mapping[str, Any], collections: Sequence[Mapping[str, Any]]) -> Outcome:
        """`names` of the whole: of a suite the mean, else the one of its `collections`."""
        self.target = Target.of(names)
        self.targets = [self.target]
        described = {self.target: names}
        if self.run.members:
            self._mean = SuiteMean(self.ledger, names, collections)
            self.targets = [Target.of(one, number) for number, one in enumerate(collections)]
            described |= dict(zip(self.targets, collections, strict=True))
        self.queue.open(self.target, self.targets)
        self.all_targets = self.queue.all_targets
        self._has_spec = True
        self.stall.on_processors = names["device"].startswith("cpu")
        self.deleted = Deleted(self.run, names["spec"], self.poller.reason)
        open_books(self.run, self.ledger, described, now())
        with Delivery(self.run, self.ledger, names, now, collections if self._mean else ()) as self.delivery:
            self._loop()
            self.delivery.deliver()
        exit_code = 0
        listing = Listing(checkpoints=tuple(self._seen.values()), incomplete=self.poller.listing.incomplete)
        if self.run.watch.mode == "once" and (listing.checkpoints or not self.stop.is_set()):
            exit_code = exit_code_of(listing, self.ledger.settled(self.target.spec), self.run.raw.get("source") or {})
        return Outcome(target=self.target, exit_code=exit_code, stopped=self.stop.is_set())

    def tick(self, progress: Mapping[str, Any] | None) -> None:
        """Called several times a second during any work. Raises what is to stop the work."""
        self.progress.show(progress)
        if progress is not None and self._has_spec and time.monotonic() > self._next_note:
            self._note(self._doing, " ({phase} {done} of {total})".format(**progress))
        self._check_stop()
        if time.monotonic() > self._deadline:
            raise TimedOut(f"took longer than watch.timeout_s={self.run.watch.timeout_s:g}")
        self.stall.look(progress)
        if self._at and isinstance(self.worker, WorkerPool) and time.monotonic() > self._next_look_ahead:
            self._look_ahead(self._at, self.worker)

    def start_worker(self) -> Mapping[str, Any]:
        """What the worker says of itself when it is ready; one that dies on the way is started again, up to max_attempts."""
        for number in range(2, self.run.watch.max_attempts + 1):
            try:
                return self.worker.start(self.tick_of_start)
            except WorkerDied as error:
                self._check_stop()
                log.warning("the worker did not get ready: %s; start %d of %d", error, number, self.run.watch.max_attempts)
        return self.worker.start(self.tick_of_start)

    def tick_of_start(self, progress: Mapping[str, Any] | None) -> None:
        """The same, while the worker starts: a source that is set up wrongly ends that."""
        self.tick(progress)
        self.poller.check(SetupError)

    def _look_ahead(self, at: Work, pool: WorkerPool) -> None:
        """Have the other processes rank what comes next, unless `at` failed before: then it has the machine to itself."""
        self._next_look_ahead = time.monotonic() + LOOK_AHEAD_EVERY_S
        not_before = self._baseline_not_before if at[1].is_baseline else self._not_before
        is_repeated = schedule.key_of(at) in not_before
        try:
            with interruptible(self._check_stop):  # copies may have to be read
                following = () if is_repeated else self.queue.after(at, self.poller.listing, not_before, self.poller.has_copy)
                work = [(c, target.collection or 0, target.is_baseline) for c, target in following]
                ahead = pool.look_ahead(at[0].digest, work)
        except (OSError, sqlite3.OperationalError) as error:  # nothing that is not next may cost what is
            log.debug("nothing is ranked ahead now: %s", error)
            return
        if ahead != self._ahead:
            self._ahead = ahead
            self._note(self._doing)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped("stopped by a signal")

    def _note(self, doing: str, detail: str = "") -> None:
        """For `task=status`. What cannot be written now is not worth ending for."""
        self._doing, self._next_note = doing, time.monotonic() + NOTE_EVERY_S
        with contextlib.suppress(OSError):
            for target in self.all_targets:
                note_activity(self.run.settings.state_dir, target.spec, doing + detail + self._ahead, now())

    def _loop(self) -> None:
        asked = self.poller.poll_again()
        self._wait_for(lambda: self.poller.has_answered(asked))
        while not self.stop.is_set():
            try:
                if self._step():
                    return
                self._waits_for_disk = False
            except Stopped:
                return
            except (OSError, sqlite3.OperationalError) as error:
                self._wait_for_disk(error)
            finally:
                self._at, self._ahead = None, ""
                self.progress.end()

    def _wait_for_disk(self, error: OSError | sqlite3.OperationalError) -> None:
        """Until the next poll, where that may help. Raises what does not pass, and in a finite run SetupError."""
        state_dir = self.run.settings.state_dir
        if is_read_only(error):
            way_out = "mount it for writing, or set another state_dir, and start again: nothing done is lost"
            raise SetupError(f"state_dir {state_dir}: its disk can only be read now ({error}); {way_out}") from error
        if not is_disk_full(error):
            raise error
        message = f"state_dir {state_dir}: {disk_words(error, state_dir)}"
        if self.run.watch.mode == "once":
            raise SetupError(f"{message}; then start again, nothing done is lost") from error
        level, self._waits_for_disk = logging.DEBUG if self._waits_for_disk else logging.ERROR, True
        log.log(level, "%s; waiting for it", message)
        self.stop.wait(self.run.watch.poll_s)

    def _step(self) -> bool:
        """Do the next thing; true when nothing is left to do, ever."""
        self.poller.check()
        self._take_means()
        self._take_note()
        self.delivery.deliver()
        if waiting := self._waiting():
            self._validate(*waiting[0])
        elif any(self.poller.is_imminent(c) for c, _ in self._left()):
            self.poller.wait(self._noted, STOP_FILE_EVERY_S)
        elif baseline := self._next_baseline():
            self._run_baseline(*baseline)
        elif self._is_over():
            return True
        else:
            self._wait()
        return False

    def _take_note(self) -> None:
        """Report what will not be validated, going by what the poller has found since the last time."""
        if self.poller.changes == self._noted:
            return
        self._noted, listing = self.poller.changes, self.poller.listing
        if not self.poller.polls:
            return
        self.attempts.refuse_another_training(listing, *self.targets)
        self._seen |= {checkpoint.digest: checkpoint for checkpoint in listing.checkpoints}
        for part in schedule.given_up(listing, finite=self.run.watch.mode == "once"):
            self._skip_incomplete(part)
        for target in self.all_targets:
            self.attempts.skip_same_weights(listing, target)
        if self.run.watch.skip == "stale":
            known = self.queue.skipped_as_stale()
            for old, newest in self.queue.stale(listing):
                if old.digest not in known:
                    self._skip(old, f"{STALE}overtaken by {newest.label} at step {newest.step}")
        self._report_deleted(listing)

    def _skip(self, checkpoint: Checkpoint, reason: str) -> None:
        """On all collections that it is not validated on."""
        for target in self.all_targets:
            if checkpoint.digest not in self.ledger.settled(target.spec):
                self.attempts.skip(checkpoint, target, reason)

    def _skip_incomplete(self, part: Incomplete) -> None:
        for target in self.all_targets:
            self.attempts.skip_incomplete(part, target)

    def _report_deleted(self, listing: Listing) -> None:
        settled, skips = self.ledger.settled(self.target.spec), self.ledger.skips(self.target.spec)
        self.deleted.remember(c for c in self.poller.let_go() if c.digest not in settled and c.digest not in skips)
        for checkpoint, reason in self.deleted.since_last_poll(listing, {*settled, *skips}):
            self._skip(checkpoint, reason)
            for target in self.targets:
                self._not_before.pop((checkpoint.digest, target.spec), None)
        for part in self.poller.never_seen(self.ledger.reported_labels(self.target.spec)):
            self._skip_incomplete(part)
        waiting = schedule.waiting(listing, settled, self.run.watch.order)
        self.deleted.remember(c for c in waiting if c.digest not in skips)

    def _take_means(self) -> None:
        """Record the means of what is validated on every collection by now."""
        if self._mean is None:
            return
        for target in dict.fromkeys((self.target, self.target.baseline)):
            while made := self._mean.due(full=target.is_baseline):
                self.attempts.finish(made[0], target)  # one by one: the next speaks of it

    def _left(self) -> list[Work]:
        """What is still to be validated, in order."""
        return self.queue.left(self.poller.listing)

    def _waiting(self) -> list[Work]:
        """What can be validated now, in order."""
        left = self._left()
        repeated = left if self.run.watch.mode == "once" else []  # at once, where nothing else is left to do
        due = schedule.due(left, self._not_before, time.monotonic()) or repeated
        for place, (checkpoint, _) in enumerate(due):
            if self.poller.has_copy(checkpoint):
                return due[place:]
            if self.poller.is_imminent(checkpoint):
                return []
        is_last = not self.poller.is_fetching and all(self.poller.is_ready(c) for c, _ in left)
        return [one for one in due if self.poller.is_ready(one[0]) and (is_last or not self.poller.is_given_up(one[0]))]

    def _validate(self, checkpoint: Checkpoint, target: Target) -> None:
        limit = self.run.watch.timeout_s
        self._note(f"validating {target.label(checkpoint)}")
        self._begin((checkpoint, target), f"{target.label(checkpoint)} (step {checkpoint.step})")
        more = any(c.digest == checkpoint.digest and other != target for c, other in self._left())
        self.queue.begun = checkpoint.digest if self._mean else ""
        self._deadline = time.monotonic() + limit if limit else float("inf")
        try:
            report = self.attempts.validate(checkpoint, target, self.tick, more=more)
        finally:
            self._deadline = float("inf")
        if report is not None and report.status == "skipped":
            self._skip(checkpoint, report.error or "")
        self._after((checkpoint, target), report, self._not_before)

    def _begin(self, work: Work, title: str) -> None:
        self._at = work
        self.progress.begin(title)
        self.stall.begin("loading")

    def _next_baseline(self) -> Work | None:
        missing = [one for one in self.queue.missing_baselines(self.poller.listing) if self.poller.has_copy(one[0])]
        due = schedule.due(missing, self._baseline_not_before, time.monotonic())
        return due[0] if due else None

    def _run_baseline(self, checkpoint: Checkpoint, target: Target) -> None:
        self._begin((checkpoint, target), f"{target.label(checkpoint)} (step {checkpoint.step}), full corpus")
        self._note(f"computing the full-corpus baseline of {target.label(checkpoint)}")
        missing = self.queue.missing_baselines(self.poller.listing)
        more = any(c.digest == checkpoint.digest and other != target for c, other in missing)
        try:
            with claim(self.run.settings.state_dir, target.spec, now()):
                self._another_has_baselines = False
                if checkpoint.digest in self.ledger.settled(target.spec):
                    return  # another run on this state_dir was faster
                report = self.attempts.validate(checkpoint, target, self._preemptible_tick, more=more)
        except Claimed as error:
            if not self._another_has_baselines:
                log.info("baselines are computed by another run: %s", error)
            self._another_has_baselines = True
            again = time.monotonic() + self.run.watch.poll_s
            self._baseline_not_before |= {schedule.key_of(one): again for one in missing if one[1] == target}
            return
        except Preempted:
            log.info("the baseline of %s is preempted by a new checkpoint; it resumes later", target.label(checkpoint))
            return
        self._after((checkpoint, target), report, self._baseline_not_before)

    def _preemptible_tick(self, progress: Mapping[str, Any] | None) -> None:
        self.tick(progress)
        if self.poller.changes != self._noted:
            self._take_note()
            if self._waiting():
                raise Preempted

    def _after(self, work: Work, report: Report | None, not_before: dict[tuple[str, str], float]) -> None:
        if report is None:
            not_before[schedule.key_of(work)] = time.monotonic() + self.run.watch.poll_s
        else:
            not_before.pop(schedule.key_of(work), None)
            self._take_means()
            self.delivery.deliver()
        self.poller.wake()

    def _is_over(self) -> bool:
        if self.poller.is_out_of_reach or self._left():
            return False
        if self.run.watch.mode == "follow" and not self._is_told_to_end():
            return False
        asked = self.poller.poll_again()  # what came between the last poll and now counts
        self._wait_for(lambda: self.poller.has_answered(asked))
        self.poller.check()
        self._take_note()
        baselines = self.queue.missing_baselines(self.poller.listing)
        more = any(self.poller.has_copy(c) or self.poller.is_coming(c) for c, _ in baselines)
        return not (self.poller.is_out_of_reach or self._left() or more)

    def _is_told_to_end(self) -> bool:
        return self.run.watch.stop_file is not None and self.run.watch.stop_file.exists()

    def _wait(self) -> None:
        """Until the poller has news, a failed attempt may be repeated, or the end is asked for."""
        due = min([*self._not_before.values(), *self._baseline_not_before.values()], default=float("inf"))
        is_idle = not self.poller.is_out_of_reach and not self._left()
        changes = self._noted  # what came since then has not been looked at
        if self._doing != (waiting := "waiting for checkpoints" if is_idle else "waiting for the source"):
            self._note(waiting)
        self._wait_for(lambda: self.poller.changes != changes or time.monotonic() > due or (is_idle and self._is_told_to_end()))

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not self.stop.is_set() and not condition() and not self.poller.has_failed:
            self.poller.wait(self.poller.changes, STOP_FILE_EVERY_S)


def exit_code_of(listing: Listing, settled: Mapping[str, str], source: Mapping[str, Any]) -> int:
    """1 where a checkpoint failed for good, or none was complete. Raises SetupError where nothing at all was met."""
    if listing == Listing():
        place = ", ".join(f"source.{key}={source[key]}" for key in PLACE_KEYS if source.get(key))
        raise SetupError(f"source: no checkpoint was found ({place}), so nothing was validated; is it the right source?")
    if not listing.checkpoints:
        log.warning("none of the %d checkpoints is complete, so nothing was validated", len(listing.incomplete))
        return 1
    return int(any(settled.get(checkpoint.digest) == "failed" for checkpoint in listing.checkpoints))


def now() -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
