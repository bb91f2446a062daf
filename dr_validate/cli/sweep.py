"""A sweep (`-m`, Hydra's multirun): what its jobs leave behind for the process that launched them.

A launcher may run jobs one after the other, side by side, or on other machines. All that they share is the sweep's folder
(`hydra.sweep.dir`, named anew for each sweep), which they know from the environment: each job keeps its record there, as
`job-<number>.json`, and a file `stop` keeps jobs that have not begun from beginning.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dr_validate.cli.overrides import jobs_as_run
from dr_validate.config import STAGES, is_secret
from dr_validate.files import expanded, write_atomically
from dr_validate.process import set_up_logging

SWEEP_ID = "DR_VALIDATE_SWEEP"  # environment: set by the launching process, ends hydra.sweep.dir in conf/config.yaml
SWEEP_FOLDER = "DR_VALIDATE_SWEEP_FOLDER"  # environment: set by it once the folder is known, inherited by its jobs
SWEEP_JOBS = "DR_VALIDATE_SWEEP_JOBS"  # environment: how many jobs there are, where it is known before the first begins
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
STOP_MARK = "stop"
log = logging.getLogger(__name__)
# Hydra makes the folder itself; a job in another process has this from the callback, whose module this is.
OmegaConf.register_new_resolver("home_of", lambda path: str(expanded(str(path))), replace=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What is known of one job (JSON values). `exit_code` is None until it has ended: for ever if its process dies.

    `number`: from 1; `target`: the fields of `Target`, once known; `config`: the plain configuration, once found right.
    """

    number: int
    overrides: tuple[str, ...]
    task: str
    pid: int
    host: str
    exit_code: int | None = None
    error: str | None = None
    stopped: bool = False
    target: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Replace this job's file in the sweep's folder."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        write_atomically(folder / f"job-{self.number}.json", f"{text}\n")


def prepare(environment: MutableMapping[str, str]) -> None:
    """Give this process, should it launch a sweep, a name for it that no other sweep has."""
    environment[SWEEP_ID] = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
    for name in (SWEEP_FOLDER, SWEEP_JOBS):  # of a sweep whose job started this process
        environment.pop(name, None)


def sweep_folder(environment: Mapping[str, str]) -> Path | None:
    """The folder of the sweep that this process launched or is a job of, None outside sweeps."""
    folder = environment.get(SWEEP_FOLDER)
    return Path(folder) if folder else None


def place(number: int, environment: Mapping[str, str]) -> str:
    """`job 2 of 4`, as far as that is known."""
    jobs = environment.get(SWEEP_JOBS)
    return f"job {number} of {jobs}" if jobs else f"job {number}"


def tell_jobs_their_keys() -> None:
    """Have Hydra's own sweeper tell each job only what its choices have a key for (`jobs_as_run`).

    Other sweepers (hydra/sweeper=NAME) stay what they are.
    """
    # Hydra takes no sweeper from outside its own packages, and the class of an import may be another one than it uses.
    basic: Any = Plugins.instance().class_name_to_class[BASIC_SWEEPER]
    jobs_as_typed = basic.split_arguments

    def split_arguments(sweeper: Any, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        def compose(choices: tuple[str, ...]) -> Mapping[str, Any]:
            config = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(choices))
            stages = {stage: config[stage] for stage in STAGES if isinstance(config.get(stage), DictConfig)}
            return {stage: OmegaConf.to_container(part, throw_on_missing=False) for stage, part in stages.items()}

        (jobs,) = jobs_as_typed(overrides, None)
        jobs = jobs_as_run(jobs, compose)
        os.environ[SWEEP_JOBS] = str(len(jobs))
        return list(sweeper.split_overrides_to_chunks(jobs, max_batch_size))

    basic.split_arguments = split_arguments


class SweepStart(Callback):
    """Called by Hydra in the launching process before the first job (`hydra.callbacks` in conf/config.yaml)."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder, tell the jobs of it, and have a wish to stop reach them"""
        tell_jobs_their_keys()
        folder, name = Path(str(config.hydra.sweep.dir)).absolute(), os.environ.get(SWEEP_ID)
        if name is None:  # started by other code than ours, which has its own ideas about sweeps
            return
        folder = folder if folder.name == name else folder / name  # hydra.sweep.dir was set by the user
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[SWEEP_FOLDER] = str(folder)
        set_up_logging()
        log.info("sweep in %s", folder)
        _pass_signals_on(folder)


def begin(folder: Path, number: int, overrides: Sequence[str], task: str) -> JobRecord:
    """Put a job on record as running in this process."""
    told = tuple(_without_secret(override) for override in overrides)
    record = JobRecord(number=number, overrides=told, task=task, pid=os.getpid(), host=socket.gethostname())
    record.save(folder)
    return record


def records(folder: Path) -> list[JobRecord]:
    """All jobs that have begun, by number."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("job-*.json")]
    jobs = [JobRecord(**{**fields, "overrides": tuple(fields["overrides"])}) for fields in found]
    return sorted(jobs, key=lambda job: job.number)


def worst_exit_code(jobs: Sequence[JobRecord]) -> int:
    """Of a sweep: a job whose process died counts as 1."""
    return max((1 if job.exit_code is None else job.exit_code for job in jobs), default=0)


def is_stopped(folder: Path) -> bool:
    """Whether the user stopped the sweep: no further job is to begin."""
    return (folder / STOP_MARK).exists()


def stop(folder: Path) -> None:
    """Keep further jobs from beginning."""
    (folder / STOP_MARK).touch()


def _pass_signals_on(folder: Path) -> None:
    """SIGTERM and SIGINT ask running jobs to stop and keep the others from beginning; a second one does what it always does.

    A job in this very process has handlers of its own while it works.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: Any) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stop(folder)
        log.info("%s: stopping the jobs of the sweep; a second one ends at once", signal.Signals(number).name)
        for job in records(folder):
            if job.exit_code is None and job.host == socket.gethostname() and job.pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(job.pid, signal.SIGTERM)

    for number in before:
        signal.signal(number, handle)


def _without_secret(override: str) -> str:
    """Keys belong in the environment; one that was put here by mistake is not written down."""
    key, equals, value = override.partition("=")
    return f"{key}{equals}(not shown)" if is_secret(key) else override
