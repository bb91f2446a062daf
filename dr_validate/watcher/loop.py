"""The only loop and the only clock: look for checkpoints, choose one, have it validated, deliver its Report, again.

What is done is in the ledger before anything else happens to it, so this process may die at any moment.
"""

import contextlib
import dataclasses
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dr_validate.config import Run
from dr_validate.errors import Preempted, SetupError, Stopped, TimedOut
from dr_validate.files import disk_words, is_disk_full, is_read_only
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.made import command_line
from dr_validate.ledger.revised import SAME_WEIGHTS, STALE
from dr_validate.process import stop_on_signals, until_stopped
from dr_validate.values import Checkpoint, Listing, Report
from dr_validate.watcher import schedule
from dr_validate.watcher.attempts import Attempts, Target, retry_or_name
from dr_validate.watcher.deleted import Deleted
from dr_validate.watcher.delivery import Delivery
from dr_validate.watcher.lock import Claimed, claim, holder, note_activity
from dr_validate.watcher.polling import Needs, SourcePoller
from dr_validate.watcher.progress import Progress
from dr_validate.watcher.stall import StallLimit
from dr_validate.watcher.worker_process import WorkerClient

TIME_IS_UP = 3  # exit code: watch.max_hours is over, and the next start goes on
STOP_FILE_EVERY_S = 1.0
SECONDS_OF_AN_HOUR = 3600.0
NOTE_EVERY_S = 10.0  # what `task=status` says of what is done now is as old as this
PLACE_KEYS = ("path", "entity", "project", "artifact", "run")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run leaves behind: under which specs the ledger holds its Reports, the exit code, whether the user stopped it.

    `stopped` is false where watch.max_hours did.
    """

    target: Target | None
    exit_code: int
    stopped: bool = False


def watch(run: Run) -> Outcome:
    """Validate what the source has (`once`) or goes on to bring (`follow`); returns when that is done or was stopped."""
    state_dir = run.settings.state_dir
    stop = threading.Event()
    worker = WorkerClient(run.raw, hub=not getattr(run.dataset, "is_here", True))
    ledger = Ledger(state_dir / "ledger.db", may_wait=until_stopped(stop, run.watch.exit_timeout_s / 2))
    time_is_up = threading.Event()
    try:
        with (
            stop_on_signals(stop),
            ledger,
            _stopped_after(run.watch.max_hours, stop, time_is_up),
            contextlib.ExitStack() as stack,
        ):
            stack.callback(worker.close)
            watcher = _Watcher(run, ledger, worker, stop)
            stack.enter_context(watcher.poller)  # copies are taken while the worker makes ready, which may take an hour
            names = {**worker.start(watcher.tick_of_start), "training_run": run.source.training_run}
            stack.enter_context(claim(state_dir, names["spec"], now()))
            outcome = watcher.run_until_done(names)
            return Outcome(target=outcome.target, exit_code=TIME_IS_UP) if time_is_up.is_set() else outcome
    except TimedOut as error:  # of the start: later it costs an attempt
        raise SetupError(f"the worker did not get ready: {error}") from error
    except Stopped:  # before the loop, or while another process has the ledger locked
        is_up = time_is_up.is_set()
        return Outcome(target=None, exit_code=TIME_IS_UP if is_up else 0, stopped=not is_up)


@contextlib.contextmanager
def _stopped_after(hours: float, stop: threading.Event, time_is_up: threading.Event) -> Iterator[None]:
    """Stop after so many hours, unless the block has ended or been stopped by then."""

    def end() -> None:
        if not stop.is_set():
            log.info("watch.max_hours=%g is over: stopping; the next start goes on", hours)
            time_is_up.set()
            stop.set()

    timer = threading.Timer(hours * SECONDS_OF_AN_HOUR, end)
    timer.daemon = True
    if hours:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Watcher:
    def __init__(self, run: Run, ledger: Ledger, worker: WorkerClient, stop: threading.Event) -> None:
        self.run, self.ledger, self.stop = run, ledger, stop
        self.poller = SourcePoller(run, self._needs)
        self.attempts = Attempts(run, ledger, worker, self.poller, now)
        self.progress = Progress()
        self.stall = StallLimit(run.watch.stall_timeout_s, worker.activity)
        self._has_spec = False
        self._noted = -1  # changes of the poller that have been taken note of
        self._doing, self._next_note = "", 0.0
        self._seen: dict[str, Checkpoint] = {}  # complete ones by digest: what is deleted later was found all the same
        self._deadline = float("inf")
        self._not_before: dict[str, float] = {}  # digest -> when a failed attempt may be repeated
        self._baseline_not_before: dict[str, float] = {}
        self._another_has_baselines = False  # which is said once

    def run_until_done(self, names: Mapping[str, Any]) -> Outcome:
        spec, full_spec, sampler = names["spec"], names["full_spec"], names["sampler"]
        self.target = Target(dataset=names["dataset"], sampler=sampler, spec=spec, sampled_spec=spec, full_spec=full_spec)
        self.full_target = dataclasses.replace(self.target, spec=full_spec)
        self._has_spec = True
        self.stall.on_processors = names["device"].startswith("cpu")
        self.deleted = Deleted(self.run, spec, self.poller.reason)
        self._end_interrupted()
        for target in {self.target, self.full_target}:
            baseline = {"baseline": target.is_baseline, "sampler": "full" if target.is_baseline else sampler}
            description = {**names, "spec": target.spec, **baseline, "command": command_line()}
            self.ledger.register_spec(target.spec, description, now())
        retry_or_name(self.ledger, {spec, full_spec}, retry=self.run.watch.retry_failed)
        log.info(
            "validating on %s: %s, %d queries, %d of %d documents (sampler %s, spec %s)",
            *(names["device"], names["dataset"], names["queries"], names["encoded"], names["documents"], sampler, spec),
        )
        with Delivery(self.run, self.ledger, names, now) as self.delivery:
            self._loop()
            self.delivery.deliver()
        exit_code = 0
        listing = Listing(checkpoints=tuple(self._seen.values()), incomplete=self.poller.listing.incomplete)
        if self.run.watch.mode == "once" and (listing.checkpoints or not self.stop.is_set()):
            exit_code = exit_code_of(listing, self.ledger.settled(spec), self.run.raw.get("source") or {})
        return Outcome(target=self.target, exit_code=exit_code, stopped=self.stop.is_set())

    def tick(self, progress: Mapping[str, Any] | None) -> None:
        """Called several times a second during any work. Raises what is to stop the work."""
        self.progress.show(progress)
        if progress is not None and self._has_spec and time.monotonic() > self._next_note:
            self._note(self._doing, " ({phase} {done} of {total})".format(**progress))
        if self.stop.is_set():
            raise Stopped("stopped by a signal")
        if time.monotonic() > self._deadline:
            raise TimedOut(f"took longer than watch.timeout_s={self.run.watch.timeout_s:g}")
        self.stall.look(progress)

    def tick_of_start(self, progress: Mapping[str, Any] | None) -> None:
        """The same, while the worker starts: a source that is set up wrongly ends that."""
        self.tick(progress)
        self.poller.check(SetupError)

    def _note(self, doing: str, detail: str = "") -> None:
        """For `task=status`. What cannot be written now is not worth ending for."""
        self._doing, self._next_note = doing, time.monotonic() + NOTE_EVERY_S
        with contextlib.suppress(OSError):
            note_activity(self.run.settings.state_dir, self.target.spec, doing + detail, now())

    def _end_interrupted(self) -> None:
        """What a killed watcher was doing is not running any more."""
        self.ledger.end_interrupted(self.target.spec)
        if self.full_target != self.target:
            with contextlib.suppress(Claimed), claim(self.run.settings.state_dir, self.full_target.spec, now()):
                self.ledger.end_interrupted(self.full_target.spec)

    def _loop(self) -> None:
        asked = self.poller.poll_again()
        self._wait_for(lambda: self.poller.has_answered(asked))
        while not self.stop.is_set():
            try:
                if self._step():
                    return
            except Stopped:
                return
            except (OSError, sqlite3.OperationalError) as error:
                self._wait_for_disk(error)
            finally:
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
        log.error("%s; waiting for it", message)
        self.stop.wait(self.run.watch.poll_s)

    def _step(self) -> bool:
        """Do the next thing; true when nothing is left to do, ever."""
        self.poller.check()
        self._take_note()
        self.delivery.deliver()
        if waiting := self._waiting():
            self._validate(waiting[0])
        elif any(self.poller.is_imminent(c) for c in self._left()):
            self.poller.wait(self.poller.changes, STOP_FILE_EVERY_S)
        elif baseline := self._next_baseline():
            self._run_baseline(baseline)
        elif self._is_over():
            return True
        else:
            self._wait()
        return False

    def _take_note(self) -> None:
        """Report what will not be validated, going by what the poller has found since the last time."""
        if self.poller.changes == self._noted or not self.poller.polls:
            return
        self._noted, listing = self.poller.changes, self.poller.listing
        self.attempts.refuse_another_training(listing, self.target)
        self._seen |= {checkpoint.digest: checkpoint for checkpoint in listing.checkpoints}
        for part in schedule.given_up(listing, finite=self.run.watch.mode == "once"):
            self.attempts.skip_incomplete(part, self.target)
        for later, earlier in schedule.same_weights(listing):
            self.attempts.skip(later, self.target, f"{SAME_WEIGHTS}{earlier.version}")
        if self.run.watch.skip == "stale":
            known = self.attempts.stale(self.target)
            for old, newest in schedule.stale(listing, self.ledger.settled(self.target.spec)):
                if old.digest not in known:
                    self.attempts.skip(old, self.target, f"{STALE}overtaken by {newest.label} at step {newest.step}")
        self._report_deleted(listing)

    def _report_deleted(self, listing: Listing) -> None:
        settled, skips = self.ledger.settled(self.target.spec), self.ledger.skips(self.target.spec)
        self.deleted.remember(c for c in self.poller.let_go() if c.digest not in settled and c.digest not in skips)
        for checkpoint, reason in self.deleted.since_last_poll(listing, {*settled, *skips}):
            self.attempts.skip(checkpoint, self.target, reason)
            self._not_before.pop(checkpoint.digest, None)
        for part in self.poller.never_seen(self.ledger.reported_labels(self.target.spec)):
            self.attempts.skip_incomplete(part, self.target)
        waiting = schedule.waiting(listing, settled, self.run.watch.order)
        self.deleted.remember(c for c in waiting if c.digest not in skips)

    def _left(self) -> list[Checkpoint]:
        """What is still to be validated, in order."""
        return self._left_of(self.poller.listing)

    def _left_of(self, listing: Listing) -> list[Checkpoint]:
        settled = self.ledger.settled(self.target.spec)
        left = schedule.waiting(listing, settled, self.run.watch.order)
        if self.run.watch.skip == "stale":
            stale = {old.digest for old, _ in schedule.stale(listing, settled)} | self.attempts.stale(self.target)
            left = [c for c in left if c.digest not in stale]
        return left

    def _needs(self, listing: Listing) -> Needs:
        """What copies are needed for; asked by the thread of the poller, from before the spec is known."""
        if not self._has_spec:
            settled = {digest: status for spec in self.ledger.specs() for digest, status in self.ledger.settled(spec).items()}
            return Needs(order=schedule.waiting(listing, settled, self.run.watch.order))
        order = [*self._left_of(listing), *self._missing_baselines(listing)]
        state_dir = self.run.settings.state_dir
        foreign = set(self.ledger.specs()) - {self.target.spec, self.full_target.spec}
        living = [spec for spec in sorted(foreign) if holder(state_dir, spec)]
        present = self.run.store.digests(state_dir) if living else set()
        others = {digest for spec in living for digest in present - self.ledger.settled(spec).keys()}
        return Needs(order=order, others=others)

    def _waiting(self) -> list[Checkpoint]:
        """What can be validated now, in order."""
        left = self._left()
        due = schedule.due(left, self._not_before, time.monotonic())
        if not due and self.run.watch.mode == "once":
            due = left  # nothing else is left to do: repeat failed attempts at once
        for place, checkpoint in enumerate(due):
            if self.poller.has_copy(checkpoint):
                return due[place:]
            if self.poller.is_imminent(checkpoint):
                return []
        is_last = not self.poller.is_fetching and all(self.poller.is_ready(c) for c in left)
        return [c for c in due if self.poller.is_ready(c) and (is_last or not self.poller.is_given_up(c))]

    def _validate(self, checkpoint: Checkpoint) -> None:
        limit = self.run.watch.timeout_s
        self._note(f"validating {checkpoint.label}")
        self._begin(f"{checkpoint.label} (step {checkpoint.step})")
        self._deadline = time.monotonic() + limit if limit else float("inf")
        try:
            report = self.attempts.validate(checkpoint, self.target, self.tick)
        finally:
            self._deadline = float("inf")
        self._after(checkpoint, report, self._not_before)

    def _begin(self, title: str) -> None:
        self.progress.begin(title)
        self.stall.begin("loading")

    def _next_baseline(self) -> Checkpoint | None:
        missing = [c for c in self._missing_baselines(self.poller.listing) if self.poller.has_copy(c)]
        due = schedule.due(missing, self._baseline_not_before, time.monotonic())
        return due[0] if due else None

    def _missing_baselines(self, listing: Listing) -> list[Checkpoint]:
        if self.target == self.full_target or not self.run.fidelity.runs_in(self.run.watch.mode):
            return []
        settled, full = self.ledger.settled(self.target.spec), self.ledger.settled(self.full_target.spec)
        wanted = [place for place in range(len(settled)) if self.run.fidelity.wants_baseline(place)]
        return schedule.missing_baselines(listing, settled, full, wanted, self.run.watch.order)

    def _run_baseline(self, checkpoint: Checkpoint) -> None:
        self._begin(f"{checkpoint.label} (step {checkpoint.step}), full corpus")
        self._note(f"computing the full-corpus baseline of {checkpoint.label}")
        report = None
        try:
            with claim(self.run.settings.state_dir, self.full_target.spec, now()):
                self._another_has_baselines = False
                if checkpoint.digest in self.ledger.settled(self.full_target.spec):
                    return  # another run on this state_dir was faster
                report = self.attempts.validate(checkpoint, self.full_target, self._giving_way)
        except Claimed as error:
            if not self._another_has_baselines:
                log.info("baselines are computed by another run: %s", error)
            self._another_has_baselines = True
            again = time.monotonic() + self.run.watch.poll_s
            self._baseline_not_before |= {c.digest: again for c in self._missing_baselines(self.poller.listing)}
            return
        except Preempted:
            log.info("the baseline of %s is preempted by a new checkpoint; it resumes later", checkpoint.label)
            return
        self._after(checkpoint, report, self._baseline_not_before)

    def _giving_way(self, progress: Mapping[str, Any] | None) -> None:
        self.tick(progress)
        if self.poller.changes != self._noted:
            self._take_note()
            if self._waiting():
                raise Preempted

    def _after(self, checkpoint: Checkpoint, report: Report | None, not_before: dict[str, float]) -> None:
        if report is None:
            not_before[checkpoint.digest] = time.monotonic() + self.run.watch.poll_s
        else:
            not_before.pop(checkpoint.digest, None)
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
        baselines = self._missing_baselines(self.poller.listing)
        more = any(self.poller.has_copy(c) or self.poller.is_coming(c) for c in baselines)
        return not (self.poller.is_out_of_reach or self._left() or more)

    def _is_told_to_end(self) -> bool:
        return self.run.watch.stop_file is not None and self.run.watch.stop_file.exists()

    def _wait(self) -> None:
        """Until the poller has news, a failed attempt may be repeated, or the end is asked for."""
        due = min([*self._not_before.values(), *self._baseline_not_before.values()], default=float("inf"))
        is_idle = not self.poller.is_out_of_reach and not self._left()
        changes = self.poller.changes
        if self._doing != (waiting := "waiting for checkpoints" if is_idle else "waiting for the source"):
            self._note(waiting)
        self._wait_for(lambda: self.poller.changes != changes or time.monotonic() > due or (is_idle and self._is_told_to_end()))

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not self.stop.is_set() and not condition() and not self.poller.has_failed:
            self.poller.wait(self.poller.changes, STOP_FILE_EVERY_S)


def exit_code_of(listing: Listing, settled: Mapping[str, str], source: Mapping[str, Any]) -> int:
    """Of a run that validated what there is and ends: 1 where a checkpoint failed for good, or none was complete. Raises
    SetupError where there was nothing at all; `listing`: what it met, `source`: the keys of that, to say where."""
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
