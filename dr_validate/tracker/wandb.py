"""Weights & Biases: one validation run per (training run, spec), with the training step as x axis."""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dr_validate.component import component, fingerprint
from dr_validate.tracker.rows import HIGHER_IS_BETTER, PREFIXES, STEP, allowed, row, table
from dr_validate.values import Report

if TYPE_CHECKING:
    import wandb

CONFIG_KEYS = (
    *("dataset", "sampler", "spec", "full_spec", "documents", "encoded", "queries"),
    *("metrics", "top_k", "seed", "device"),
)
MAX_TAG_CHARACTERS = 64
INIT_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 60  # for W&B's own hook at the end of the process; `close` has the caller's limit
log = logging.getLogger(__name__)


@component
class WandbTracker:
    """Where the validation runs go. The key comes from the environment or netrc, never from here.

    `project` and `entity` fall back to WANDB_PROJECT, WANDB_ENTITY and the login; `group` to the training run's name; `dir` to
    WANDB_DIR, then to state_dir/wandb. WANDB_MODE is respected unless `mode` is offline.
    """

    entity: str | None = None
    project: str | None = None
    mode: Literal["online", "offline"] = "online"
    group: str | None = None
    alias_best: bool = False
    dir: Path | None = None

    def examine(self) -> str:
        """What `task=doctor` says."""
        import wandb

        place = "/".join(part for part in (self.entity, self.project) if part)
        return f"wandb {wandb.__version__}, {self.mode}{', ' + place if place else ''}"

    def start(
        self, *, state_dir: Path, training_run: str, spec: str, dataset: str, sampler: str, config: Mapping[str, Any]
    ) -> "WandbRun":
        """The live tracker of one run of the watcher. W&B itself is first asked at the first delivery, so an outage does not
        keep the validation from starting."""
        names = _Names(state_dir=state_dir, training_run=training_run, spec=spec, dataset=dataset, sampler=sampler)
        return WandbRun(tracker=self, names=names, config=allowed(config, CONFIG_KEYS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    state_dir: Path
    training_run: str
    spec: str
    dataset: str
    sampler: str


@dataclass(kw_only=True)
class WandbRun:
    """A W&B run that is opened by the first delivery and finished by `close`."""

    tracker: WandbTracker
    names: _Names
    config: Mapping[str, Any]
    _run: "wandb.Run | None" = None
    _history: Sequence[Report] = field(default=())

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Log one row at the checkpoint's training step; a failed or skipped one under `status/`."""
        is_baseline = report.spec != self.names.spec
        self._open_run().log(row(report, history, is_baseline=is_baseline))
        if not is_baseline:
            self._history = history

    def close(self, timeout_s: float) -> None:
        """Log the table of checkpoints and finish within `timeout_s`; nothing was opened if nothing was delivered."""
        if self._run is None:
            return
        import wandb

        if self._history:
            columns, rows = table(self._history)
            self._run.log({"tables/checkpoints": wandb.Table(columns=[*columns], data=rows, allow_mixed_types=True)})
        # finish() waits for the upload, for ever if it must; what is not uploaded by then stays on disk for `wandb sync`.
        finishing = threading.Thread(target=self._run.finish, name="wandb-finish", daemon=True)
        finishing.start()
        finishing.join(timeout_s)
        if finishing.is_alive():
            log.warning("wandb: not finished after %g s; `wandb sync %s` brings the rest", timeout_s, self._folder())
        self._run = None

    @property
    def run_id(self) -> str:
        """The same for the same training run and spec: a restart goes on with it."""
        return fingerprint({"training_run": self.names.training_run, "spec": self.names.spec})

    def _open_run(self) -> "wandb.Run":
        if self._run is None:
            self._run = self._init()
            self._run.define_metric(STEP)
            for prefix in PREFIXES:
                # W&B drops rows whose step goes backwards, and late checkpoints do: so we bring our own axis.
                summary = "max" if prefix in HIGHER_IS_BETTER else None
                self._run.define_metric(f"{prefix}/*", step_metric=STEP, summary=summary)
            log.info("wandb: %s", f"offline run in {self._folder()}" if self._run.offline else self._run.url)
        return self._run

    def _folder(self) -> str:
        return "" if self._run is None else self._run.settings.sync_dir

    def _init(self) -> "wandb.Run":
        import wandb

        names, tracker = self.names, self.tracker
        folder = tracker.dir or (None if os.environ.get("WANDB_DIR") else names.state_dir)  # W&B adds wandb/ to it
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            entity=tracker.entity,
            project=tracker.project,
            mode="offline" if tracker.mode == "offline" else None,
            dir=folder,
            id=self.run_id,
            name=f"{names.training_run} {names.dataset} {names.sampler}",
            group=tracker.group or names.training_run,
            job_type="validate",
            tags=[tag[:MAX_TAG_CHARACTERS] for tag in (names.dataset, names.sampler)],
            config=dict(self.config),
            reinit="create_new",
            settings=_settings(),
        )


def _settings() -> "wandb.Settings":
    import wandb

    # Neither code, git state, command line nor console output leaves this machine: only what is logged on purpose.
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        silent=True,
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
    )
