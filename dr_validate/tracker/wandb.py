"""Weights & Biases: a validation run per (training run, spec); the training step is the axis."""

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from pydantic import Field

from dr_validate.component import UserPath, component
from dr_validate.errors import SetupError
from dr_validate.ledger.findings import Find, find_nothing
from dr_validate.ledger.revised import of_training
from dr_validate.ledger.strategies import Sweep
from dr_validate.tracker.arrivals import Lost
from dr_validate.tracker.rows import allowed
from dr_validate.tracker.run_target import RunTarget
from dr_validate.tracker.session import Plan, abandon, failures, has_died, is_offline, require_key, user_name
from dr_validate.tracker.summary_run import SummaryRun
from dr_validate.tracker.validation_run import ValidationRun
from dr_validate.values import Report

CONFIG_KEYS = (
    *("dataset", "sampler", "spec", "full_spec", "documents", "encoded", "queries", "dataset_fingerprint"),
    *("sample_fingerprint", "metrics", "top_k", "seed", "device", "members"),
)
log = logging.getLogger(__name__)


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
        place = {"entity": self.entity, "project": self.project, "group": self.group, "folder": self._folder(sweep.state_dir)}
        return SummaryRun(sweep, place, offline=is_offline(self.mode), timeout_s=self.timeout_s).log()

    def _folder(self, state_dir: Path) -> Path | None:
        return self.dir or (None if os.environ.get("WANDB_DIR") else state_dir)  # W&B adds wandb/ to it

    def start(
        self,
        *,
        state_dir: Path,
        training_run: str,
        spec: str,
        dataset: str,
        sampler: str,
        config: Mapping[str, Any],
        find: Find = find_nothing,
    ) -> "WandbRuns":
        """The live tracker of one run of the watcher. W&B itself is first asked at the first delivery, so an outage does not
        keep the validation from starting. `find` gives what is told beside the rows: a verdict, and tables."""
        plan = Plan(
            entity=self.entity,
            project=self.project,
            offline=is_offline(self.mode),
            group=self.group,
            alias_best=self.alias_best,
            alert=self.alert,
            folder=self._folder(state_dir),
            timeout_s=self.timeout_s,
            state_dir=state_dir,
            training_run=training_run,
            spec=spec,
            dataset=dataset,
            sampler=sampler,
            config=allowed(config, CONFIG_KEYS),
            find=find,
            collections=config.get("collections", ()),
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
        training_run, known = of_training(report, history, self._plan.training_run)
        run = self._runs.get(training_run)
        if run is None:
            target = RunTarget(self._plan, training_run, report.checkpoint.group)
            run = self._runs[training_run] = ValidationRun(self._plan, target, training_run)
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
        training_run, _ = of_training(report, (), self._plan.training_run)
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

    def run_id(self, training_run: str = "") -> str:
        """Of the W&B run for a training run; empty means that of the source."""
        return self._plan.run_id(training_run or self._plan.training_run)

    def _close(self, run: ValidationRun, end: float) -> None:
        try:
            run.close(end)
        except failures() as error:
            log.debug("wandb: %s", error)  # what is missing is counted, and said, by whoever delivers
