"""Which checkpoint is next: pure decisions on what exists and what the ledger says."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from dr_validate.values import Checkpoint, Incomplete, Listing, Status

NEVER_SEEN = (
    "deleted before it was ever seen (or saved elsewhere): poll more often (watch.poll_s), or keep more (save_total_limit)"
)
TRAINER_NAME = re.compile(r"checkpoint-\d+")


class UnderSpec(Protocol):
    """What a checkpoint is validated for: see `attempts.Target`."""

    @property
    def spec(self) -> str: ...


T = TypeVar("T", bound=UnderSpec)


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
    return dataclasses.replace(listing, checkpoints=tuple(sorted(found, key=_place)))


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


def stale(listing: Listing, settled: Mapping[str, Status]) -> list[tuple[Checkpoint, Checkpoint]]:
    """Pairs (checkpoint, newest) of waiting checkpoints that a newer one has overtaken."""
    known = unique(listing)
    return [(c, known[-1]) for c in known if c.digest not in settled and c.step < known[-1].step]


def missing_baselines(
    listing: Listing, settled: Mapping[str, Status], full: Mapping[str, Status], wanted: Collection[int], order: str
) -> list[Checkpoint]:
    """Validated checkpoints without a full-corpus value, those at the `wanted` places of all validated ones."""
    done = [c for c in unique(listing) if settled.get(c.digest) == "done"]
    missing = [c for place, c in enumerate(done) if place in wanted and c.digest not in full]
    return missing[::-1] if order == "newest_first" else missing


def together(work: Sequence[tuple[Checkpoint, T]], listing: Listing, order: str, begun: str) -> list[tuple[Checkpoint, T]]:
    """In order, all collections of a checkpoint after each other; that with the digest `begun` first."""
    places = {checkpoint.digest: place for place, checkpoint in enumerate(unique(listing))}
    sign = -1 if order == "newest_first" else 1
    return sorted(work, key=lambda one: (one[0].digest != begun, sign * places[one[0].digest]))


def due(
    work: Sequence[tuple[Checkpoint, T]], not_before: Mapping[tuple[str, str], float], moment: float
) -> list[tuple[Checkpoint, T]]:
    """Fresh ones first, then those whose failed attempt may be repeated by now; `not_before` by digest and spec."""
    fresh = [one for one in work if key_of(one) not in not_before]
    return fresh + [one for one in work if not_before.get(key_of(one), moment + 1) <= moment]


def key_of(one: tuple[Checkpoint, UnderSpec]) -> tuple[str, str]:
    """Digest and spec."""
    return one[0].digest, one[1].spec


def _place(checkpoint: Checkpoint) -> tuple[int, str]:
    return checkpoint.step, checkpoint.name
