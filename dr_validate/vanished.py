"""Checkpoints that were listed, waited, and were deleted before anything was tried: nobody would ever hear of them."""

import dataclasses
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.files import write_atomically
from dr_validate.values import Checkpoint, Listing

DELETED = "deleted after it was listed"
log = logging.getLogger(__name__)


class Vanished:
    """What waited at the last look, under `<state_dir>/listed/`, so that a restart knows it, too."""

    def __init__(self, run: Run, spec: str) -> None:
        key = fingerprint({"spec": spec, "source": json.dumps(run.raw.get("source"), sort_keys=True, default=str)})
        self._file, self._source = run.settings.state_dir / "listed" / f"{key}.json", run.source
        self._waiting = {checkpoint.digest: checkpoint for checkpoint in _read(self._file)}
        self._written = dict(self._waiting)

    def since_last_look(self, listing: Listing, settled: Iterable[str]) -> list[Checkpoint]:
        """Those that waited, are not listed any more, and that the source does not have; none of the digests in `settled`."""
        for digest in settled:
            self._waiting.pop(digest, None)
        listed = {checkpoint.digest for checkpoint in listing.checkpoints}
        unfinished = {part.uri for part in listing.incomplete}  # on their way in, or out: the next look shows which
        found = []
        for digest, checkpoint in list(self._waiting.items()):
            if digest in listed or checkpoint.uri in unfinished:
                continue
            try:
                is_gone = not self._source.still_has(checkpoint)
            except OSError as error:
                log.debug("whether %s is still there: %s", checkpoint.label, error)
                continue
            del self._waiting[digest]
            if is_gone:
                found.append(checkpoint)
        return found

    def remember(self, waiting: Iterable[Checkpoint]) -> None:
        """Note what waits now, besides what has not been cleared up yet."""
        self._waiting |= {checkpoint.digest: checkpoint for checkpoint in waiting}
        if self._waiting != self._written:
            write_atomically(self._file, json.dumps([dataclasses.asdict(one) for one in self._waiting.values()]))
            self._written = dict(self._waiting)


def _read(path: Path) -> list[Checkpoint]:
    try:
        return [Checkpoint(**fields) for fields in json.loads(path.read_bytes())]
    except (FileNotFoundError, ValueError, TypeError, AssertionError):
        return []  # a damaged memory costs the word on what vanished meanwhile
