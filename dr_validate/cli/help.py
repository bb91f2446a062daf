"""`--help`: every key of the composed configuration, with its value and the comment that its YAML file has for it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dr_validate.config import conf_dir

RESOLVER = "documented_keys"  # in hydra.help.template of conf/config.yaml
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.+-]+):(?: (?P<value>[^#]*?))?(?:\s+#\s*(?P<comment>.*))?$")


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
