"""`python -m dr_validate`: compose the configuration, build, go. Errors meant for users end in one message and exit code 2."""

import sys
from collections.abc import Mapping
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dr_validate.config import conf_dir
from dr_validate.errors import ConfigError, DrValidateError
from dr_validate.logs import set_up_logging

SETUP_IS_WRONG = 2


def main() -> None:
    """Console entry; exit codes as in the README: 0 done, 1 a checkpoint failed for good in `once`, 2 setup is wrong."""
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(config: DictConfig) -> None:
        codes.append(_job(config))

    try:
        job()
    except SystemExit as error:  # Hydra ends with 1 when a configuration does not compose; our jobs return
        code = error.code if isinstance(error.code, int) else 1
        codes.append(SETUP_IS_WRONG if code == 1 else code)
    except (HydraException, OmegaConfBaseException) as error:  # Hydra leaves them to a debugger, and takes coverage for one
        sys.stderr.write(f"{error}\n")
        codes.append(SETUP_IS_WRONG)
    sys.exit(max(codes, default=0))


def _job(config: DictConfig) -> int:
    set_up_logging()
    try:
        OmegaConf.resolve(config)
        plain = OmegaConf.to_container(config, throw_on_missing=False)
        assert isinstance(plain, dict)
        return _run_task({str(key): value for key, value in plain.items()})
    except DrValidateError as error:
        sys.stderr.write(f"{error}\n")
        return SETUP_IS_WRONG


def _run_task(config: Mapping[str, Any]) -> int:
    task = config.get("task")
    if task == "status":
        from dr_validate.status import show_status

        return show_status(config)
    if task == "doctor":
        from dr_validate.doctor import examine

        return examine(config)
    from dr_validate.config import build
    from dr_validate.summary import show_outcome
    from dr_validate.watch import watch

    run = build(config)
    if run.watch.mode == "follow" and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError(["watch.mode: got 'follow', which never ends, in a multirun (-m); set watch.mode=once"])
    outcome = watch(run)
    show_outcome(run, outcome)
    return outcome.exit_code


if __name__ == "__main__":
    main()
