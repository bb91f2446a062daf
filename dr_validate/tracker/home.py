"""Where rows go in W&B: what a run of its own and the training run itself have in common, and the run of its own."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from dr_validate.errors import Outage
from dr_validate.tracker.rows import HIGHER_IS_BETTER, PREFIXES, REPORT, STEP
from dr_validate.tracker.session import Plan, api, opened, require_key, settings
from dr_validate.values import Report

if TYPE_CHECKING:
    import wandb

MAX_TAG_CHARACTERS = 64


class Home(Protocol):
    """A W&B run to be, and what every row in it carries to be told from others."""

    @property
    def mark(self) -> Mapping[str, str]: ...

    @property
    def is_own(self) -> bool:
        """Whether it holds nothing but validation."""
        ...

    def open(self) -> "wandb.Run":
        """Start it or go on with it. Raises what the SDK does."""
        ...

    def read_back(self, run: "wandb.Run", *, complete: bool) -> set[str]:
        """Ids of the Reports whose rows the server has.

        The readable history lags behind what was sent. With `complete`, Outage is raised until it holds every row that the
        run had when it was opened.
        """
        ...

    def summarize(self, run: "wandb.Run", history: Sequence[Report], prefix: str) -> None:
        """See to it that the best values of `history`, whose keys begin with `prefix`, stand in the run's summary."""
        ...

    def finish(self, run: "wandb.Run") -> None:
        """Wait for the upload."""
        ...


class OwnRun:
    """The validation run of one training run and spec: its id follows from both, so a restart goes on with it."""

    mark: Mapping[str, str] = {}
    is_own = True

    def __init__(self, plan: Plan, training_run: str, group: str) -> None:
        self._plan, self._training_run, self._group = plan, training_run, group

    def open(self) -> "wandb.Run":
        """Start or, after a restart, go on with it."""
        plan = self._plan
        if not plan.offline:
            require_key()
        if plan.folder is not None:
            plan.folder.mkdir(parents=True, exist_ok=True)
        run = opened(self._init)
        run.define_metric(STEP)
        for prefix in PREFIXES:
            # W&B drops rows whose step goes backwards, and late checkpoints do: so we bring our own axis.
            run.define_metric(f"{prefix}/*", step_metric=STEP, summary="max" if prefix in HIGHER_IS_BETTER else None)
        return run

    def read_back(self, run: "wandb.Run", *, complete: bool) -> set[str]:
        """See Home. Nobody else writes here: the last of the rows that it had shows that all are there."""
        expected = run.starting_step if complete else 0
        if complete and not expected:
            return set()
        found: set[str] = set()
        last_step = -1
        for row in api(self._plan.timeout_s).run(run.path).scan_history(use_cache=False):
            last_step = max(last_step, int(row.get("_step", -1)))
            if isinstance(row.get(REPORT), str):
                found.add(row[REPORT])
        require_shown(run, expected, last_step)
        return found

    def summarize(self, run: "wandb.Run", history: Sequence[Report], prefix: str) -> None:
        """See Home. The SDK does it, after a restart too: `summary="max"`."""

    def finish(self, run: "wandb.Run") -> None:
        """See Home."""
        run.finish()

    def _init(self) -> "wandb.Run":
        import wandb

        plan = self._plan
        return wandb.init(
            entity=plan.entity,
            project=plan.project,
            mode=wandb_mode(offline=plan.offline),
            dir=plan.folder,
            id=plan.run_id(self._training_run),
            resume=None if plan.offline else "allow",
            name=f"{self._training_run} {plan.dataset} {plan.sampler}",
            group=plan.group or self._group or self._training_run,
            job_type="validate",
            tags=[tag[:MAX_TAG_CHARACTERS] for tag in (plan.dataset, plan.sampler)],
            config=dict(plan.config),
            reinit="create_new",
            settings=settings(plan.timeout_s),
        )


def require_shown(run: "wandb.Run", num_rows: int, last_step: int) -> None:
    """Raises Outage where the history, readable up to `last_step`, does not hold `num_rows` yet."""
    if last_step < num_rows - 1:
        raise Outage(f"W&B has rows up to {num_rows - 1} of {run.path}, but shows them up to {last_step} only so far")


def wandb_mode(*, offline: bool) -> Literal["online", "offline"] | None:
    """Of a run that is ours alone."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    return "offline" if offline else "online"  # never shared: that is for runs that several processes write to
