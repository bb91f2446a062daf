"""`python -m dr_validate`: compose the configuration, run the job or the sweep, end with an exit code that says how it went."""

import os
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dr_validate import sweep
from dr_validate.config import conf_dir
from dr_validate.job import SETUP_IS_WRONG, run_job


def main() -> None:
    """Console entry; exit codes as in the README: 0 done, 1 a checkpoint failed for good in `once`, 2 setup is wrong.

    A sweep ends with the worst code of its jobs.
    """
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(config: DictConfig) -> None:
        codes.append(run_job(config))

    sweep.prepare(os.environ)
    try:
        job()
    except SystemExit as error:  # Hydra ends with 1 when a configuration does not compose, and when a job raises
        code = error.code if isinstance(error.code, int) else 1
        codes.append(SETUP_IS_WRONG if code == 1 and not _jobs_folder() else code)
    except (HydraException, OmegaConfBaseException) as error:  # Hydra leaves them to a debugger, and takes coverage for one
        sys.stderr.write(f"{error}\n")
        codes.append(SETUP_IS_WRONG)
    finally:
        if folder := _jobs_folder():
            from dr_validate.sweep_table import show_sweep

            codes.append(show_sweep(folder))
    sys.exit(max(codes, default=0))


def _jobs_folder() -> Path | None:
    """Of the sweep that this process launched, if a job of it has begun."""
    folder = sweep.sweep_folder(os.environ)
    return folder if folder and sweep.records(folder) else None


if __name__ == "__main__":
    main()
