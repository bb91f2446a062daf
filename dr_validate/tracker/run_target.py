"""The W&B run that rows go to: how it is opened, written, read back and finished."""

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dr_validate.errors import Outage
from dr_validate.files import write_atomically
from dr_validate.tracker.rows import HIGHER_IS_BETTER, PREFIXES, REPORT, STEP
from dr_validate.tracker.session import Plan, api, opened, require_key, settings
from dr_validate.values import Report

if TYPE_CHECKING:
    import wandb

MAX_TAG_CHARACTERS = 64
ROWS_PER_START = 1_000_000


class RunTarget:
    """The run of one training run and spec: its id follows from both, so a restart resumes it."""

    def __init__(self, plan: Plan, training_run: str, group: str) -> None:
        self._plan, self._training_run, self._group = plan, training_run, group

    def open(self) -> "wandb.Run":
        """Start it, or resume it after a restart. Raises what the SDK does."""
        plan = self._plan
        if not plan.offline:
            require_key()
        if plan.folder is not None:
            plan.folder.mkdir(parents=True, exist_ok=True)
        run = opened(self._init)
        if plan.offline:
            run.log({}, step=self._num_starts() * ROWS_PER_START, commit=False)  # from there on the SDK counts
        run.define_metric(STEP)
        for prefix in PREFIXES:
            # W&B drops rows whose step goes backwards, and late checkpoints do: so we bring our own axis.
            run.define_metric(f"{prefix}/*", step_metric=STEP, summary="max" if prefix in HIGHER_IS_BETTER else None)
        return run

    def alert_once(self, run: "wandb.Run", key: str, words: tuple[str, str] | None) -> None:
        """Have W&B tell the user (title, text) of the Report with id `key`, which is noted first: a kill may cost an alert, and
        never repeats one."""
        path = self._plan.state_dir / "alerts" / f"{self._plan.run_id(self._training_run)}.json"
        try:
            before = list(json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            before = []
        if words is not None and key not in before:
            write_atomically(path, json.dumps([*before, key]))
            run.alert(title=words[0], text=words[1])

    def read_back(self, run: "wandb.Run", *, complete: bool) -> set[str]:
        """Ids of the Reports whose rows the server has.

        The readable history lags behind what was sent. With `complete`, Outage is raised until it holds every row that the
        run had when it was opened; nobody else writes here, so the last of these shows that all are there.
        """
        expected = run.starting_step if complete else 0
        if complete and not expected:
            return set()
        found: set[str] = set()
        last_step = -1
        for row in api(self._plan.timeout_s).run(run.path).scan_history(use_cache=False):
            last_step = max(last_step, int(row.get("_step", -1)))
            if isinstance(row.get(REPORT), str):
                found.add(row[REPORT])
        if last_step < expected - 1:
            raise Outage(f"W&B has rows up to {expected - 1} of {run.path}, but shows them up to {last_step} only so far")
        return found

    def summarize(self, run: "wandb.Run", history: Sequence[Report], prefix: str) -> None:
        """Have the best values of `history`, whose keys begin with `prefix`, stand in the run's summary.

        The SDK's own (`summary="max"`) are those of the rows of this process, which are never revised.
        """
        run.summary.update({key: {"max": value} for key, value in best_values(history, prefix).items()})

    def finish(self, run: "wandb.Run") -> None:
        """Wait for the upload."""
        run.finish()

    def _num_starts(self) -> int:
        """Offline folders that came before this one. Each counts its rows from 0, and of two rows with one number the server
        keeps one: so each gets numbers of its own."""
        path = self._plan.state_dir / "offline" / f"{self._plan.run_id(self._training_run)}.json"
        try:
            before = int(json.loads(path.read_bytes())["starts"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            before = 0
        write_atomically(path, json.dumps({"starts": before + 1}))
        return before

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


def best_values(history: Sequence[Report], prefix: str) -> dict[str, float]:
    """The highest of each value by its key."""
    best: dict[str, float] = {}
    for report in history:
        for name, estimate in report.metrics.items():
            key = f"{prefix}/{report.dataset}/{name}"
            parts = {"": estimate.value, "/low": estimate.low, "/high": estimate.high, "/naive": estimate.naive}
            best |= {f"{key}{end}": max(value, best.get(f"{key}{end}", value)) for end, value in parts.items()}
    return best


def wandb_mode(*, offline: bool) -> Literal["online", "offline"] | None:
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    return "offline" if offline else "online"  # never shared: that is for runs that several processes write to
