"""Fetch the next checkpoint while the present one is encoded."""

import logging
import threading
from pathlib import Path

from dr_validate.config import Run
from dr_validate.values import Checkpoint

log = logging.getLogger(__name__)


class Prefetch:
    """At most one fetch at a time, in a thread of its own; what it brings is in the store when it is leased."""

    def __init__(self, run: Run) -> None:
        self._store, self._fetch, self._state_dir = run.store, run.source.fetch, Path(run.settings.state_dir)
        self._thread: threading.Thread | None = None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Start on `checkpoint` unless another fetch still runs."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, args=(checkpoint,), name="prefetch", daemon=True)
            self._thread.start()

    def _run(self, checkpoint: Checkpoint) -> None:
        try:
            self._store.prepare(checkpoint, self._fetch, self._state_dir)
        except (OSError, ValueError) as error:  # the attempt itself meets it again, and reports it
            log.debug("fetching %s ahead: %s", checkpoint.name, error)
