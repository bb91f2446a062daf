"""What is wrong with a command line (options, keys, quotes) and with YAML files of the user's own (`--config-dir`), said before
Hydra reads them: every mistake at once, with what was meant."""

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dr_validate.config import STAGES, Settings, conf_dir, is_secret
from dr_validate.errors import ConfigError

NOT_COMPOSED = (HydraException, OmegaConfBaseException, YAMLError)  # the last of a file that is no YAML
TASKS = get_args(get_type_hints(Settings)["task"])
PACKAGE = re.compile(r"\s*(#\s*@[^\n]*\n\s*)*#\s*@package\s")  # where Hydra sees it: before any other line or comment
BYTE_ORDER_MARK = "\ufeff"
MODES = ("run", "multirun", "cfg", "info", "shell_completion")  # of which Hydra takes one
COMPLETION = ("install", "uninstall", "query")
SHELLS = ("bash", "fish", "zsh")
SETTINGS = {field.name for field in dataclasses.fields(Settings)}


class _Word(str):
    """An argument that is known by its place: two may have one text."""


def with_overrides_first(arguments: Sequence[str]) -> list[str]:
    """The same with the options last: Hydra takes none between two overrides (`+run=demo -m sampler=random,full`), and an
    override after `--info` for what is to be shown."""
    words = [_Word(one) for one in arguments]
    overrides = get_args_parser().parse_known_intermixed_args(words)[0].overrides
    places = {id(one) for one in overrides}
    options = [word for word in words if id(word) not in places and word != "--"]
    return [str(one) for one in (*overrides, *options)]


def explain_grammar(arguments: Sequence[str]) -> str | None:
    """What is no option, no key and no choice, and what Hydra's grammar makes of paths with = { } [ ] ( ) # ' and the like, and
    of commas outside a sweep; None if nothing.

    Each message names the key and gives the override as a shell takes it, in the quotes that make its value one text.
    """
    asked, unknown = get_args_parser().parse_known_args(list(arguments))
    problems = [_no_option(one) for one in unknown if one.startswith("-")]
    modes = [f"--{mode.replace('_', '-')}" for mode in MODES if getattr(asked, mode)]
    if len(modes) > 1 and not (asked.help or asked.hydra_help):
        problems.append(f"{' and '.join(modes)}: expected one of them at a time")
    problems += _of_options(asked)
    for override in asked.overrides:
        found = re.fullmatch(r"([+~]*)([^=]+)=(.*)", override, re.S)
        if found is None:
            problems += [] if override.startswith("~") else [_no_override(override)]
            continue
        try:
            parsed = OverridesParser.create().parse_override(override)
        except NOT_COMPOSED:
            is_key = _is_key(found[1], found[2])
            problems.append(_unreadable(*found.groups(), is_several=False) if is_key else _unreadable_key(found[2], found[3]))
            continue
        if parsed.is_sweep_override():
            problems += [] if asked.multirun else [_unreadable(*found.groups(), is_several=True)]
        elif found[2] in (*STAGES, "run") and not isinstance(parsed.value(), (str, list) if found[2] == "run" else str):
            problems.append(_no_choice(found[2], found[3]))
        elif found[2] == "task" and parsed.value() not in TASKS and "${" not in found[3]:
            problems.append(_no_task(found[3]))
    return str(ConfigError(problems)) if problems else None


def _no_option(option: str) -> str:
    name, _, value = option.lstrip("-").partition("=")
    shown = f"{name}={'VALUE' if is_secret(name) else value or 'VALUE'}"
    return f"{option.partition('=')[0]}: no such option (--hydra-help lists them); a key is given without dashes: {shown}"


def _of_options(asked: Any) -> Iterator[str]:
    """What Hydra says of its own options in a traceback."""
    if asked.resolve and not (asked.cfg or asked.help):
        yield "--resolve: fills in what another option shows; give --cfg job (or --help) as well"
    rerun = asked.experimental_rerun
    if rerun is not None and not (rerun.endswith(".pickle") and Path(rerun).is_file()):
        yield f"--experimental-rerun: got {rerun!r}, expected a file config.pickle, as Hydra's PickleJobInfoCallback writes it"
    if asked.shell_completion:
        commands = [one for one in asked.overrides if one.partition("=")[0] in COMPLETION]
        if len(commands) != 1 or commands[0].partition("=")[2] not in SHELLS:
            yield f"--shell-completion: expected one install=SHELL or uninstall=SHELL, with one of {', '.join(SHELLS)}"
        elif commands[0].startswith("query=") and "COMP_LINE" not in os.environ:
            yield f"--shell-completion: {commands[0]} is what a shell asks at the Tab key; give install={commands[0][6:]}"


def _no_override(word: str) -> str:
    if word in (*TASKS, *STAGES, *SETTINGS):
        return f"{word}: expected KEY=VALUE; did you mean {f'task={word}' if word in TASKS else f'{word}=VALUE'}?"
    return f"{word}: expected KEY=VALUE, GROUP=CHOICE or +run=NAME; a value with spaces goes in quotes"


def _no_task(task: str) -> str:
    close = "".join(f"; did you mean {one}?" for one in difflib.get_close_matches(task, TASKS, n=1))
    return f"task: got {task!r}, expected one of {', '.join(TASKS)}{close}"


def _no_choice(stage: str, value: str) -> str:
    choices = ", ".join(sorted(file.stem for file in (conf_dir() / stage).glob("*.yaml")))
    several = f"; several are a sweep: -m {stage}={re.sub(r'[^-.,0-9A-Za-z_]', '', value)}" if value.startswith("[") else ""
    return f"{stage}: got {value}, expected one of {choices}{several}"


def _is_key(prefix: str, key: str) -> bool:
    try:
        OverridesParser.create().parse_override(f"{prefix}{key}=1")
    except NOT_COMPOSED:
        return False
    return True


def _unreadable_key(key: str, value: str) -> str:
    """A key whose own name Hydra's grammar has no room for."""
    name = key.removeprefix("source.metadata.")
    if name != key and re.fullmatch(r"[\w/.+-]+", name, re.ASCII) and not is_secret(key):  # W&B's names: train/loss
        return f"{key}: {name!r} is written as {shlex.quote(f'source.metadata={{{name}: {value}}}')}"
    typed = key.removesuffix(".path") if key.startswith("dataset.members.") else key
    return f"{typed}: no key may have such a name; give one of letters, digits, _ and - alone"


def _unreadable(prefix: str, key: str, value: str, *, is_several: bool) -> str:
    """A value that does not mean what it says: several values outside a sweep, or nothing that Hydra can read."""
    why = "is several values, for a sweep (-m)" if is_several else "holds characters that have a meaning in Hydra's grammar"
    if is_secret(key):
        return f"{key}: a value that {why} (not shown; keys belong in the environment)"
    if value[:1] in "[{" or value[:1] in "'\"":
        return f"{key}: got {value}, which {why}; is a bracket or a quote missing, or one too many?"
    # Within quotes a backslash has a meaning only before a quote.
    text = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + (match[2] and f"\\{match[2]}"), value)
    a_text = shlex.quote(f'{prefix}{key}="{text}"')
    a_list = f", a list in brackets: {shlex.quote(f'{prefix}{key}=[{value}]')}" if is_several else ""
    return f"{key}: got {value}, which {why}; one text goes in quotes: {a_text}{a_list}"


def explain_own_files(arguments: Sequence[str]) -> str | None:
    """What is wrong with the files that `arguments` choose, and with those that these choose; None if nothing."""
    asked = get_args_parser().parse_known_args(list(arguments))[0]
    if not asked.config_dir:
        return None
    chosen = [found.groups() for one in asked.overrides if (found := re.fullmatch(r"\+*([\w/]+)=\[?([\w/, -]+)\]?", one))]
    files = [(group, choice.strip()) for group, choices in chosen for choice in choices.split(",")]
    sections = OmegaConf.load(conf_dir() / "config.yaml")  # `watch`, whose keys a file in watch/ has, too
    problems = []
    for group, choice in files:  # which grows: a file chooses others
        path = Path(asked.config_dir) / group / f"{choice}.yaml"
        if not path.is_file() or group.startswith("hydra"):
            continue
        if (ours := conf_dir() / group / f"{choice}.yaml").is_file():
            if path.read_bytes() != ours.read_bytes():
                problems.append(f"{path}: is never read, for {group}={choice} is a choice of dr_validate; give it another name")
            continue
        keys = _keys_in(path)
        if not isinstance(keys, Mapping):
            problems += [f"{path}: {keys}"] if keys else []
            continue
        has_package = bool(PACKAGE.match(path.read_text(encoding="utf-8")))
        if group in STAGES:
            problems += () if has_package else _of_choice(path, group, keys)
            continue
        if not has_package and group not in sections:
            problems.append(
                f"{path}: no `# @package _global_`, so its keys would be those of {group}; make that its first line"
            )
        problems += [
            f"{path}: got `{stage}: {keys[stage]}`, expected `- override /{stage}: {keys[stage]}` in its defaults"
            for stage in STAGES
            if isinstance(keys.get(stage), str)
        ]
        for entry, other in (item for one in keys.get("defaults") or [] if isinstance(one, Mapping) for item in one.items()):
            named = entry.removeprefix("optional ").removeprefix("override ")
            stage, place = named.removeprefix("/"), named[1:] if named.startswith("/") else f"{group}/{named}"
            files += [] if (place, str(other)) in files else [(place, str(other))]
            is_own_group = place != stage and (Path(asked.config_dir) / place / f"{other}.yaml").is_file()
            if stage in STAGES and entry != f"override /{stage}" and not is_own_group:
                problems.append(f"{path}: got `- {entry}: {other}` in its defaults, expected `- override /{stage}: {other}`")
    return str(ConfigError(problems)) if problems else None


def _keys_in(path: Path) -> Mapping[Any, Any] | str | None:
    """What the file sets; in words why it cannot be used, None where Hydra has the words (it names the line)."""
    try:
        keys = OmegaConf.to_container(OmegaConf.load(path))
    except NOT_COMPOSED:
        return None
    except UnicodeDecodeError as error:
        return f"not text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
    text = path.read_text(encoding="utf-8")
    if text.startswith(BYTE_ORDER_MARK) and PACKAGE.match(text[1:]):
        return "begins with a byte order mark, after which Hydra sees no `# @package`; save it without one"
    keys = keys if isinstance(keys, Mapping) else {}
    if not isinstance(listed := keys.get("defaults") or [], list):
        return f"got `defaults: {listed}`, expected a list, `defaults: [{listed}]`"
    return keys


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
