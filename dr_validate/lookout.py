"""What the source holds, as far as it is known: asked in turn, and later each time that it cannot be reached."""

import random
import time
from collections.abc import Sequence

from dr_validate.attempt import is_disk_full
from dr_validate.config import Run
from dr_validate.patience import JITTER, Patience
from dr_validate.values import Checkpoint, Listing


class Lookout:
    """`listing` is the last answer; `next_look` (monotonic seconds) when to ask again; `failures` since that answer;
    `fetching` is for who fetches what is listed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        said: set[str] = set()
        self._patience, self.fetching = Patience(run.watch, said), Patience(run.watch, said)
        self.listing = Listing()
        self.next_look = 0.0

    @property
    def failures(self) -> int:
        return self._patience.failures

    @property
    def next_try(self) -> float:
        """When to ask the source for anything again."""
        return min(self.next_look, self.fetching.until) if self.fetching.is_needed else self.next_look

    def in_reach(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """In an outage of the source, those that have been fetched already."""
        if not self.failures and not self.fetching.is_needed:
            return list(checkpoints)
        return [c for c in checkpoints if self._run.store.has(c.digest, self._run.settings.state_dir)]

    def look(self) -> bool:
        """Ask the source, unless it is to be left alone; whether it answered.

        Raises SetupError when a finite run has asked in vain too often.
        """
        if self._patience.is_needed:
            return False
        try:
            self.listing = self._run.source.list(self._run.settings.state_dir)
        except OSError as error:
            if is_disk_full(error):
                raise
            self._patience.failed(error)
            self.next_look = self._patience.until
            return False
        self._patience.answered()
        self.next_look = time.monotonic() + self._run.watch.poll_s * random.uniform(*JITTER)
        return True
