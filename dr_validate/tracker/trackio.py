"""Trackio, Hugging Face's local tracker: the rows of W&B, a run for each training run and spec, in Trackio's own folder."""

import contextlib
import importlib.metadata
import io
from collections.abc import Iterator

from pydantic import Field

from dr_validate.component import component
from dr_validate.errors import Outage
from dr_validate.tracker.local import LocalTracker, TrackedRow
from dr_validate.tracker.rows import REPORT, STEP, allowed

CONFIG_KEYS = ("dataset", "sampler", "spec", "documents", "encoded", "queries", "metrics", "top_k", "seed")


@component
class TrackioTracker(LocalTracker):
    """Logs to `project` in TRACKIO_DIR, a folder on this machine; nothing leaves it. `trackio show` is its dashboard."""

    package = "trackio"
    project: str = Field(default="dr_validate", pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")

    def examine(self) -> str:
        """What `task=doctor` says. Raises SetupError where the package is not installed."""
        self.check()
        return f"trackio {importlib.metadata.version('trackio')}, project {self.project}"

    def write(self, told: TrackedRow) -> None:
        """Open the run, ask it what it has, log the row at the checkpoint's training step, and close it: nothing waits."""
        name = f"{told.training_run} {told.name}"
        with _silent():
            import trackio

            if _has(self.project, name, told.key):
                return
            own = {
                "embed": False,
                "auto_log_gpu": False,
                "auto_log_cpu": False,
                "config": allowed(told.about.config, CONFIG_KEYS),
            }
            run = trackio.init(project=self.project, name=name, group=told.training_run, resume="allow", **own)
            run.log({**told.numbers, REPORT: told.key}, step=int(told.numbers[STEP]))
            trackio.finish()
            if not _has(self.project, name, told.key):  # which it only warns of
                raise Outage("trackio has not written the row to its database")


def _has(project: str, name: str, key: str) -> bool:
    """Whether the run has the row of a Report."""
    from trackio.sqlite_storage import SQLiteStorage  # its public API does not give rows back

    return any(logged.get(REPORT) == key for logged in SQLiteStorage.get_logs(project, name))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Trackio prints on standard output, which is for our tables."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
