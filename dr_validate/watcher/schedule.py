"""Which checkpoint is next. First the rules, pure functions of what exists and what is settled; then `WorkQueue`, which asks
the ledger and the store and applies them; then `Deleted`: what was deleted before anybody had a copy, remembered in a file."""

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.errors import Outage
from dr_validate.files import read_note, write_atomically
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import STALE
from dr_validate.values import Checkpoint, Incomplete, Listing, Status
from dr_validate.watcher.lock import holder

NEVER_SEEN = (
    "deleted before it was ever seen (or saved elsewhere): poll more often (watch.poll_s), or keep more (save_total_limit)"
)
DELETED = "deleted after it was listed"
TRAINER_NAME = re.compile(r"checkpoint-\d+")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Under which spec a checkpoint is validated: the sample's, or the full corpus' (a baseline); `collection`: of a suite,
    which one."""

    dataset: str
    sampler: str
    spec: str
    sampled_spec: str
    full_spec: str
    collection: int | None = None

    @classmethod
    def of(cls, names: Mapping[str, Any], collection: int | None = None) -> "Target":
        """The sample's, from what `Pipeline.describe` or `mean_names` says."""
        about = {"dataset": names["dataset"], "sampler": names["sampler"], "collection": collection}
        return cls(**about, spec=names["spec"], sampled_spec=names["spec"], full_spec=names["full_spec"])

    def label(self, checkpoint: Checkpoint) -> str:
        """How messages name the checkpoint, and of a suite the collection."""
        return checkpoint.label if self.collection is None else f"{checkpoint.label} on {self.dataset}"

    @property
    def baseline(self) -> "Target":
        """The full corpus of the same collection."""
        return replace(self, spec=self.full_spec)

    @property
    def is_baseline(self) -> bool:
        return self.spec == self.full_spec != self.sampled_spec


Work = tuple[Checkpoint, Target]


def same_weights(listing: Listing) -> list[tuple[Checkpoint, Checkpoint]]:
    """Pairs (later, earlier) of checkpoints with equal digests: one evaluation serves both."""
    first: dict[str, Checkpoint] = {}
    pairs = [(c, first.setdefault(c.digest, c)) for c in listing.checkpoints]
    return [(later, earlier) for later, earlier in pairs if later is not earlier]


def unique(listing: Listing) -> list[Checkpoint]:
    """Checkpoints by ascending (step, name), each digest once."""
    later = {id(later) for later, _ in same_weights(listing)}
    return sorted((c for c in listing.checkpoints if id(c) not in later), key=_place)


def union(listing: Listing, taken: Sequence[Checkpoint]) -> Listing:
    """What exists: what the source lists, and what there are copies of."""
    listed = {checkpoint.digest for checkpoint in listing.checkpoints}
    found = (*listing.checkpoints, *(c for c in taken if c.digest not in listed))
    return replace(listing, checkpoints=tuple(sorted(found, key=_place)))


def missing_steps(known: Collection[int], save_steps: int) -> list[int]:
    """Steps at which a trainer that saves every `save_steps` steps has saved, too, going by those that are known.

    None where the known ones, but for the last (the end of the training), are not multiples: it saves by another rule.
    """
    if not known or save_steps <= 0 or any(step % save_steps for step in sorted(known)[:-1]):
        return []
    return [step for step in range(save_steps, max(known), save_steps) if step not in known]


def never_seen(listing: Listing, labels: Mapping[str, int]) -> list[Incomplete]:
    """What must have been saved, going by the numbers of what exists or has a Report (`labels`: label -> training step), and
    neither exists nor has one."""
    exist = {c.label: c.step for c in listing.checkpoints} | {part.name: part.step for part in listing.incomplete}
    known = {step for name, step in (exist | dict(labels)).items() if TRAINER_NAME.fullmatch(name)}
    missing = [_unseen(step) for step in missing_steps(known, listing.save_steps)]
    return [part for part in (*listing.missing, *missing) if part.name not in exist and part.name not in labels]


def _unseen(step: int) -> Incomplete:
    return Incomplete(name=f"checkpoint-{step}", uri="", step=step, lacks=NEVER_SEEN, final=True, is_deleted=True)


def given_up(listing: Listing, *, finite: bool) -> list[Incomplete]:
    """What will not be completed: everything incomplete in a finite run; else what is final, or what a complete one has
    overtaken, since a trainer writes one checkpoint after the other (unless it may be complete, but is out of reach now)."""
    newest = max((c.step for c in listing.checkpoints), default=-1)
    return [p for p in listing.incomplete if finite or p.final or (p.step < newest and not p.is_out_of_reach)]


def waiting(listing: Listing, settled: Mapping[str, Status], order: str) -> list[Checkpoint]:
    """Checkpoints that are neither done nor failed for good, the next one first."""
    left = [c for c in unique(listing) if c.digest not in settled]
    return left[::-1] if order == "newest_first" else left


def overtaken(listing: Listing, settled: Mapping[str, Status]) -> list[tuple[Checkpoint, Checkpoint]]:
    """Pairs (checkpoint, newest) of waiting checkpoints that a newer one has overtaken."""
    known = unique(listing)
    return [(c, known[-1]) for c in known if c.digest not in settled and c.step < known[-1].step]


def without_baseline(
    listing: Listing, settled: Mapping[str, Status], full: Mapping[str, Status], wanted: Collection[int], order: str
) -> list[Checkpoint]:
    """Validated checkpoints without a full-corpus value, those at the `wanted` places of all validated ones."""
    done = [c for c in unique(listing) if settled.get(c.digest) == "done"]
    missing = [c for place, c in enumerate(done) if place in wanted and c.digest not in full]
    return missing[::-1] if order == "newest_first" else missing


def together(work: Sequence[Work], listing: Listing, order: str, begun: str) -> list[Work]:
    """In order, all collections of a checkpoint after each other; that with the digest `begun` first."""
    places = {checkpoint.digest: place for place, checkpoint in enumerate(unique(listing))}
    sign = -1 if order == "newest_first" else 1
    return sorted(work, key=lambda one: (one[0].digest != begun, sign * places[one[0].digest]))


def due(work: Sequence[Work], not_before: Mapping[tuple[str, str], float], moment: float) -> list[Work]:
    """Fresh ones first, then those whose failed attempt may be repeated by now; `not_before` by digest and spec."""
    fresh = [one for one in work if key_of(one) not in not_before]
    return fresh + [one for one in work if not_before.get(key_of(one), moment + 1) <= moment]


def key_of(one: Work) -> tuple[str, str]:
    """Digest and spec."""
    return one[0].digest, one[1].spec


def _place(checkpoint: Checkpoint) -> tuple[int, str]:
    return checkpoint.step, checkpoint.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What copies are for: `order`, the checkpoints to be validated, the next one first; `others`, the digests that another
    living run on this state_dir has not validated yet."""

    order: Sequence[Checkpoint]
    others: Collection[str] = ()


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
        left_out: set[str] = set()
        if self._run.watch.skip == "stale":
            left_out = {old.digest for old, _ in self.stale(listing)} | self.skipped_as_stale()
        left = []
        for target in self._targets:
            found = waiting(listing, self._ledger.settled(target.spec), self._run.watch.order)
            left += [(c, target) for c in found if c.digest not in left_out]
        return together(left, listing, self._run.watch.order, self.begun)

    def missing_baselines(self, listing: Listing) -> list[Work]:
        """What is validated and is to have a full-corpus value, in order, with the target of the baseline."""
        found = []
        for target in self._targets if self._run.fidelity.runs_in(self._run.watch.mode) else ():
            if target != target.baseline:
                settled, full = self._ledger.settled(target.spec), self._ledger.settled(target.full_spec)
                wanted = [place for place in range(len(settled)) if self._run.fidelity.wants_baseline(place)]
                missing = without_baseline(listing, settled, full, wanted, self._run.watch.order)
                found += [(c, target.baseline) for c in missing]
        return together(found, listing, self._run.watch.order, "")

    def stale(self, listing: Listing) -> list[tuple[Checkpoint, Checkpoint]]:
        """As the function `overtaken`; what has begun is not overtaken on its other collections."""
        assert self._main is not None
        pairs = overtaken(listing, self._ledger.settled(self._main.spec))
        return [(old, newest) for old, newest in pairs if old.digest != self.begun]

    def skipped_as_stale(self) -> set[str]:
        """Digests of what was skipped because something newer had overtaken it."""
        assert self._main is not None
        return {digest for digest, reason in self._ledger.skips(self._main.spec).items() if reason.startswith(STALE)}

    def after(
        self, now: Work, listing: Listing, not_before: Mapping[tuple[str, str], float], has_copy: Callable[[Checkpoint], bool]
    ) -> Iterator[Work]:
        """What may be ranked beside `now`, the next one first. No baseline beside a checkpoint, which it would slow down."""
        work = self.missing_baselines(listing) if now[1].is_baseline else self.left(listing)
        for one in due(work, not_before, time.monotonic()):
            if one[0].digest != now[0].digest and has_copy(one[0]):
                yield one

    def needs(self, listing: Listing) -> Needs:
        """What copies are needed for; asked by the thread of the poller, from before the spec is known."""
        if self._main is None:
            settled = {digest: status for spec in self._ledger.specs() for digest, status in self._ledger.settled(spec).items()}
            return Needs(order=waiting(listing, settled, self._run.watch.order))
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
        self._waiting: dict[str, Checkpoint] = read_note(  # a damaged memory costs the word on what was deleted meanwhile
            self._file, lambda found: {fields["digest"]: Checkpoint(**fields) for fields in found}, {}
        )
        self._written = dict(self._waiting)

    def since_last_poll(self, listing: Listing, settled: Iterable[str]) -> list[tuple[Checkpoint, str]]:
        """Those that waited, are not in `listing` any more (which holds what there are copies of), and that the source, asked
        for each, no longer has; with the reason. None of the digests in `settled`."""
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
            write_atomically(self._file, json.dumps([asdict(one) for one in self._waiting.values()]))
            self._written = dict(self._waiting)
