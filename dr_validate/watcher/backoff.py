"""How long to wait before a question that failed is asked again: longer with each failure in a row; one line per outage."""

import logging
import random
import time

from dr_validate.config import Watch
from dr_validate.errors import SetupError

JITTER = (0.9, 1.1)  # many watchers that started together do not ask together for ever
MAX_PAUSE_S = 600.0
MAX_FAILURES = 5  # of a finite run
log = logging.getLogger(__name__)


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
        pause = min(MAX_PAUSE_S, min(self._watch.poll_s, 2.0) * 2.0**self.failures)
        pause = max(pause, getattr(error, "retry_after_s", 0.0)) * random.uniform(*JITTER)
        level = logging.WARNING if self.failures == 1 and str(error) not in self._said else logging.DEBUG
        log.log(level, "source: %s; trying again in %.0f s, then less and less often", error, pause)
        self._said.add(str(error))
        self.until = time.monotonic() + pause

    def answered(self) -> None:
        """The outage is over, if there was one."""
        if self.failures and self._said:
            log.info("source: in reach again, after %d failures", self.failures)
            self._said.clear()
        self.failures = 0
