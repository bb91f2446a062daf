"""What is left to be validated, in order: what exists, less what the ledger has settled; and what was deleted meanwhile."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.errors import Outage
from dr_validate.files import write_atomically
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import STALE
from dr_validate.values import Checkpoint, Listing
from dr_validate.watcher import schedule
from dr_validate.watcher.attempts import Target
from dr_validate.watcher.lock import holder
from dr_validate.watcher.polling import Needs

log = logging.getLogger(__name__)
Work = tuple[Checkpoint, Target]
DELETED = "deleted after it was listed"


class WorkQueue:
    """Asked again and again; before `open`, of a spec that is not known yet, it can only say what copies are needed for."""

    def __init__(self, run: Run, ledger: Ledger) -> None:
        self._run, self._ledger = run, ledger
        self._targets: Sequence[Target] = ()  # one for each collection
        self._main: Target | None = None  # of a suite the mean
        self.begun = ""  # digest of the checkpoint whose other collections are next

    def open(self, main: Target, targets: Sequence[Target]) -> None:
        """`main`: whose books say what is done: of a suite the mean's, else the one of `targets`."""
        self._targets, self._main = targets, main

    @property
    def all_targets(self) -> list[Target]:
        """The collections', and of a suite the mean's."""
        assert self._main is not None
        return list(dict.fromkeys((self._main, *self._targets)))

    def left(self, listing: Listing) -> list[Work]:
        """What is still to be validated, in order."""
        assert self._main is not None
        stale: set[str] = set()
        if self._run.watch.skip == "stale":
            stale = {old.digest for old, _ in self.stale(listing)} | self.skipped_as_stale()
        left = []
        for target in self._targets:
            waiting = schedule.waiting(listing, self._ledger.settled(target.spec), self._run.watch.order)
            left += [(c, target) for c in waiting if c.digest not in stale]
        return schedule.together(left, listing, self._run.watch.order, self.begun)

    def missing_baselines(self, listing: Listing) -> list[Work]:
        """What is validated and is to have a full-corpus value, in order, with the target of the baseline."""
        found = []
        for target in self._targets if self._run.fidelity.runs_in(self._run.watch.mode) else ():
            if target != target.baseline:
                settled, full = self._ledger.settled(target.spec), self._ledger.settled(target.full_spec)
                wanted = [place for place in range(len(settled)) if self._run.fidelity.wants_baseline(place)]
                missing = schedule.missing_baselines(listing, settled, full, wanted, self._run.watch.order)
                found += [(c, target.baseline) for c in missing]
        return schedule.together(found, listing, self._run.watch.order, "")

    def stale(self, listing: Listing) -> list[tuple[Checkpoint, Checkpoint]]:
        """As `schedule.stale`; what has begun is not overtaken on its other collections."""
        assert self._main is not None
        pairs = schedule.stale(listing, self._ledger.settled(self._main.spec))
        return [(old, newest) for old, newest in pairs if old.digest != self.begun]

    def skipped_as_stale(self) -> set[str]:
        """Digests of what was skipped because something newer had overtaken it."""
        assert self._main is not None
        return {digest for digest, reason in self._ledger.skips(self._main.spec).items() if reason.startswith(STALE)}

    def after(
        self,
        now: Work,
        listing: Listing,
        not_before: Mapping[tuple[str, str], float],
        has_copy: Callable[[Checkpoint], bool],
    ) -> Iterator[Work]:
        """What may be ranked beside `now`, the next one first. No baseline beside a checkpoint, which it would slow down."""
        work = self.missing_baselines(listing) if now[1].is_baseline else self.left(listing)
        for one in schedule.due(work, not_before, time.monotonic()):
            if one[0].digest != now[0].digest and has_copy(one[0]):
                yield one

    def needs(self, listing: Listing) -> Needs:
        """What copies are needed for; asked by the thread of the poller, from before the spec is known."""
        if self._main is None:
            settled = {digest: status for spec in self._ledger.specs() for digest, status in self._ledger.settled(spec).items()}
            return Needs(order=schedule.waiting(listing, settled, self._run.watch.order))
        work = [*self.left(listing), *self.missing_baselines(listing)]
        order = list({c.digest: c for c, _ in work}.values())
        state_dir = self._run.settings.state_dir
        foreign = set(self._ledger.specs()) - {spec for one in self.all_targets for spec in (one.spec, one.full_spec)}
        living = [spec for spec in sorted(foreign) if holder(state_dir, spec)]
        present = self._run.store.digests(state_dir) if living else set()
        others = {digest for spec in living for digest in present - self._ledger.settled(spec).keys()}
        return Needs(order=order, others=others)


class Deleted:
    """Checkpoints that were deleted before anybody had a copy, of which nobody would ever hear.

    What waited at the last poll is under `<state_dir>/listed/`, so that a restart knows it, too. `reason` says of a
    checkpoint why there was no copy of it, where that is known.
    """

    def __init__(self, run: Run, spec: str, reason: Callable[[Checkpoint], str | None]) -> None:
        key = fingerprint({"spec": spec, "source": json.dumps(run.raw.get("source"), sort_keys=True, default=str)})
        self._file, self._source, self._reason = run.settings.state_dir / "listed" / f"{key}.json", run.source, reason
        self._waiting = self._read()
        self._written = dict(self._waiting)

    def since_last_poll(self, listing: Listing, settled: Iterable[str]) -> list[tuple[Checkpoint, str]]:
        """Those that waited, do not exist any more (`listing` holds what there are copies of), and that the source does not
        have though it does not list them; with the reason. None of the digests in `settled`."""
        for digest in settled:
            self._waiting.pop(digest, None)
        exist = {checkpoint.digest for checkpoint in listing.checkpoints}
        unfinished = {part.uri for part in listing.incomplete}  # on their way in, or out: the next poll shows which
        found = []
        for digest, checkpoint in list(self._waiting.items()):
            if digest in exist or checkpoint.uri in unfinished:
                continue
            try:
                is_gone = not self._source.still_has(checkpoint)
            except OSError as error:
                log.debug("whether %s is still there: %s", checkpoint.label, error)
                if isinstance(error, Outage):
                    break  # each of the others would wait as long for nothing
                continue
            del self._waiting[digest]
            if is_gone:
                found.append((checkpoint, self._reason(checkpoint) or DELETED))
        return found

    def remember(self, waiting: Iterable[Checkpoint]) -> None:
        """Note what waits now, besides what has not been cleared up yet."""
        self._waiting |= {checkpoint.digest: checkpoint for checkpoint in waiting}
        if self._waiting != self._written:
            write_atomically(self._file, json.dumps([dataclasses.asdict(one) for one in self._waiting.values()]))
            self._written = dict(self._waiting)

    def _read(self) -> dict[str, Checkpoint]:
        try:
            return {fields["digest"]: Checkpoint(**fields) for fields in json.loads(self._file.read_bytes())}
        except (FileNotFoundError, ValueError, TypeError, KeyError, AssertionError):
            return {}  # a damaged memory costs the word on what was deleted meanwhile
