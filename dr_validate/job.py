"""One job: from a composed configuration to an exit code, alone or as one of a sweep."""

import contextlib
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dr_validate import sweep
from dr_validate.config import Run, build, report_settings, state_dir_of
from dr_validate.doctor import check_start
from dr_validate.errors import ConfigError, DrValidateError, SetupError
from dr_validate.logs import printable, say_error, set_up_logging
from dr_validate.overrides import NEVER_ENDS
from dr_validate.signals import stop_on_signals

if TYPE_CHECKING:
    from dr_validate.watch import Outcome

SETUP_IS_WRONG = 2
LOOK_AT_CLAIM_EVERY_S = 1.0
log = logging.getLogger(__name__)


def run_job(config: DictConfig) -> int:
    """Do what `task` says; errors meant for users end in one message and exit code 2."""
    set_up_logging()
    hydra = HydraConfig.get()
    folder = sweep.sweep_folder(os.environ) if hydra.mode == RunMode.MULTIRUN else None
    if folder is not None:
        return _run_in_sweep(config, folder, hydra)
    try:
        with _refusals_in_words():
            return _run_alone(_plain(config))
    except DrValidateError as error:
        say_error(str(error))
        return SETUP_IS_WRONG


@contextlib.contextmanager
def _refusals_in_words() -> Iterator[None]:
    """SetupError for a file that the system does not let us use, which is mostly another user's."""
    try:
        yield
    except PermissionError as error:
        if error.filename is None:
            raise
        way_out = "run as its owner, have its permissions changed, or, if it is in state_dir, set another one"
        raise SetupError(f"{error.filename}: {error.strerror}, for user {os.getuid()}; {way_out}") from error


def _plain(config: DictConfig) -> dict[str, Any]:
    OmegaConf.resolve(config)
    plain = OmegaConf.to_container(config, throw_on_missing=False)
    assert isinstance(plain, dict)
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN and not any(one.lstrip("+").startswith("watch.mode=") for one in hydra.overrides.task):
        plain["watch"]["mode"] = "once"  # jobs of a sweep end
    return {str(key): value for key, value in plain.items()}


def _run_alone(config: Mapping[str, Any]) -> int:
    if (code := _answer(config)) is not None:
        return code
    from dr_validate.summary import show_outcome
    from dr_validate.watch import watch

    run = build(config)
    check_start(run)
    outcome = watch(run)
    show_outcome(run, outcome)
    return outcome.exit_code


def _answer(config: Mapping[str, Any]) -> int | None:
    """The exit code of a task that only looks, None if the task is to validate."""
    task = config.get("task")
    if task == "status":
        from dr_validate.status import show_status

        return show_status(config)
    if task == "doctor":
        from dr_validate.doctor import examine

        return examine(config)
    if task == "report":
        from dr_validate.report.write import write_report

        write_report(state_dir_of(config), report_settings(config))
        return 0
    return None


def _run_in_sweep(config: DictConfig, folder: Path, hydra: Any) -> int:
    """Leave on record what becomes of the job, whatever that is; the launching process shows it with the others."""
    wish_to_stop = threading.Event()
    with stop_on_signals(wish_to_stop):  # once on record the job may be sent a signal
        return _run_on_record(config, folder, hydra, wish_to_stop)


def _run_on_record(config: DictConfig, folder: Path, hydra: Any, wish_to_stop: threading.Event) -> int:
    record = sweep.begin(folder, hydra.job.num + 1, hydra.overrides.task, str(config.get("task")))
    place = sweep.place(record.number, os.environ)
    log.info("%s: %s", place, " ".join(record.overrides))
    try:
        with _refusals_in_words():
            record = _recorded(record, _plain(config), folder, wish_to_stop)
    except DrValidateError as error:
        say_error(str(error))
        record = dataclasses.replace(record, exit_code=SETUP_IS_WRONG, error=printable(str(error), keep="\n"))
    except BaseException as error:
        dataclasses.replace(record, exit_code=1, error=printable(f"{type(error).__name__}: {error}")).save(folder)
        raise
    record.save(folder)
    log.info("%s has ended: exit code %d", place, record.exit_code)
    assert record.exit_code is not None
    return record.exit_code


def _recorded(
    record: sweep.JobRecord, config: Mapping[str, Any], folder: Path, wish_to_stop: threading.Event
) -> sweep.JobRecord:
    if sweep.is_stopped(folder):
        return dataclasses.replace(record, exit_code=0, stopped=True)
    if (code := _answer(config)) is not None:
        return dataclasses.replace(record, exit_code=code)
    run = build(config)
    if run.watch.mode == "follow":
        raise ConfigError([NEVER_ENDS])
    check_start(run)
    outcome = watch_in_turn(run, folder, wish_to_stop)
    if outcome.stopped or wish_to_stop.is_set():
        sweep.stop(folder)
    # The launching process may work in another folder than the job.
    kept = {**config, "state_dir": str(run.settings.state_dir.absolute())}
    target = dataclasses.asdict(outcome.target) if outcome.target else None
    return dataclasses.replace(record, exit_code=outcome.exit_code, stopped=outcome.stopped, target=target, config=kept)


def watch_in_turn(run: Run, folder: Path, wish_to_stop: threading.Event) -> "Outcome":
    """`watch`, after other jobs of this sweep that work on the same spec (`index=flat,torch` has one for both).

    Raises Claimed when it is not a job of this sweep that holds the spec: that may take for ever.
    """
    from dr_validate.claims import Claimed, is_held
    from dr_validate.watch import Outcome, watch

    while not wish_to_stop.is_set():
        try:
            return watch(run)
        except Claimed as error:
            if not _is_peer(error.path, folder):
                raise
            log.info("waiting for another job of this sweep, which works on the same spec")
            while is_held(error.path) and not wish_to_stop.wait(LOOK_AT_CLAIM_EVERY_S):
                pass
    return Outcome(target=None, exit_code=0, stopped=True)


def _is_peer(claim: Path, folder: Path) -> bool:
    try:
        holder = json.loads(claim.read_text(encoding="utf-8"))
    except ValueError:  # it has not signed yet
        return False
    return (holder["pid"], holder["host"]) in {(job.pid, job.host) for job in sweep.records(folder)}
