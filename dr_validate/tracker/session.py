"""The SDK of W&B: `Plan`, which all runs of a watcher follow; the key, the settings, the SDK's own process, which may die or
hang; and `RunTarget`: how the validation run of one training is opened and read back."""

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dr_validate.component import fingerprint
from dr_validate.errors import WANDB_LOG_IN, Outage, SetupError
from dr_validate.files import read_note, write_atomically
from dr_validate.stages import Tracked
from dr_validate.tracker.rows import HIGHER_IS_BETTER, PREFIXES, REPORT, STEP

if TYPE_CHECKING:
    import wandb

FINISH_TIMEOUT_S = 60  # for the hook of W&B at the end of the process; `WandbRuns.close` has the limit of its caller
KILLED_WITHIN_S = 5
OFFLINE_MODES = ("offline", "dryrun", "disabled")
WAY_OUT = f"{WANDB_LOG_IN}, or set tracker.mode=offline or tracker=none"
MAX_TAG_CHARACTERS = 64
ROWS_PER_START = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where the validation runs of one watcher go, and what they are `about`; `config` is what may be uploaded of it."""

    about: Tracked
    config: Mapping[str, Any]
    entity: str | None
    project: str | None
    offline: bool
    group: str | None
    alias_best: bool
    alert: bool
    folder: Path | None
    timeout_s: float

    @property
    def metric(self) -> str:
        """The first one."""
        return str(next(iter(self.config.get("metrics", ())), ""))

    def run_id(self, training_run: str) -> str:
        """The same for the same training run and spec: a restart resumes it."""
        return fingerprint({"training_run": training_run, "spec": self.about.spec})


def is_offline(mode: str) -> bool:
    """Whether the configuration or WANDB_MODE keeps W&B away from its server."""
    return mode == "offline" or os.environ.get("WANDB_MODE") in OFFLINE_MODES


def require_key(way_out: str = WAY_OUT) -> None:
    """Raises SetupError where no key is to be found; asks nobody, not even on a terminal."""
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        host = wandb.setup().settings.base_url
    except failures() as error:  # of a process that started this one, and has ended
        raise SetupError(
            f"tracker: the process of W&B cannot be reached ({error}); unset WANDB_SERVICE; or {way_out}"
        ) from None
    try:
        # wandb.init() and wandb.Api() would prompt.
        found = wbauth.authenticate_session(host=host, source="dr_validate", prompt=False, update_session=False)
    except wandb.errors.AuthenticationError as error:
        raise SetupError(f"tracker: the W&B key for {host} cannot be used ({error}); {way_out}") from None
    if found is None:
        raise SetupError(f"tracker: no W&B key for {host}; {way_out}")


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


def open_run(*, folder: Path | None, offline: bool, tags: Sequence[str], timeout_s: float, **own: Any) -> "wandb.Run":
    """A new run, or that with this id, resumed; `own`: what else `wandb.init` takes.

    Raises SetupError where there is no key or it may not, and what the SDK does where it cannot.
    """
    import wandb

    if not offline:
        require_key()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return wandb.init(
            mode=wandb_mode(offline=offline),
            dir=folder,
            resume=None if offline else "allow",
            tags=[tag[:MAX_TAG_CHARACTERS] for tag in tags if tag] or None,
            reinit="create_new",
            **{"settings": settings(timeout_s), **own},
        )
    except wandb.Error as error:
        if "error 401" in str(error) or "error 403" in str(error):
            host = wandb.setup().settings.base_url
            raise SetupError(f"W&B at {host} refuses the key for this project ({error}); {WAY_OUT}") from None
        raise


def api(timeout_s: float) -> "wandb.Api":
    """What reads from the server, beside the runs that write to it."""
    import wandb

    return wandb.Api(overrides={"base_url": wandb.setup().settings.base_url}, timeout=max(1, int(timeout_s)))


def failures() -> tuple[type[Exception], ...]:
    """What the SDK raises when the server, or its own process, does not do what it should."""
    import wandb
    from wandb.sdk.lib.asyncio_manager import AlreadyJoinedError
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    closed = (AlreadyJoinedError, HandleAbandonedError, MailboxClosedError)  # also after `abandon`, in another thread
    return wandb.Error, WandbApiFailedError, WandbServiceConnectionError, *closed, ValueError, OSError


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
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILLED_WITHIN_S)
        with contextlib.suppress(SystemExit, *failures()):  # it tells us that the process was killed
            wandb.teardown()


def _service() -> "subprocess.Popen[bytes] | None":
    import wandb

    # There is no public way to it; where these names are gone, W&B's hook waits as long as it likes.
    service = getattr(getattr(wandb.setup(), "_connection", None), "_proc", None)
    return getattr(service, "_process", None)


def settings(timeout_s: float, **others: Any) -> "wandb.Settings":
    """Of a run. No code, git state, command line or console output leaves this machine: only what is logged on purpose."""
    import wandb

    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        silent=True,
        init_timeout=timeout_s,
        finish_timeout=FINISH_TIMEOUT_S,
        **others,
    )


def wandb_mode(*, offline: bool) -> Literal["online", "offline"] | None:
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    return "offline" if offline else "online"  # never shared: that is for runs that several processes write to


class RunTarget:
    """The run of one training run and spec: its id follows from both, so a restart resumes it."""

    def __init__(self, plan: Plan, training_run: str, group: str) -> None:
        self._plan, self._training_run, self._group = plan, training_run, group

    def open(self) -> "wandb.Run":
        """Start it, or resume it after a restart. Raises what the SDK does."""
        plan, about = self._plan, self._plan.about
        run = open_run(
            entity=plan.entity,
            project=plan.project,
            folder=plan.folder,
            offline=plan.offline,
            id=plan.run_id(self._training_run),
            name=f"{self._training_run} {about.dataset} {about.sampler}",
            group=plan.group or self._group or self._training_run,
            job_type="validate",
            tags=(about.dataset, about.sampler),
            config=dict(plan.config),
            timeout_s=plan.timeout_s,
        )
        if plan.offline:
            run.log({}, step=self._count_opening() * ROWS_PER_START, commit=False)  # from there on the SDK counts
        run.define_metric(STEP)
        for prefix in PREFIXES:
            # W&B drops rows whose step goes backwards, and late checkpoints do: so we bring our own axis.
            run.define_metric(f"{prefix}/*", step_metric=STEP, summary="max" if prefix in HIGHER_IS_BETTER else None)
        return run

    def alert_once(self, run: "wandb.Run", key: str, words: tuple[str, str] | None) -> None:
        """Have W&B tell the user (title, text) of the Report with id `key`, which is noted first: a kill may cost an alert, and
        never repeats one."""
        path = self._plan.about.state_dir / "alerts" / f"{self._plan.run_id(self._training_run)}.json"
        before: list[str] = read_note(path, list, [])
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
        for logged in api(self._plan.timeout_s).run(run.path).scan_history(use_cache=False):
            last_step = max(last_step, int(logged.get("_step", -1)))
            if isinstance(logged.get(REPORT), str):
                found.add(logged[REPORT])
        if last_step < expected - 1:
            raise Outage(f"W&B has rows up to {expected - 1} of {run.path}, but shows them up to {last_step} only so far")
        return found

    def _count_opening(self) -> int:
        """Offline folders that came before this one. Each counts its rows from 0, and of two rows with one number the server
        keeps one: so each gets numbers of its own."""
        path = self._plan.about.state_dir / "offline" / f"{self._plan.run_id(self._training_run)}.json"
        before = read_note(path, lambda note: int(note["starts"]), 0)
        write_atomically(path, json.dumps({"starts": before + 1}))
        return before
