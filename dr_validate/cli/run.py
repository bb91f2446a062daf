"""From the command line to an exit code: compose the configuration, run the job, alone or as one of a sweep."""

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dr_validate.cli import sweep
from dr_validate.cli.doctor import check_start, in_words, state_dir_to_read, with_other_problems
from dr_validate.cli.grammar import NOT_COMPOSED, explain_grammar, explain_own_files, with_overrides_first
from dr_validate.cli.overrides import (
    NEVER_ENDS,
    as_chosen,
    explain,
    explain_sweep,
    for_every_job,
    for_open_keys,
    not_filled_in,
)
from dr_validate.config import Run, build, conf_dir, report_settings, tracker_of
from dr_validate.errors import ConfigError, DrValidateError, SetupError
from dr_validate.files import read_note
from dr_validate.ledger.database import is_made
from dr_validate.process import SETUP_IS_WRONG, printable, say_error, set_up_logging, standard_output, stop_on_signals

if TYPE_CHECKING:
    from dr_validate.watcher.loop import Outcome

log = logging.getLogger(__name__)
INTERRUPTED = 130  # what a shell makes of SIGINT
MISTAKES = (explain_grammar, explain_own_files, explain_sweep)  # each asked where those before it found nothing
RAISE = "HYDRA_FULL_ERROR"  # environment: has Hydra raise what does not compose, which it would print itself
LOOK_AT_CLAIM_EVERY_S = 1.0
RESOLVER = "documented_keys"  # in hydra.help.template of conf/config.yaml
OWN_FILES = ("--config", "-cd", "-cn", "-cp")
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.+-]+):(?: (?P<value>[^#]*?))?(?:\s+#\s*(?P<comment>.*))?$")


def main() -> None:
    """Console entry; exit codes: 0 done, 1 a checkpoint failed for good in `once`, or none was complete, 2 setup is wrong;
    3 watch.max_hours is over; 130 after a second SIGINT.

    A sweep ends with the worst code of its jobs.
    """
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(config: DictConfig) -> None:
        if not asked_for:
            os.environ.pop(RAISE, None)
        codes.append(run_job(config))

    sys.stdout = standard_output()
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"dr_validate {_version()}\n")
        return
    set_up_logging()
    sweep.prepare(os.environ)
    offer_help()
    asked_for = RAISE in os.environ
    try:
        with _composing_once():
            _check_command_line()
            job()
    except SystemExit as error:  # Hydra ends with 1 when a configuration does not compose, and when a job raises
        code = error.code if isinstance(error.code, int) else 1
        codes.append(SETUP_IS_WRONG if code == 1 and not _jobs_folder() else code)
    except KeyboardInterrupt:
        say_error("interrupted: ended at once; the next start goes on from what is saved")
        codes.append(INTERRUPTED)
    except NOT_COMPOSED as error:
        say_error(explain(error, sys.argv[1:]))
        codes.append(SETUP_IS_WRONG)
    finally:
        if folder := _jobs_folder():
            from dr_validate.cli.sweep_table import show_sweep

            codes.append(show_sweep(folder))
    sys.exit(max(codes, default=0))


def _check_command_line() -> None:
    """Leave in sys.argv what Hydra is to read, or say what is wrong and exit."""
    sys.argv[1:] = for_open_keys(with_overrides_first(sys.argv[1:]))
    if mistake := next(filter(None, (check(sys.argv[1:]) for check in MISTAKES)), None):
        say_error(mistake)
        sys.exit(SETUP_IS_WRONG)
    sys.argv[1:] = for_every_job(sys.argv[1:])
    if not get_args_parser().parse_known_args(sys.argv[1:])[0].multirun:  # there a job may be what raises, in another process
        os.environ.setdefault(RAISE, "1")


@contextlib.contextmanager
def _composing_once() -> Iterator[None]:
    """Have Hydra leave out what takes it a second in `--help` and a quarter of one at each start: copies of a store that nobody
    changes, and a whole composition to learn `hydra.mode`, where nothing can have set that."""
    get_mode: Any = Hydra.get_mode
    store: Any = ConfigStore
    store.__deepcopy__ = lambda self, _: self
    if not any("hydra" in one or one.startswith(OWN_FILES) for one in sys.argv[1:]):
        Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]  # of a library
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]  # back as it was
        del store.__deepcopy__


def _version() -> str:
    try:
        return importlib.metadata.version("dr_validate")
    except importlib.metadata.PackageNotFoundError:  # the package is on the path, but was never installed
        return "(version not known: not installed)"


def _jobs_folder() -> Path | None:
    """Of the sweep that this process launched, if a job of it has begun."""
    folder = sweep.sweep_folder(os.environ)
    return folder if folder and sweep.records(folder) else None


def run_job(config: DictConfig) -> int:
    """Do what `task` says; errors meant for users end in one message and exit code 2."""
    set_up_logging()
    job = HydraConfig.get()
    folder = sweep.sweep_folder(os.environ) if job.mode == RunMode.MULTIRUN else None
    if folder is not None:
        return _run_in_sweep(config, folder, job)
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
        raise SetupError(in_words(error)) from error


def _plain(config: DictConfig) -> dict[str, Any]:
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:  # ${...} in a file of the user's own, or on the command line
        raise not_filled_in(error) from error
    plain = OmegaConf.to_container(config, throw_on_missing=False)
    assert isinstance(plain, dict)
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN and not any(one.lstrip("+").startswith("watch.mode=") for one in job.overrides.task):
        plain["watch"]["mode"] = "once"  # jobs of a sweep end
    chosen, left_out = as_chosen({str(key): value for key, value in plain.items()}, job.overrides.task)
    if left_out:
        log.info("left out, as the choices on the command line have no such keys: %s", ", ".join(left_out))
    return chosen


def _run_alone(config: Mapping[str, Any]) -> int:
    if (code := _answer(config)) is not None:
        return code
    from dr_validate.cli.status import show_outcome
    from dr_validate.watcher.loop import watch

    run = _built(config)
    check_start(run)
    outcome = watch(run)
    show_outcome(run, outcome)
    return outcome.exit_code


def _built(config: Mapping[str, Any]) -> Run:
    """Raises ConfigError with all that is wrong with the configuration, and with what it names."""
    try:
        return build(config)
    except ConfigError as error:
        raise with_other_problems(error, config) from None


def _answer(config: Mapping[str, Any]) -> int | None:
    """The exit code of a task that only looks, None if the task is to validate."""
    task = config.get("task")
    if task == "status":
        from dr_validate.cli.status import show_status

        return show_status(config)
    if task == "doctor":
        from dr_validate.cli.doctor import examine

        return examine(config)
    if task == "report":
        return show_report(config)
    if task == "dashboard":
        from dr_validate.tracker.dashboard import save_dashboard

        save_dashboard(state_dir_to_read(config), tracker_of(config))
        return 0
    return None


def show_report(config: Mapping[str, Any]) -> int:
    """Write the page once, or until no watcher works in the state_dir, or a signal ends it."""
    from dr_validate.report.page import write_report

    state_dir, wanted, wish_to_stop = state_dir_to_read(config), report_settings(config), threading.Event()
    if not is_made(state_dir / "ledger.db"):
        log.info("nothing has been validated in %s yet (no ledger.db), so there is no page", state_dir)
        return 0
    with stop_on_signals(wish_to_stop):
        while wanted.every_s and _is_at_work(state_dir) and not wish_to_stop.is_set():
            write_report(state_dir, wanted, refresh=True)
            wish_to_stop.wait(wanted.every_s)
    write_report(state_dir, wanted)
    return 0


def _is_at_work(state_dir: Path) -> bool:
    """Whether a watcher works on any spec in `state_dir`."""
    from dr_validate.ledger.ledger import Ledger
    from dr_validate.watcher.lock import holder

    with Ledger(state_dir / "ledger.db", read_only=True) as ledger:
        return any(holder(state_dir, spec) is not None for spec in ledger.specs())


def _run_in_sweep(config: DictConfig, folder: Path, job: Any) -> int:
    """Leave on record what becomes of the job, whatever that is; the launching process shows it with the others."""
    wish_to_stop = threading.Event()
    with stop_on_signals(wish_to_stop):  # once on record the job may be sent a signal
        record = sweep.begin(folder, job.job.num + 1, job.overrides.task, str(config.get("task")))
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
    run = _built(config)
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
    from dr_validate.watcher.lock import Claimed, is_held
    from dr_validate.watcher.loop import Outcome, watch

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
    holder = read_note(claim, lambda note: (note["pid"], note["host"]), None)  # None: it has not signed yet
    return holder in {(job.pid, job.host) for job in sweep.records(folder)}


def offer_help() -> None:
    """Make the interpolation in hydra.help.template work."""
    OmegaConf.register_new_resolver(RESOLVER, _of_root, replace=True)


def comments(path: Path) -> dict[tuple[str, ...], str]:
    """From keys (from the top of the file down) to the comments on their lines, of the keys that have one."""
    found: dict[tuple[str, ...], str] = {}
    above: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := LINE.match(line):
            indent = len(match["indent"])
            above = [*(one for one in above if one[0] < indent), (indent, match["key"])]
            if match["comment"]:
                found[tuple(key for _, key in above)] = match["comment"]
    return found


def documented(config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """A line for each key of a plain configuration; `choices`: the file in the folder of each group."""
    known = comments(conf_dir() / "config.yaml")
    for group, choice in choices.items():
        path = conf_dir() / group / f"{choice}.yaml"
        if group in config and path.is_file():
            known |= {(group, *keys): comment for keys, comment in comments(path).items()}
            known[group,] = f"{group}={choice}"
    return "\n".join(_lines(config, known, ()))


def _lines(part: Mapping[str, Any], known: Mapping[tuple[str, ...], str], place: tuple[str, ...]) -> Iterator[str]:
    for key, value in part.items():
        if key == "_target_":
            continue
        here = (*place, key)
        is_section = isinstance(value, Mapping) and value
        required = "required: " if value == "???" else ""
        comment = f"  # {required}{known[here]}" if here in known else ""
        yield f"{'  ' * len(place)}{key}:{'' if is_section else f' {_shown(value)}'}{comment}"
        if is_section:
            yield from _lines(value, known, here)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else "''"


def _of_root(_root_: DictConfig) -> str:
    config = OmegaConf.to_container(_root_, throw_on_missing=False)
    assert isinstance(config, dict)
    choices = config["hydra"]["runtime"]["choices"]
    text = documented({str(key): value for key, value in config.items() if key != "hydra"}, choices)
    return text.replace("$", "$$")  # Hydra fills in what follows a $
