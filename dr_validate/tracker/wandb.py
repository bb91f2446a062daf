"""Weights & Biases: a validation run per (training run, spec), by training step; a run for the table at the end of a sweep."""

import dataclasses
import importlib.util
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dr_validate.component import UserPath, component
from dr_validate.errors import Outage, SetupError
from dr_validate.files import read_note, write_atomically
from dr_validate.ledger.reports import of_training
from dr_validate.stages import Tracked
from dr_validate.tracker.rows import allowed
from dr_validate.tracker.session import (
    Plan,
    abandon,
    api,
    failures,
    has_died,
    is_offline,
    open_run,
    require_key,
    settings,
    user_name,
)
from dr_validate.tracker.validation_run import Lost, ValidationRun
from dr_validate.values import Report, Sweep, SweepRow

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)
CONFIG_KEYS = (
    *("dataset", "sampler", "spec", "full_spec", "documents", "encoded", "queries", "dataset_fingerprint"),
    *("sample_fingerprint", "metrics", "top_k", "seed", "device", "members"),
)
TABLE = "tables/strategies"
KEY = "_table"  # beside the table: names its content, so that a repeated sweep does not log the same again


@component
class WandbTracker:
    """Where the validation runs go. The key comes from the environment or netrc, never from here.

    `project` and `entity` fall back to WANDB_PROJECT, WANDB_ENTITY and the login; `group` to that of the checkpoint, then to
    its training run; `dir` to WANDB_DIR, then to state_dir/wandb. WANDB_MODE is respected unless `mode` is offline.
    `timeout_s` limits each wait for the server; `alias_best` writes to the model's artifacts, nothing else does;
    `alert` has W&B tell you of each new best checkpoint, and of each later one that is clearly worse than the best.
    """

    entity: str | None = None
    project: str | None = None
    mode: Literal["online", "offline"] = "online"
    group: str | None = None
    alias_best: bool = False
    alert: bool = False
    dir: UserPath | None = None
    timeout_s: float = Field(default=30, ge=1)

    def examine(self) -> str:
        """What `task=doctor` says. Raises SetupError where an online run could not be opened."""
        import wandb

        place = "/".join(part for part in (self.entity, self.project) if part)
        found = f"wandb {wandb.__version__}, {self.mode}{', ' + place if place else ''}"
        return found if is_offline(self.mode) else f"{found}, logged in as {user_name(self.timeout_s)}"

    def check(self) -> None:
        """Raise SetupError where the package or the key is missing; no server is asked."""
        if importlib.util.find_spec("wandb") is None:
            raise SetupError("tracker: wandb is not installed; pip install wandb, or set tracker=none")
        if not is_offline(self.mode):
            require_key()

    def log_sweep(self, sweep: Sweep) -> str:
        """Log the table of a sweep to a run of its own; where it went. Raises Outage or SetupError where it did not arrive."""
        return SummaryRun(sweep, self).log()

    def folder(self, state_dir: Path) -> Path | None:
        """Where the SDK keeps its files; None for where WANDB_DIR says."""
        return self.dir or (None if os.environ.get("WANDB_DIR") else state_dir)  # W&B adds wandb/ to it

    def start(self, about: Tracked) -> "WandbRuns":
        """See `Tracker.start`. W&B itself is first asked at the first delivery, so an outage does not keep the validation from
        starting."""
        plan = Plan(
            about=about,
            config=allowed(about.config, CONFIG_KEYS),
            entity=self.entity,
            project=self.project,
            offline=is_offline(self.mode),
            group=self.group,
            alias_best=self.alias_best,
            alert=self.alert,
            folder=self.folder(about.state_dir),
            timeout_s=self.timeout_s,
        )
        return WandbRuns(plan)


class WandbRuns:
    """The W&B runs of one watcher: one per training run that its checkpoints come from."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._runs: dict[str, ValidationRun] = {}

    @property
    def is_remote(self) -> bool:
        """See `TrackerRun.is_remote`."""
        return not self._plan.offline

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Log one row at the checkpoint's training step; a failed or skipped one under `status/`."""
        if self._runs and has_died():
            log.warning("wandb: its process has died; opening the runs again to see what has arrived")
            abandon()
            self._runs.clear()
        training_run, known = self._of_training(report, history)
        run = self._runs.get(training_run)
        if run is None:
            run = self._runs[training_run] = ValidationRun(self._plan, training_run, report.checkpoint.group)
        try:
            run.deliver(report, known)
        except failures():
            if not run.is_open:
                # W&B's process holds on to a run that it could not open ("run ID ... is in use"), for as long as it lives.
                abandon()
                self._runs.clear()
            raise

    def settle(self, report: Report) -> bool:
        """Record its lineage, and say whether the server is known to have all of it."""
        training_run, _ = self._of_training(report, ())
        run = self._runs.get(training_run)
        try:
            return run is not None and run.settle(report)
        except Lost as error:
            assert run is not None
            log.warning("wandb: %s; opening the run again to send them", error)
            del self._runs[training_run]
            run.let_go()
            return False

    def close(self, timeout_s: float) -> None:
        """Log the tables and finish all runs; what has not arrived by then is delivered at the next start."""
        end = time.monotonic() + timeout_s
        runs = list(self._runs.values())
        for run in runs:  # not in threads, which may outlive the ledger
            run.find()
        closing = [threading.Thread(target=self._close, args=(run, end), name="wandb-finish", daemon=True) for run in runs]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(max(0.0, end - time.monotonic()))
        if not all(run.is_complete for run in runs):
            abandon()
        for place in sorted({folder.parent for run in runs if (folder := run.offline_folder)}):
            log.info("wandb: to upload what was logged offline, now or before: wandb sync %s/offline-run-*", quote(str(place)))

    def _of_training(self, report: Report, history: Sequence[Report]) -> tuple[str, list[Report]]:
        about = self._plan.about
        return of_training(report, history, about.training_run, about.folder)

    def run_id(self, training_run: str = "") -> str:
        """Of the W&B run for a training run; empty means that of the source."""
        return self._plan.run_id(training_run or self._plan.about.training_run)

    def _close(self, run: ValidationRun, end: float) -> None:
        try:
            run.close(end)
        except failures() as error:
            log.debug("wandb: %s", error)  # what is missing is counted, and said, by whoever delivers


class SummaryRun:
    """The one run of a sweep."""

    def __init__(self, sweep: Sweep, tracker: WandbTracker) -> None:
        self._sweep, self._tracker = sweep, tracker
        self._offline, self._timeout_s = is_offline(tracker.mode), tracker.timeout_s
        self._marker = sweep.state_dir / "sweeps" / f"{sweep.run_id}.json"
        self._problem: Exception | None = None
        self._said = ""

    def log(self) -> str:
        """Log the table unless it is there; what to tell the user. Takes about twice `timeout_s` at most.

        Raises Outage or SetupError where it has not arrived.
        """
        thread = threading.Thread(target=self._log, name="wandb-sweep", daemon=True)
        thread.start()
        thread.join(2 * self._timeout_s)
        if thread.is_alive() or self._problem is not None:
            abandon()  # its hook at the end of this process would wait, too
        if thread.is_alive():
            raise Outage(f"W&B took longer than {2 * self._timeout_s:g} s")
        if isinstance(self._problem, SetupError):
            raise self._problem
        if self._problem is not None:
            raise Outage(f"{type(self._problem).__name__}: {self._problem}") from self._problem
        return self._said

    def _log(self) -> None:
        try:
            self._said = self._log_offline() if self._offline else self._log_online()
        except failures() as error:
            self._problem = error

    def _log_online(self) -> str:
        run = self._opened()
        if not self._is_there(run):
            self._log_table(run)
        run.finish()
        return str(run.url)

    def _log_offline(self) -> str:
        """What is handed over counts as logged: another folder with the same table would double it."""
        if read_note(self._marker, lambda note: note["key"], None) == self._sweep.key:
            return "handed over before"
        run = self._opened()
        self._log_table(run)
        run.finish()
        write_atomically(self._marker, json.dumps({"key": self._sweep.key}))
        return f"offline, to upload: wandb sync {quote(str(run.settings.sync_dir))}"

    def _is_there(self, run: "wandb.Run") -> bool:
        if not run.starting_step:
            return False
        rows = api(self._timeout_s).run(run.path).scan_history(use_cache=False)
        keys = [row[KEY] for row in rows if KEY in row]
        return bool(keys) and keys[-1] == self._sweep.key

    def _log_table(self, run: "wandb.Run") -> None:
        import wandb

        columns: list[str | int] = [part.name for part in dataclasses.fields(SweepRow)]
        rows = [list(dataclasses.asdict(one).values()) for one in self._sweep.strategies]
        run.log({TABLE: wandb.Table(columns=columns, data=rows, allow_mixed_types=True), KEY: self._sweep.key})

    def _opened(self) -> "wandb.Run":
        sweep, tracker = self._sweep, self._tracker
        return open_run(
            entity=tracker.entity,
            project=tracker.project,
            folder=tracker.folder(sweep.state_dir),
            offline=self._offline,
            id=sweep.run_id,
            name=f"{sweep.training_run} {sweep.dataset}: {len(sweep.strategies)} strategies",
            group=tracker.group or sweep.group or sweep.training_run,
            job_type="validate-sweep",
            tags=(sweep.dataset,),
            config={"dataset": sweep.dataset, "specs": sorted(set(sweep.specs))},
            timeout_s=self._timeout_s,
            settings=settings(self._timeout_s, finish_timeout_raises=True),
        )
