"""What YAML files of the user's own (`--config-dir`) lack to be what they are meant to be, said before Hydra reads them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from dr_validate.cli.grammar import NOT_COMPOSED
from dr_validate.config import STAGES, conf_dir
from dr_validate.errors import ConfigError


def explain_own_files(arguments: Sequence[str]) -> str | None:
    """What is wrong with the files that `arguments` choose, and with those that these choose; None if nothing."""
    asked = get_args_parser().parse_known_args(list(arguments))[0]
    chosen = [found.groups() for one in asked.overrides if (found := re.fullmatch(r"\+*([\w/]+)=\[?([\w/, -]+)\]?", one))]
    files = [(group, choice.strip()) for group, choices in chosen for choice in choices.split(",")]
    problems = []
    for group, choice in files if asked.config_dir else ():  # which grows: a file chooses others
        path = Path(asked.config_dir) / group / f"{choice}.yaml"
        if not path.is_file() or group.startswith("hydra"):
            continue
        if (conf_dir() / group / path.name).is_file():
            problems.append(f"{path}: is never read, for {group}={choice} is a choice of dr_validate; give it another name")
            continue
        try:
            keys = OmegaConf.to_container(OmegaConf.load(path))
        except NOT_COMPOSED:
            continue  # Hydra names the line
        except UnicodeDecodeError as error:
            problems.append(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8")
            continue
        keys = keys if isinstance(keys, Mapping) else {}
        if not isinstance(listed := keys.get("defaults") or [], list):
            problems.append(f"{path}: got `defaults: {listed}`, expected a list, `defaults: [{listed}]`")
            continue
        if group in STAGES:
            problems += _of_choice(path, group, keys)
            continue
        problems += _of_experiment(path, group)
        problems += [
            f"{path}: got `{stage}: {keys[stage]}`, expected `- override /{stage}: {keys[stage]}` in its defaults"
            for stage in STAGES
            if isinstance(keys.get(stage), str)
        ]
        for entry, other in (item for one in listed if isinstance(one, Mapping) for item in one.items()):
            stage = entry.removeprefix("override ").rpartition("/")[2]
            files += [] if (stage, str(other)) in files else [(stage, str(other))]
            if stage in STAGES and entry != f"override /{stage}":
                problems.append(f"{path}: got `- {entry}: {other}` in its defaults, expected `- override /{stage}: {other}`")
    return str(ConfigError(problems)) if problems else None


def _of_choice(path: Path, stage: str, keys: Mapping[Any, Any]) -> Iterator[str]:
    """A choice names its class, or builds on one that does; the example is the one that has most keys in common with it."""
    if keys.get("_target_") or keys.get("defaults"):
        return
    ours: dict[str, Any] = {file.stem: OmegaConf.load(file) for file in sorted((conf_dir() / stage).glob("*.yaml"))}
    like = max(ours, key=lambda name: len(keys.keys() & ours[name].keys()))
    yield (
        f"{path}: no `_target_`, so it names no class; add a line such as `_target_: {ours[like]['_target_']}`, or one that "
        f"builds on a choice: `defaults: [{like}]`"
    )


def _of_experiment(path: Path, group: str) -> Iterator[str]:
    """A whole experiment says that its keys are those of the configuration, not of its group."""
    if not re.search(r"^\s*#\s*@package\s", path.read_text(encoding="utf-8", errors="replace"), re.M):
        yield f"{path}: no `# @package _global_`, so its keys would be those of {group}; make that its first line"
