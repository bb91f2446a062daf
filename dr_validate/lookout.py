"""What the source holds, as far as it is known: asked in turn, and later each time that it cannot be reached."""

import logging
import random
import time

from dr_validate.attempt import is_disk_full
from dr_validate.config import Run
from dr_validate.errors import SetupError
from dr_validate.values import Listing

POLL_JITTER = (0.9, 1.1)  # many watchers that started together do not ask together for ever
MAX_PAUSE_S = 600.0
MAX_FAILURES = 5  # of a finite run
log = logging.getLogger(__name__)


class Lookout:
    """`listing` is the last answer; `next_look` (monotonic seconds) when to ask again; `failures` since that answer."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.listing = Listing()
        self.next_look = 0.0
        self.failures = 0

    def look(self) -> bool:
        """Ask the source; whether it answered. Raises SetupError when a finite run has asked in vain too often."""
        try:
            self.listing = self._run.source.list(self._run.settings.state_dir)
        except OSError as error:
            if is_disk_full(error):
                raise
            self._after_failure(error)
            return False
        self.failures = 0
        self.next_look = time.monotonic() + self._run.watch.poll_s * random.uniform(*POLL_JITTER)
        return True

    def _after_failure(self, error: OSError) -> None:
        self.failures += 1
        if self._run.watch.mode == "once" and self.failures >= MAX_FAILURES:
            raise SetupError(f"source: {error} ({self.failures} times in a row); start again when it can be reached") from error
        pause = min(MAX_PAUSE_S, min(self._run.watch.poll_s, 2.0) * 2.0**self.failures)
        pause = max(pause, getattr(error, "retry_after_s", 0.0)) * random.uniform(*POLL_JITTER)
        log.warning("source: %s; looking again in %.0f s", error, pause)
        self.next_look = time.monotonic() + pause
