"""Checkpoints that were deleted before anybody had a copy: nobody would ever hear of them."""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping

from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.errors import Outage
from dr_validate.files import write_atomically
from dr_validate.values import Checkpoint, Incomplete, Listing
from dr_validate.watcher import schedule

DELETED = "deleted after it was listed"
NEVER_SEEN = (
    "deleted before it was ever seen (or saved elsewhere): poll more often (watch.poll_s), or keep more (save_total_limit)"
)
TRAINER_NAME = re.compile(r"checkpoint-\d+")
log = logging.getLogger(__name__)


class Deleted:
    """What waited at the last poll, under `<state_dir>/listed/`, so that a restart knows it, too.

    `reason` says of a checkpoint why there was no copy of it, where that is known.
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


def never_seen(listing: Listing, labels: Mapping[str, int]) -> list[Incomplete]:
    """What must have been saved, going by the numbers of what exists or has a Report (`labels`: label -> training step), and
    neither exists nor has one."""
    exist = {c.label: c.step for c in listing.checkpoints} | {part.name: part.step for part in listing.incomplete}
    known = {step for name, step in (exist | dict(labels)).items() if TRAINER_NAME.fullmatch(name)}
    missing = [_unseen(step) for step in schedule.missing_steps(known, listing.save_steps)]
    return [part for part in (*listing.missing, *missing) if part.name not in exist and part.name not in labels]


def _unseen(step: int) -> Incomplete:
    return Incomplete(name=f"checkpoint-{step}", uri="", step=step, lacks=NEVER_SEEN, final=True, is_deleted=True)
