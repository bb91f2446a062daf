"""Progress of long work: a bar on a terminal, now and then a plain line in a log."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from dr_validate.process import printable

LINE_EVERY_S = 30.0
log = logging.getLogger(__name__)


class Progress:
    """Shows the work that runs now; `show(None)` says that there is no news."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._title = ""
        self._began = self._last_line = 0.0
        self._known: Mapping[str, Any] | None = None

    def begin(self, title: str) -> None:
        """Start on `title`; replaces what was shown."""
        self.end()
        self._title, self._known = printable(title), None
        self._began = self._last_line = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(f"{self._title}: loading", total=None)
            self._bar.start()

    def show(self, progress: Mapping[str, Any] | None) -> None:
        """`progress` holds phase, done and total (documents; 0 for a phase that counts none), as the worker sends them."""
        if not self._title:
            return
        self._known = progress or self._known
        if self._bar is not None:
            if progress is not None:
                phase, done, total = (progress[name] for name in ("phase", "done", "total"))
                self._bar.update(
                    self._task, description=printable(f"{self._title}: {phase}"), completed=done, total=total or None
                )
        elif time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            log.info("%s: %s", self._title, self._words())

    def _words(self) -> str:
        if self._known is None:
            return f"no documents yet after {self._last_line - self._began:.0f} s (a slow device takes long for the first ones)"
        phase, done, total = (self._known[name] for name in ("phase", "done", "total"))
        return f"{phase} {done:,} of {total:,} documents" if total else str(phase)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._title = None, ""
