"""`python -m dr_validate`: compose the configuration, run the job or the sweep, end with an exit code that says how it went."""

import importlib.metadata
import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from dr_validate import sweep
from dr_validate.config import conf_dir
from dr_validate.help import offer_help
from dr_validate.job import SETUP_IS_WRONG, run_job
from dr_validate.logs import say_error, set_up_logging, standard_output
from dr_validate.overrides import NOT_COMPOSED, explain, explain_grammar, explain_sweep, for_every_job

INTERRUPTED = 130  # what a shell makes of SIGINT
RAISE = "HYDRA_FULL_ERROR"  # environment: has Hydra raise what does not compose, which it would print itself


def main() -> None:
    """Console entry; exit codes as in the README: 0 done, 1 a checkpoint failed for good in `once`, 2 setup is wrong;
    130 after a second SIGINT.

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
    if mistake := explain_grammar(sys.argv[1:]) or explain_sweep(sys.argv[1:]):
        say_error(mistake)
        sys.exit(SETUP_IS_WRONG)
    sys.argv[1:] = for_every_job(sys.argv[1:])
    sweep.prepare(os.environ)
    offer_help()
    asked_for = RAISE in os.environ
    if not {"-m", "--multirun"} & set(sys.argv):  # there a job may be what raises, in another process
        os.environ.setdefault(RAISE, "1")
    try:
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
            from dr_validate.sweep_table import show_sweep

            codes.append(show_sweep(folder))
    sys.exit(max(codes, default=0))


def _version() -> str:
    try:
        return importlib.metadata.version("dr_validate")
    except importlib.metadata.PackageNotFoundError:  # the package is on the path, but was never installed
        return "(version not known: not installed)"


def _jobs_folder() -> Path | None:
    """Of the sweep that this process launched, if a job of it has begun."""
    folder = sweep.sweep_folder(os.environ)
    return folder if folder and sweep.records(folder) else None


if __name__ == "__main__":
    main()
