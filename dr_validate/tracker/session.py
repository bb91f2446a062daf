"""How this process talks to W&B: the key, the settings, opening a run, reading back what a run holds."""

import contextlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_validate.component import fingerprint
from dr_validate.errors import Outage, SetupError
from dr_validate.tracker.rows import HIGHER_IS_BETTER, PREFIXES, REPORT, STEP

if TYPE_CHECKING:
    import wandb

FINISH_TIMEOUT_S = 60  # for the hook of W&B at the end of the process; `WandbRuns.close` has the limit of its caller
MAX_TAG_CHARACTERS = 64
OFFLINE_MODES = ("offline", "dryrun", "disabled")
WAY_OUT = "run `wandb login`, set WANDB_API_KEY, or set tracker.mode=offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where the validation runs of one watcher go, and what they are called; `config` is what may be uploaded of it."""

    entity: str | None
    project: str | None
    offline: bool
    group: str | None
    alias_best: bool
    folder: Path | None
    timeout_s: float
    state_dir: Path
    training_run: str
    spec: str
    dataset: str
    sampler: str
    config: Mapping[str, Any]

    def run_id(self, training_run: str) -> str:
        """The same for the same training run and spec: a restart goes on with it."""
        return fingerprint({"training_run": training_run, "spec": self.spec})


def is_offline(mode: str) -> bool:
    """Whether the configuration or WANDB_MODE keeps W&B away from its server."""
    return mode == "offline" or os.environ.get("WANDB_MODE") in OFFLINE_MODES


def require_key() -> None:
    """Raises SetupError where no key is to be found; asks nobody, not even on a terminal."""
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    try:
        # wandb.init() and wandb.Api() would prompt.
        found = wbauth.authenticate_session(host=host, source="dr_validate", prompt=False, update_session=False)
    except wandb.errors.AuthenticationError as error:
        raise SetupError(f"tracker: the W&B key for {host} cannot be used ({error}); {WAY_OUT}") from None
    if found is None:
        raise SetupError(f"tracker: no W&B key for {host}; {WAY_OUT}")


def user_name(timeout_s: float) -> str:
    """Who the key belongs to. Raises SetupError if the server refuses it or does not answer."""
    import wandb

    require_key()
    try:
        viewer = wandb.Api(timeout=max(1, int(timeout_s))).viewer
    except failures() as error:
        host = wandb.setup().settings.base_url
        raise SetupError(f"tracker: W&B at {host} refuses the key or cannot be reached ({error}); {WAY_OUT}") from None
    return str(viewer.username)


def open_run(plan: Plan, training_run: str, group: str) -> "wandb.Run":
    """Start or, after a restart, go on with the validation run of `training_run`. Raises what the SDK does."""
    import wandb

    if not plan.offline:
        require_key()
    if plan.folder is not None:
        plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        run = _init(plan, training_run, group)
    except wandb.Error as error:
        if "error 401" in str(error) or "error 403" in str(error):
            host = wandb.setup().settings.base_url
            raise SetupError(f"W&B at {host} refuses the key for this project ({error}); {WAY_OUT}") from None
        raise
    run.define_metric(STEP)
    for prefix in PREFIXES:
        # W&B drops rows whose step goes backwards, and late checkpoints do: so we bring our own axis.
        run.define_metric(f"{prefix}/*", step_metric=STEP, summary="max" if prefix in HIGHER_IS_BETTER else None)
    return run


def _init(plan: Plan, training_run: str, group: str) -> "wandb.Run":
    import wandb

    return wandb.init(
        entity=plan.entity,
        project=plan.project,
        mode="offline" if plan.offline and os.environ.get("WANDB_MODE") != "disabled" else None,
        dir=plan.folder,
        id=plan.run_id(training_run),
        resume=None if plan.offline else "allow",
        name=f"{training_run} {plan.dataset} {plan.sampler}",
        group=plan.group or group or training_run,
        job_type="validate",
        tags=[tag[:MAX_TAG_CHARACTERS] for tag in (plan.dataset, plan.sampler)],
        config=dict(plan.config),
        reinit="create_new",
        settings=_settings(plan.timeout_s),
    )


def read_back(run: "wandb.Run", *, complete: bool = True) -> set[str]:
    """Ids of the Reports whose rows the server has.

    The readable history lags behind what was sent. With `complete`, Outage is raised until it holds every row that the run
    had when it was opened.
    """
    found: set[str] = set()
    last_step = -1
    for row in _api(run).run(run.path).scan_history(use_cache=False):
        last_step = max(last_step, int(row.get("_step", -1)))
        if isinstance(row.get(REPORT), str):
            found.add(row[REPORT])
    if complete and last_step < run.starting_step - 1:
        raise Outage(f"W&B has rows up to {run.starting_step - 1} of {run.path}, but shows them up to {last_step} only so far")
    return found


def failures() -> tuple[type[Exception], ...]:
    """What the SDK raises when the server, or its own process, does not do what it should."""
    import wandb
    from wandb.sdk.lib.asyncio_manager import AlreadyJoinedError
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    closed = (AlreadyJoinedError, HandleAbandonedError, MailboxClosedError)  # also after `abandon`, in another thread
    return wandb.Error, WandbApiFailedError, *closed, ValueError, OSError


def has_died() -> bool:
    """Whether the SDK's own process is gone, and with it what it had not sent."""
    process = _service()
    return process is not None and process.poll() is not None


def abandon() -> None:
    """End the SDK's own process: its hook at the end of ours would wait for an unreachable server."""
    import wandb

    process = _service()
    if process is not None:
        process.kill()
        with contextlib.suppress(SystemExit, *failures()):  # it tells us that the process was killed
            wandb.teardown()


def _service() -> "subprocess.Popen[bytes] | None":
    import wandb

    # There is no public way to it; where these names are gone, W&B's hook waits as long as it likes.
    service = getattr(getattr(wandb.setup(), "_connection", None), "_proc", None)
    return getattr(service, "_process", None)


def _api(run: "wandb.Run") -> "wandb.Api":
    import wandb

    return wandb.Api(overrides={"base_url": run.settings.base_url}, timeout=max(1, int(run.settings.init_timeout)))


def _settings(timeout_s: float) -> "wandb.Settings":
    import wandb

    # Neither code, git state, command line nor console output leaves this machine: only what is logged on purpose.
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        silent=True,
        init_timeout=timeout_s,
        finish_timeout=FINISH_TIMEOUT_S,
    )
