"""The training run itself as the place of the rows: only where it is in W&B's shared mode, for else rows would be lost."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dr_validate.errors import SetupError
from dr_validate.tracker.home import best_values, require_shown
from dr_validate.tracker.rows import HIGHER_IS_BETTER, PREFIXES, REPORT, SCHEME, STEP
from dr_validate.tracker.session import Plan, api, failures, marked_rows, opened, require_key, settings
from dr_validate.values import Checkpoint, Report

if TYPE_CHECKING:
    import wandb

SPEC = "_spec"  # in every row of ours: two specs under the same keys could not be told apart
SHARED_MODE = 67  # its number among the features in the telemetry that the SDK keeps in a run's config
ALIVE = ("running", "pending")
SUMMARIES: Mapping[int, Literal["min", "max", "mean", "last", "none", "first"]] = {
    1: "min",
    2: "max",
    3: "mean",
    5: "last",
    6: "none",
    8: "first",
}
WAY_OUT = 'start the training with WANDB_MODE=shared (or wandb.Settings(mode="shared")), or set tracker.attach=false'


class NotShared(SetupError):
    """Rows in this training run would get lost, or could not be told from others: nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a training run is; None: what the SDK takes for it."""

    entity: str | None
    project: str | None
    run: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, fallback: "Place") -> "Place":
        """That which wrote the checkpoint: beside its artifact, if it is one."""
        run = checkpoint.training_run or fallback.run
        if checkpoint.uri.startswith(SCHEME):
            entity, project, _ = checkpoint.uri.removeprefix(SCHEME).split("/", 2)
            return cls(entity=entity, project=project, run=run)
        return cls(entity=fallback.entity, project=fallback.project, run=run)

    @property
    def path(self) -> str:
        """As `wandb.Api` takes it."""
        return "/".join(part for part in (self.entity, self.project, self.run) if part)


def look_at(place: Place, timeout_s: float) -> Any:
    """The training run as the server shows it. Raises NotShared unless its own telemetry says that it is in shared mode."""
    try:
        run = api(timeout_s).run(place.path)
    except failures() as error:
        if "not find run" not in str(error) and "not found" not in str(error).lower():
            raise
        raise NotShared(
            f"tracker.attach: W&B has no run {place.path}; tracker.project and, for source=folder, source.name must be those "
            "of the training run"
        ) from error
    if SHARED_MODE not in _features(run.rawconfig):
        raise NotShared(
            f"tracker.attach: the training run {place.path} is not known to be in shared mode, so rows of it or of ours would "
            f"be lost; {WAY_OUT}"
        )
    return run


class TrainingRun:
    """One training run, with the rows of one spec beside its own. Nothing else of it is written to: no config, tags or name."""

    is_own = False

    def __init__(self, plan: Plan, place: Place) -> None:
        self._plan, self._place = plan, place
        self.mark: Mapping[str, str] = {SPEC: plan.spec}
        self._num_rows = 0
        self._exit_code = 0

    def open(self) -> "wandb.Run":
        """Join it. Raises NotShared, before anything is written, where that would do harm."""
        require_key()
        found = look_at(self._place, self._plan.timeout_s)
        others = {row[SPEC] for row in marked_rows(found, [REPORT, SPEC])} - {self._plan.spec}
        if others:
            raise NotShared(
                f"tracker.attach: {self._place.path} has rows of another spec ({min(others)}; this one is {self._plan.spec}) "
                "under the same keys; set tracker.attach=false for one of them"
            )
        if self._plan.folder is not None:
            self._plan.folder.mkdir(parents=True, exist_ok=True)
        is_alive = found.state in ALIVE
        self._exit_code = 0 if found.state == "finished" else 1
        run = opened(lambda: self._init(leaves_state=is_alive))
        self._define_metrics(run, found.rawconfig)
        return run

    def read_back(self, run: "wandb.Run", *, complete: bool) -> set[str]:
        """See Home. The training goes on writing: what counts is how many rows there are by now."""
        found = api(self._plan.timeout_s).run(self._place.path)
        if complete:
            last = max(0, found.historyLineCount - 1)
            rows = found.scan_history(min_step=last, use_cache=False) if found.historyLineCount else ()
            require_shown(run, found.historyLineCount, max((int(row["_step"]) for row in rows), default=-1))
        return {row[REPORT] for row in marked_rows(found, [REPORT, SPEC])}

    def log(self, run: "wandb.Run", row: Mapping[str, Any]) -> None:
        """See Home."""
        run.log(dict(row))

    def summarize(self, run: "wandb.Run", history: Sequence[Report], prefix: str) -> None:
        """See Home. In shared mode the SDK knows nothing of the values of an earlier process."""
        for key, value in best_values(history, prefix).items():
            run.summary[key] = {"max": value}

    def finish(self, run: "wandb.Run") -> None:
        """Leave it as it was found: running, or ended as it had."""
        run.finish(exit_code=self._exit_code)

    def _init(self, *, leaves_state: bool) -> "wandb.Run":
        import wandb

        shared = settings(
            self._plan.timeout_s,
            mode="shared",
            x_primary=False,
            x_label=f"dr_validate-{socket.gethostname()}-{os.getpid()}",
            x_update_finish_state=not leaves_state,
            x_disable_machine_info=True,
            x_disable_stats=True,
        )
        place = self._place
        return wandb.init(
            entity=place.entity,
            project=place.project,
            id=place.run,
            dir=self._plan.folder,
            reinit="create_new",
            settings=shared,
        )

    def _define_metrics(self, run: "wandb.Run", config: Mapping[str, Any]) -> None:
        """Those of the training again, since the server may keep the last list of them; ours by name, which beats a pattern."""
        for name, options in _definitions(config):
            if name != STEP:
                run.define_metric(name, **options)
        run.define_metric(STEP, summary="none")  # the summary keeps the step that the training has come to
        for prefix in PREFIXES:
            run.define_metric(f"{prefix}/*", step_metric=STEP)
            for metric in self._plan.config.get("metrics", ()) if prefix in HIGHER_IS_BETTER else ():
                for end in ("", "/low", "/high", "/naive"):
                    run.define_metric(f"{prefix}/{self._plan.dataset}/{metric}{end}", step_metric=STEP, summary="none")


def _features(config: Mapping[str, Any]) -> Sequence[int]:
    """Numbers of the SDK's features that the processes of a run used, as far as its config says."""
    telemetry = _internal(config).get("t")
    features = telemetry.get("3") if isinstance(telemetry, Mapping) else None
    return features if isinstance(features, list) else ()


def _definitions(config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name or pattern of each metric that was defined, and the options of `define_metric`. W&B numbers the fields."""
    given = [part for part in _internal(config).get("m") or () if isinstance(part, Mapping)]
    found = []
    for part in given:
        step, switches = part.get("5"), part.get("6") or ()
        summary = next((SUMMARIES[number] for number in part.get("7") or () if number in SUMMARIES), None)
        options: dict[str, Any] = {"summary": summary, "hidden": True if 2 in switches else None}
        if isinstance(step, int) and 0 < step <= len(given):
            options |= {"step_metric": given[step - 1].get("1"), "step_sync": 1 in switches}
        found.append((str(part.get("1") or part.get("2")), options))
    return found


def _internal(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What W&B keeps for itself in a run's config."""
    found = config.get("_wandb")
    return found if isinstance(found, Mapping) else {}
