"""Weights & Biases: a validation run per (training run, spec), or the training run itself; the training step is the axis."""

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dr_validate.component import UserPath, component
from dr_validate.errors import SetupError
from dr_validate.findings import Find, find_nothing
from dr_validate.strategies import Sweep
from dr_validate.tracker.arrivals import Lost
from dr_validate.tracker.attached import NotShared, Place, TrainingRun, look_at
from dr_validate.tracker.home import Home, OwnRun
from dr_validate.tracker.rows import allowed
from dr_validate.tracker.session import Plan, abandon, failures, has_died, is_offline, require_key, user_name
from dr_validate.tracker.summary_run import SummaryRun
from dr_validate.tracker.validation_run import ValidationRun
from dr_validate.values import Checkpoint, Report

CONFIG_KEYS = (
    *("dataset", "sampler", "spec", "full_spec", "documents", "encoded", "queries", "dataset_fingerprint"),
    *("sample_fingerprint", "metrics", "top_k", "seed", "device"),
)
REFUSED_FOR_S = 300.0  # then the server is asked again
log = logging.getLogger(__name__)


@component
class WandbTracker:
    """Where the validation runs go. The key comes from the environment or netrc, never from here.

    `project` and `entity` fall back to WANDB_PROJECT, WANDB_ENTITY and the login; `group` to that of the checkpoint, then to
    its training run; `dir` to WANDB_DIR, then to state_dir/wandb. WANDB_MODE is respected unless `mode` is offline.
    `timeout_s` limits each wait for the server; `alias_best` writes to the model's artifacts, nothing else does. `attach`
    writes the rows into the training run itself instead, which must be in W&B's shared mode; it is looked for where its
    artifacts are, else in `project` under the name that the source gives it.
    """

    entity: str | None = None
    project: str | None = None
    mode: Literal["online", "offline"] = "online"
    group: str | None = None
    alias_best: bool = False
    attach: bool = False
    dir: UserPath | None = None
    timeout_s: float = Field(default=30, ge=1)

    @model_validator(mode="after")
    def _attach_is_online(self) -> Self:
        if self.attach and self.mode == "offline":
            raise ValueError(
                "attach=true needs mode=online: offline nobody can tell whether the training run is in shared mode"
            )
        if self.attach and self.group is not None:
            raise ValueError("group has no effect with attach=true: the training run stays in its own; leave one of them out")
        return self

    def examine(self, checkpoints: Callable[[], Sequence[Checkpoint]] = tuple, training_run: str = "") -> str:
        """What `task=doctor` says. Raises SetupError where an online run could not be opened, and where `attach` cannot be for
        the training runs of `checkpoints`."""
        import wandb

        place = "/".join(part for part in (self.entity, self.project) if part)
        found = f"wandb {wandb.__version__}, {self.mode}{', ' + place if place else ''}"
        if is_offline(self.mode):
            self._refuse_offline()
            return found
        found = f"{found}, logged in as {user_name(self.timeout_s)}"
        return f"{found}; {self._examine_attached(checkpoints(), training_run)}" if self.attach else found

    def check(self) -> None:
        """Raise SetupError where the package or the key is missing; no server is asked."""
        if is_offline(self.mode):
            self._refuse_offline()
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

    def _examine_attached(self, checkpoints: Sequence[Checkpoint], training_run: str) -> str:
        default = Place(entity=self.entity, project=self.project, run=training_run)
        places = sorted({Place.of(checkpoint, default) for checkpoint in checkpoints}, key=lambda place: place.path)
        for place in places:
            try:
                look_at(place, self.timeout_s)
            except SetupError:
                raise
            except failures() as error:
                raise SetupError(f"tracker.attach: W&B does not say how {place.path} was started ({error})") from None
        if not places:
            return "attach=true: no checkpoint yet, so the training run is not known"
        return f"attached to {', '.join(place.path for place in places)}, in shared mode"

    def _refuse_offline(self) -> None:
        if self.attach:
            raise SetupError(f"tracker.attach: got true, but WANDB_MODE={os.environ.get('WANDB_MODE')} keeps W&B offline")

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
        if is_offline(self.mode):
            self._refuse_offline()
        plan = Plan(
            entity=self.entity,
            project=self.project,
            offline=is_offline(self.mode),
            group=self.group,
            alias_best=self.alias_best,
            attach=self.attach,
            folder=self._folder(state_dir),
            timeout_s=self.timeout_s,
            state_dir=state_dir,
            training_run=training_run,
            spec=spec,
            dataset=dataset,
            sampler=sampler,
            config=allowed(config, CONFIG_KEYS),
            find=find,
        )
        return WandbRuns(plan)


class WandbRuns:
    """The W&B runs of one watcher: one per training run that its checkpoints come from."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._runs: dict[str, ValidationRun] = {}
        self._refused_until: dict[str, float] = {}  # training run -> monotonic seconds

    @property
    def is_remote(self) -> bool:
        """See `Tracker.is_remote`."""
        return not self._plan.offline

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Log one row at the checkpoint's training step; a failed or skipped one under `status/`."""
        if self._runs and has_died():
            log.warning("wandb: its process has died; opening the runs again to see what has arrived")
            abandon()
            self._runs.clear()
        training_run = self._training_run(report)
        if time.monotonic() < self._refused_until.get(training_run, 0.0):
            return
        run = self._runs.get(training_run)
        if run is None:
            home = self._home(report.checkpoint, training_run)
            run = self._runs[training_run] = ValidationRun(self._plan, home, training_run)
        try:
            run.deliver(report, [other for other in history if self._training_run(other) == training_run])
        except NotShared as error:  # no reason to keep the Reports of other training runs waiting
            self._refuse(training_run, str(error))
        except failures():
            if not run.is_open:
                # W&B's process holds on to a run that it could not open ("run ID ... is in use"), for as long as it lives.
                abandon()
                self._runs.clear()
            raise

    def settle(self, report: Report) -> bool:
        """Record its lineage, and say whether the server is known to have all of it."""
        training_run = self._training_run(report)
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

    def _home(self, checkpoint: Checkpoint, training_run: str) -> Home:
        plan = self._plan
        if not plan.attach:
            return OwnRun(plan, training_run, checkpoint.group)
        return TrainingRun(plan, Place.of(checkpoint, Place(entity=plan.entity, project=plan.project, run=training_run)))

    def _refuse(self, training_run: str, why: str) -> None:
        level = logging.DEBUG if training_run in self._refused_until else logging.WARNING
        log.log(level, "%s. Its reports are kept and delivered once that has changed", why)
        del self._runs[training_run]
        self._refused_until[training_run] = time.monotonic() + REFUSED_FOR_S

    def _training_run(self, report: Report) -> str:
        return report.checkpoint.training_run or self._plan.training_run

    def _close(self, run: ValidationRun, end: float) -> None:
        try:
            run.close(end)
        except failures() as error:
            log.debug("wandb: %s", error)  # what is missing is counted, and said, by whoever delivers
