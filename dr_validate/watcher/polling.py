"""A thread that asks the source what exists, and copies into the store what waits for its validation, the next one first, as
far as `store.max_gib` has room.

Neither waits for a validation: a trainer that keeps its last two checkpoints deletes what nobody has taken by then. A
question that failed is asked again after a while, longer with each failure in a row, with one line per outage.
"""

import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from dr_validate.component import fingerprint
from dr_validate.config import Run, Watch
from dr_validate.errors import CheckpointDeleted, Outage, SetupError, Stopped, TimedOut
from dr_validate.files import interruptible, is_disk_full, is_read_only, read_note, write_atomically
from dr_validate.stages import Source
from dr_validate.values import Checkpoint, Incomplete, Listing
from dr_validate.watcher import schedule
from dr_validate.watcher.schedule import Needs

log = logging.getLogger(__name__)
MAX_FETCHES = 4
NO_ROOM, NO_ROOM_S = "the disk of state_dir has no room for another copy", 2.0
MAX_NAMES = 5
MAX_PAUSE_S = 3600.0
CLOSE_S = 2.0  # what has not stopped by then ends with the process
ANOTHER_AFTER_S = 10.0  # one at a time, in the order of work; beside one that takes longer than this another begins
JITTER = (0.9, 1.1)  # many watchers that started together do not ask together for ever
MAX_BACKOFF_S = 600.0
MAX_FAILURES = 5  # of a finite run
_one_says_it = threading.Lock()


class SourcePoller:
    """`with SourcePoller(run, needs)`: `listing` is the union of what the source lists and what the store holds of it.

    `needs` is asked in this thread. `changes` counts what happened; wait for the next with `wait`.
    """

    def __init__(self, run: Run, needs: Callable[[Listing], Needs]) -> None:
        self._run, self._needs, self._state_dir = run, needs, run.settings.state_dir
        self.source_key = source_key(run.source)
        self._said: set[str] = set()
        self._backoff = Backoff(run.watch, self._said)
        self._changed = threading.Condition(threading.RLock())
        self._wish, self._is_closed = threading.Event(), False
        self._listed = Listing()
        self._next_poll = 0.0
        self._asked = self._answered = 0
        self._fetching: dict[str, float] = {}  # digest -> since when
        self._fetch_backoffs: dict[str, Backoff] = {}
        self._tried: set[str] = set()  # digests whose fetch failed since the last poll
        self._failures: dict[str, BaseException] = {}  # by digest: why there is no copy, for whoever validates it
        self._seconds: dict[str, float] = {}  # by digest: how long the fetch took
        self._reasons: dict[str, str] = {}  # by digest: why there will be none, if the source deletes it
        self._error: BaseException | None = None
        self._no_room_until = 0.0
        self._absent: frozenset[str] | None = None  # names of what was missing at the first poll of this source, ever
        self.listing = schedule.union(Listing(), run.store.taken(self.source_key, self._state_dir))
        self.changes = self.polls = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "SourcePoller":
        self._start("poll", self._work)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop hashing and fetching between two chunks; what hangs ends with the process, its leftovers are removed later."""
        self._is_closed = True
        self._wish.set()
        end = time.monotonic() + min(CLOSE_S, self._run.watch.exit_timeout_s)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _start(self, name: str, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, name=name, daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()

    def _check_interrupt(self, deadline: float = float("inf")) -> None:
        if self._is_closed:
            raise Stopped("the run ends")
        if time.monotonic() > deadline:
            raise TimedOut("its fetch took too long")

    @property
    def is_out_of_reach(self) -> bool:
        """Whether the source did not answer the last time."""
        return self._backoff.failures > 0

    @property
    def is_fetching(self) -> bool:
        return bool(self._fetching)

    def check(self, kind: type[BaseException] = BaseException) -> None:
        """Raise what the thread has met and cannot mend: a full disk, a wrong key, a source that a finite run gives up on."""
        with self._changed:
            if not isinstance(self._error, kind):
                return
            error, self._error = self._error, None
        raise error

    def never_seen(self, labels: Mapping[str, int]) -> list[Incomplete]:
        """What was saved and deleted between two polls, or while nobody polled; see `schedule.never_seen`.

        Not what was missing at the very first poll: that was deleted before anybody asked for it.
        """
        absent = self._absent or frozenset()
        return [part for part in schedule.never_seen(self.listing, labels) if part.name not in absent]

    @property
    def has_failed(self) -> bool:
        """Whether `check` would raise."""
        return self._error is not None

    def has_copy(self, checkpoint: Checkpoint) -> bool:
        """Whether it can be validated now."""
        return self._run.store.has(checkpoint.digest, self._state_dir)

    def is_ready(self, checkpoint: Checkpoint) -> bool:
        """Whether it can be validated or reported now: there is a copy, or a reason why there is none."""
        return checkpoint.digest in self._failures or self.has_copy(checkpoint)

    def is_coming(self, checkpoint: Checkpoint) -> bool:
        """Whether there is no copy yet, and nothing has been in its way so far."""
        if checkpoint.digest not in {one.digest for one in self._listed.checkpoints} or self.is_ready(checkpoint):
            return False
        return checkpoint.digest not in self._tried and checkpoint.digest not in self._reasons

    def is_imminent(self, checkpoint: Checkpoint) -> bool:
        """Whether its copy will be here in a moment: a fetch that takes long is not waited for."""
        moment = time.monotonic()
        with self._changed:
            is_slow = any(moment - since >= ANOTHER_AFTER_S for since in self._fetching.values())
        backoff = self._fetch_backoffs.get(checkpoint.digest)
        return self.is_coming(checkpoint) and not is_slow and not (backoff and backoff.is_waiting)

    def is_given_up(self, checkpoint: Checkpoint) -> bool:
        """Whether a finite run has tried in vain too often to fetch it: an outage that ends the run, when all else is done."""
        return isinstance(self._failures.get(checkpoint.digest), SetupError)

    def failure(self, checkpoint: Checkpoint) -> BaseException | None:
        """Why there is no copy, if fetching it has failed; asked for once, for then it is tried again."""
        if self.has_copy(checkpoint):
            return None
        with self._changed:
            error = self._failures.pop(checkpoint.digest, None)
        if isinstance(error, CheckpointDeleted):
            self.poll_again()  # what is listed is out of date
        elif error is not None and self._run.watch.mode == "once":  # there may be no next poll
            self._tried.discard(checkpoint.digest)
        return error

    def fetch_seconds(self, checkpoint: Checkpoint) -> float:
        """How long it took to fetch it; 0 for a copy that was there already, or was asked about before."""
        return self._seconds.pop(checkpoint.digest, 0.0)

    def let_go(self) -> list[Checkpoint]:
        """What there were copies of, in this run or an earlier one, and does not exist any more as far as is known."""
        exist = {checkpoint.digest for checkpoint in self.listing.checkpoints}
        found = [c for c in self._run.store.let_go(self.source_key, self._state_dir) if c.digest not in exist]
        for checkpoint in found:
            self._reasons.setdefault(checkpoint.digest, self._let_go_words())
        return found

    def reason(self, checkpoint: Checkpoint) -> str | None:
        """Why there was no copy of what the source has deleted, where it is known."""
        return self._reasons.get(checkpoint.digest)

    def _let_go_words(self) -> str:
        return f"its copy was let go for room (store.max_gib={self._run.store.max_gib:g}), and its source has deleted it"

    def poll_again(self) -> int:
        """Ask the source now, unless it is out of reach; `has_answered` of what this returns tells when it has."""
        with self._changed:
            self._asked += 1
            self._next_poll = 0.0
            self._wish.set()
            return self._asked

    def has_answered(self, asked: int) -> bool:
        """Whether a poll that began after `poll_again` returned `asked` has an answer, or failed."""
        return self._answered >= asked or self._error is not None

    def wake(self) -> None:
        """What is needed may have changed."""
        self._wish.set()

    def wait(self, changes: int, timeout_s: float) -> None:
        """Until `changes` is not what it was, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self.changes != changes or self._error is not None, timeout_s)

    def _work(self) -> None:
        while not self._is_closed:
            try:
                if time.monotonic() >= self._next_poll:
                    self._poll()
                self._begin_fetches()
            except Stopped:
                return
            except Exception as error:  # the watcher raises it: `check`
                self._next_poll = time.monotonic() + self._run.watch.poll_s
                with self._change():
                    self._error = error
            self._wish.wait(self._pause_s())
            self._wish.clear()

    def _pause_s(self) -> float:
        now = time.monotonic()
        moments = [self._next_poll, *(b.until for b in self._fetch_backoffs.copy().values() if b.is_waiting)]
        moments += [self._no_room_until] if self._no_room_until > now else []
        return max(0.0, min(min(moments) - now, ANOTHER_AFTER_S if self._fetching else MAX_PAUSE_S))

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        with self._changed:
            yield
            self.changes += 1
            self._changed.notify_all()

    def _poll(self) -> None:
        asked, poll_s = self._asked, self._run.watch.poll_s
        if not self._backoff.is_waiting:
            try:
                with interruptible(self._check_interrupt):
                    listed = self._run.source.list(self._state_dir)
            except OSError as error:
                if is_disk_full(error) or is_read_only(error):
                    raise
                self._backoff.failed(error)
            else:
                self._backoff.answered()
                self._listed = listed
                self._absent = self._absent if self._absent is not None else self._first_sight(listed)
                self.polls += 1
        pause = poll_s * random.uniform(*JITTER)
        with self._changed:
            self._next_poll = self._backoff.until if self._backoff.failures else time.monotonic() + pause
            if self._asked > asked:  # meanwhile
                self._next_poll = 0.0
        self._tried.clear()
        self._publish(asked)

    def _first_sight(self, listed: Listing) -> frozenset[str]:
        path = self._state_dir / "listed" / f"first-{self.source_key}.json"
        known = read_note(path, lambda names: frozenset(map(str, names)), None)
        if known is not None:
            return known
        absent = [part.name for part in schedule.never_seen(listed, {})]
        write_atomically(path, json.dumps(absent))
        if absent:
            log.info(
                "deleted before the first poll, so never validated: %s%s",
                *(", ".join(absent[:MAX_NAMES]), f" and {len(absent) - MAX_NAMES} more" if len(absent) > MAX_NAMES else ""),
            )
        return frozenset(absent)

    def _publish(self, asked: int = 0) -> None:
        listing = schedule.union(self._listed, self._run.store.taken(self.source_key, self._state_dir))
        with self._change():
            self.listing = listing
            self._answered = max(self._answered, asked)

    def _begin_fetches(self) -> None:
        """In the order of work: the next one, and another beside what takes long."""
        listed = {checkpoint.digest for checkpoint in self._listed.checkpoints}
        if time.monotonic() < self._no_room_until:
            return
        needs = self._needs(self.listing)
        for place, checkpoint in enumerate(needs.order):
            digest, moment = checkpoint.digest, time.monotonic()
            with self._changed:
                is_busy = any(moment - since < ANOTHER_AFTER_S for since in self._fetching.values())
                if is_busy or len(self._fetching) >= MAX_FETCHES:
                    return
                waits = digest in self._tried or digest in self._fetching or digest in self._failures
            if waits or digest not in listed or self.has_copy(checkpoint):
                continue
            if (backoff := self._fetch_backoffs.get(digest)) and backoff.is_waiting:
                continue
            if not self._make_room(checkpoint, needs, place):
                self._reasons[digest] = (
                    f"no room for its copy (store.max_gib={self._run.store.max_gib:g}) before its source deleted it"
                )
                continue
            with self._changed:
                self._fetching[digest] = moment
            keep = {c.digest for c in needs.order} | set(needs.others)
            self._start("fetch", self._fetch, checkpoint, keep)

    def _make_room(self, checkpoint: Checkpoint, needs: Needs, place: int) -> bool:
        """Let go what is needed less: what is validated, longest ago first, then what comes last in the order of work."""
        sooner = {c.digest for c in needs.order[:place]}
        later = [c.digest for c in needs.order[place + 1 :]]
        precious = [*later, *(digest for digest in needs.others if digest not in sooner and digest not in later)]
        before = {digest for digest in later if self._run.store.has(digest, self._state_dir)}
        if not self._run.store.make_room(checkpoint.num_bytes, sooner, precious, self._state_dir):
            return False
        for digest in before:
            if not self._run.store.has(digest, self._state_dir):
                self._reasons[digest] = self._let_go_words()
        return True

    def _fetch(self, checkpoint: Checkpoint, keep: Collection[str]) -> None:
        digest, began = checkpoint.digest, time.monotonic()
        deadline = began + (self._run.watch.timeout_s or float("inf"))
        try:
            with interruptible(lambda: self._check_interrupt(deadline)):
                self._run.store.take(checkpoint, self._run.source.fetch, self._state_dir, self.source_key, keep)
            self._seconds[digest] = time.monotonic() - began
            self._reasons.pop(digest, None)
            if backoff := self._fetch_backoffs.pop(digest, None):
                backoff.answered()
        except Outage as error:  # this checkpoint waits; the others do not
            self._put_off(checkpoint, error)
        except Stopped:
            pass
        except Exception as error:  # met by its attempt, and judged there
            if is_disk_full(error) and any(self.has_copy(one) for one in self._needs(self.listing).order):
                self._wait_for_room(checkpoint, error)
            else:
                self._tried.add(digest)
                if isinstance(error, CheckpointDeleted):
                    self._reasons[digest] = str(error)
                with self._changed:
                    if is_disk_full(error):
                        self._error = error
                    else:
                        self._failures[digest] = error
        finally:
            with self._changed:
                self._fetching.pop(digest, None)
        self._publish()
        self._wish.set()

    def _wait_for_room(self, checkpoint: Checkpoint, error: Exception) -> None:
        """Fetch nothing for a while: copies that wait to be validated make room when they have been."""
        self._no_room_until = time.monotonic() + NO_ROOM_S
        self._reasons[checkpoint.digest] = f"no room for its copy before its source deleted it ({error})"
        if NO_ROOM not in self._said:
            log.warning("%s (%s); it is copied when what waits has been validated", NO_ROOM, error)
            self._said.add(NO_ROOM)

    def _put_off(self, checkpoint: Checkpoint, error: Outage) -> None:
        backoff = self._fetch_backoffs.setdefault(checkpoint.digest, Backoff(self._run.watch, self._said))
        try:
            backoff.failed(error)
        except SetupError as given_up:  # a finite run does what else there is first
            self._tried.add(checkpoint.digest)
            self._failures[checkpoint.digest] = given_up


def source_key(source: Source) -> str:
    """By which the store knows the copies of one source again."""
    return fingerprint(source.identity())


class Backoff:
    """Of one kind of question to the source: `failures` in a row, and `until` when (monotonic seconds) to ask nothing.

    `said` is shared by all kinds of questions, so that an outage that all of them meet is logged once.
    """

    def __init__(self, watch: Watch, said: set[str]) -> None:
        self._watch, self._said = watch, said
        self.failures = 0
        self.until = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether it is too early to ask again."""
        return self.failures > 0 and time.monotonic() < self.until

    def failed(self, error: OSError) -> None:
        """Take note of an outage. Raises SetupError when a finite run has asked in vain too often."""
        self.failures += 1
        if self._watch.mode == "once" and self.failures >= MAX_FAILURES:
            again = f"({self.failures} times in a row); start again when it can be reached"
            raise SetupError(f"source: {error} {again}") from error
        pause = min(MAX_BACKOFF_S, min(self._watch.poll_s, 2.0) * 2.0**self.failures)
        pause = max(pause, getattr(error, "retry_after_s", 0.0)) * random.uniform(*JITTER)
        with _one_says_it:  # whoever fetches meets the outage in the same moment as whoever polls
            level = logging.WARNING if self.failures == 1 and str(error) not in self._said else logging.DEBUG
            log.log(level, "source: %s; trying again in %.0f s, then less and less often", error, pause)
            self._said.add(str(error))
        self.until = time.monotonic() + pause

    def answered(self) -> None:
        """The outage is over, if there was one."""
        with _one_says_it:
            if self.failures and self._said:
                log.info("source: in reach again, after %d failures", self.failures)
                self._said.clear()
        self.failures = 0
