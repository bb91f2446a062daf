"""What is wrong with a command line that does not compose: every problem at once, in the words of this package, not Hydra's."""

import difflib
import functools
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dr_validate.cli.doctor import refuse_file, refuse_not_stated, sample_problems, with_other_problems
from dr_validate.cli.grammar import NOT_COMPOSED, SETTINGS
from dr_validate.config import STAGES, build, conf_dir, is_secret, keys_of, not_chosen
from dr_validate.errors import ConfigError, SetupError

Compose = Callable[[tuple[str, ...]], Mapping[str, Any]]  # from overrides to the plain configuration
OPEN_KEYS = ("dataset.members", "engine.resources", "source.metadata")  # mappings whose names are in no YAML file
NO_HYDRA = "HydraConfig was not set"
NO_HYDRA_YET = "state_dir: got ${hydra:...}, which is not known when a sweep (-m) makes its folder; give a path"
MOST_COMPOSED = 12  # jobs of a sweep: what comes after is left to Hydra
NEVER_ENDS = "watch.mode: got 'follow', which never ends, in a multirun (-m), which implies watch.mode=once; leave it out"


def explain(error: Exception, arguments: Sequence[str], *, values: bool = True) -> str:
    """The message for `arguments`, of which Hydra said `error`. What we have no better words for keeps Hydra's.

    `values`: whether what is wrong with values is said in the same message, which takes all arguments."""
    unknown: list[str] = []
    choices: dict[str, str] = {}  # by group: what was said of a choice that there is not
    asked = get_args_parser().parse_known_args(list(arguments))[0]
    overrides = list(asked.overrides)
    config: dict[str, Any] = {}
    said: Exception | None = error
    while said is not None:
        if problem := unknown_choice(said):
            group = problem.partition(":")[0]
            choices[group] = problem
            rest = [one for one in overrides if not re.match(rf"[+~]*{re.escape(group)}[.=@]", one)]
            if len(rest) == len(overrides) or group not in STAGES:
                break  # of a file, or one that chooses for every stage
            overrides = rest
            config, said = composed(overrides, asked.config_dir)
            continue
        # Hydra stops at the first: without that one it gets to the next.
        key = str(getattr(said.__cause__, "full_key", None) or "")
        rest = [one for one in overrides if not f"{one.partition('=')[0]}.".startswith(f"{key}.")]
        if not key or len(rest) == len(overrides):
            break
        unknown.append(key)
        overrides = rest
        config, said = composed(overrides, asked.config_dir)
    if not unknown and not choices:
        return str(error) if error.__cause__ is None else f"{error}\n{error.__cause__}"
    others = () if asked.cfg or asked.help or not values or said is not None else _other_problems(config)
    more = [one for one in others if not one.startswith(tuple(f"{group}{end}" for group in choices for end in ":."))]
    return str(ConfigError(list(dict.fromkeys([*choices.values(), *(_unknown_key(key, config) for key in unknown), *more]))))


def explain_sweep(arguments: Sequence[str]) -> str | None:
    """What is wrong with a job of a sweep (-m), found before any of them is launched; None for other command lines, and where
    it takes Hydra to know (a configuration of the user's own, values that only a job has).

    Each value is composed once, beside the first of every other key, as `jobs_as_run` has it.
    """
    asked = get_args_parser().parse_known_args(list(arguments))[0]
    launchers = [name for name in ("slurm", "submitit_slurm") if f"hydra/launcher={name}" in asked.overrides]
    if asked.multirun and launchers and shutil.which("srun") is None:
        return f"hydra/launcher: got {launchers[0]!r}, but no srun is on the PATH; start it where Slurm is, or leave it out"
    jobs = _jobs(asked)
    if not jobs:
        return None
    if any(value.lstrip("+") == "watch.mode=follow" for job in jobs for value in job):
        return str(ConfigError([NEVER_ENDS]))
    own, told = asked.config_dir, ["--config-dir", asked.config_dir] if asked.config_dir else []
    one_of = functools.cache(lambda job: composed(job, own, resolve=False))
    swept = _Swept(jobs, lambda job: one_of(job)[0])
    for choices in dict.fromkeys(swept.choices):
        if error := one_of(choices)[1]:
            return explain(error, [*told, *choices], values=False)
    if mistake := _state_dir_not_filled_in(jobs[0], own):
        return mistake
    if problems := swept.unknown():
        return str(ConfigError(problems))
    configs = {}
    for job in _each_value_once(swept.as_run())[:MOST_COMPOSED]:
        config, error = composed(job, own)
        if error is not None:  # perhaps because of values that only the job knows
            error = one_of(tuple(job))[1]
        if error is not None:
            return explain(error, [*told, *job])
        if config.get("task") == "validate":
            configs[tuple(job)] = config
    if own and _compose(jobs[0], own, return_hydra_config=True).hydra.sweeper.params:
        return None  # values that a file of the user's own has for jobs, and these here are not all of theirs
    return _wrong_values(configs) or "\n".join(sample_problems(list(configs.values()))) or None


def _wrong_values(configs: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str | None:
    """Why jobs cannot begin, each problem once, with what the jobs that have it have in common and others have not."""
    jobs: dict[str, list[tuple[str, ...]]] = {}
    others: list[str] = []
    for job, config in configs.items():
        try:
            run = build(config)
            refuse_file(run.settings.state_dir)  # where Hydra makes the folder of the sweep
            refuse_not_stated(run)
        except SetupError as error:
            for problem in error.problems if isinstance(error, ConfigError) else [str(error)]:
                jobs.setdefault(problem, []).append(job)
            others += with_other_problems(ConfigError([]), config).problems
    problems = []
    for problem, having in jobs.items():
        lacking = [one for one in configs if one not in having]
        mine = [text for text in having[0] if all(text in job for job in having) and not all(text in job for job in lacking)]
        mine = [text for text in mine if not is_secret(text.partition("=")[0])]
        problems.append(f"{problem}, with {' '.join(mine)}" if mine and lacking else problem)
    return str(ConfigError(list(dict.fromkeys([*problems, *others])))) if problems else None


def _jobs(asked: Any) -> Sequence[Sequence[str]]:
    """Overrides of the jobs of a sweep, as they were typed; none for other command lines, and where Hydra must say."""
    own = asked.config_path or asked.config_name or (asked.config_dir and not Path(asked.config_dir).is_dir())
    if not asked.multirun or own or any("hydra.searchpath" in one or "hydra.sweeper" in one for one in asked.overrides):
        return []
    overrides = [one for one in asked.overrides if not one.lstrip("+~").startswith("hydra")]
    try:
        values = [list(_values(one)) for one in OverridesParser.create().parse_overrides(overrides)]
    except NOT_COMPOSED:
        return []  # Hydra says it
    if not all(values):
        return []
    return [list(job) for job in itertools.product(*values)]


def for_open_keys(arguments: Sequence[str]) -> list[str]:
    """With what is said of OPEN_KEYS as additions, since Hydra takes no name that is in no YAML file, and
    dataset.members.NAME=FOLDER as the `path` of that member, beside which others of its keys may stand."""
    typed = [re.sub(r"^(dataset\.members\.[^.=]+)=(?![\[{])", r"\1.path=", one) for one in arguments]
    return [f"++{one}" if _is_open(one) else one for one in typed]


def _is_open(text: str) -> bool:
    return text.startswith(tuple(f"{key}{end}" for key in OPEN_KEYS for end in (".", "={")))


def for_every_job(arguments: Sequence[str]) -> list[str]:
    """The command line of a sweep over choices (sampler=a,b), with the keys of that group (sampler.fraction=0.1) as additions:
    Hydra first composes them beside the default choice, which need not have them. `jobs_as_run` takes that back."""
    asked = get_args_parser().parse_known_args(list(arguments))[0]
    if not asked.multirun:
        return list(arguments)
    try:
        overrides = OverridesParser.create().parse_overrides(list(asked.overrides))
    except NOT_COMPOSED:
        return list(arguments)
    groups = {one.key_or_group for one in overrides if one.is_sweep_override() and (conf_dir() / one.key_or_group).is_dir()}
    groups |= set(STAGES) if "run" in groups else set()  # its choices choose for every stage
    fixed = {
        str(one.input_line)
        for one in overrides
        if one.type is OverrideType.CHANGE and not one.is_sweep_override() and _stage_and_key(one)[0] in groups
    }
    return [f"++{argument}" if argument in fixed else argument for argument in arguments]


def jobs_as_run(jobs: Sequence[Sequence[str]], compose: Compose) -> list[list[str]]:
    """The jobs of a sweep, each without the keys that its choice of a stage lacks and another job's has (sampler.fraction
    where sampler=full), and none twice that differs from an earlier one in nothing else. A key that no job's choice has stays.

    `compose` is asked for the choices of jobs alone, and only where jobs differ in them.
    """
    return _Swept(jobs, compose).as_run()


class _Swept:
    """The jobs of a sweep as they were typed, and which keys the choices of each have."""

    def __init__(self, jobs: Sequence[Sequence[str]], compose: Compose) -> None:
        parser = OverridesParser.create()
        self._jobs = jobs
        self._parsed = {text: parser.parse_override(text) for text in dict.fromkeys(itertools.chain(*jobs))}
        self.choices = [tuple(text for text in job if _is_choice(self._parsed[text])) for job in jobs]
        differ = self._may_differ()
        self._configs = {choices: compose(choices) if differ else {} for choices in dict.fromkeys(self.choices)}
        self._keys = {choices: _keys_by_stage(config) for choices, config in self._configs.items()}

    def _may_differ(self) -> bool:
        """Whether a job may lack a key that another has; composing takes a while, for each choice."""
        all_choices, common = set().union(*self.choices), set(self.choices[0]).intersection(*self.choices)
        chosen = {self._parsed[text].key_or_group for text in all_choices}
        swept = {self._parsed[text].key_or_group for text in all_choices - common}
        typed = {_stage_and_key(one)[0] for one in self._parsed.values() if _is_value(one)}
        return bool(swept) and bool(chosen - set(STAGES) or typed & swept)

    def as_run(self) -> list[list[str]]:
        first: dict[tuple[str, ...], list[str]] = {}
        found: list[list[str]] = []
        for job, choices in zip(self._jobs, self.choices, strict=True):
            kept, left_out = self._split(job, choices)
            if first.setdefault(tuple(kept), left_out) == left_out:
                found.append(kept)
        return found

    def unknown(self) -> list[str]:
        """Problems: keys that several choices are swept over for, and none has."""
        found = {}
        for text in self._parsed:
            stage, key = _stage_and_key(self._parsed[text])
            known = [config for choices, config in self._configs.items() if stage in self._keys[choices]]
            targets = {str(config[stage]["_target_"]).split(".")[-2]: None for config in known}
            if len(targets) > 1 and _is_value(self._parsed[text]) and key not in (have := self._known(stage)):
                hint = difflib.get_close_matches(key, sorted(have), n=1)
                way_out = f"did you mean {stage}.{hint[0]}?" if hint else f"they have {', '.join(sorted(have))}"
                found[stage, key] = f"{stage}.{key}: none of {stage}={','.join(targets)} has such a key; {way_out}"
        return list(found.values())

    def _known(self, stage: str) -> set[str]:
        return {key for keys in self._keys.values() for key in keys.get(stage, ())}

    def _split(self, job: Sequence[str], choices: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """What a job is to be told, and what it is not."""
        kept: list[str] = []
        left_out: list[str] = []
        for text in job:
            stage, key = _stage_and_key(self._parsed[text])
            mine = self._keys[choices].get(stage)
            if mine is None or not _is_value(self._parsed[text]):
                kept.append(text)
            elif key in mine:
                kept.append(text if _is_open(text.removeprefix("++")) else text.removeprefix("++"))
            else:
                (left_out if key in self._known(stage) else kept).append(text)
        return kept, left_out


def _is_choice(override: Override) -> bool:
    """Not a value: what it takes to know which choices a job has."""
    return "." not in override.key_or_group and override.key_or_group not in SETTINGS


def _is_value(override: Override) -> bool:
    """Of a key within a group or section (`sampler.fraction`)."""
    return "." in override.key_or_group and override.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD)


def _stage_and_key(override: Override) -> tuple[str, str]:
    stage, _, key = override.key_or_group.partition(".")
    return stage, key.partition(".")[0]


def _keys_by_stage(config: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Of each stage whose class is known."""
    found = {stage: keys_of(stage, config) for stage in STAGES}
    return {stage: keys for stage, keys in found.items() if keys is not None}


def _each_value_once(jobs: Sequence[list[str]]) -> list[list[str]]:
    """The first job, and every one that has an override which those before it have not."""
    seen: set[str] = set()
    found: list[list[str]] = []
    for job in jobs:
        if not found or not seen.issuperset(job):
            found.append(job)
            seen.update(job)
    return found


def _values(override: Override) -> Iterator[str]:
    """The overrides that jobs get in place of one that is swept over."""
    if not override.is_sweep_override():
        yield str(override.input_line)
        return
    key = override.get_key_element()
    for value in override.sweep_string_iterator():
        yield f"{key}={value}"


def composed(
    overrides: Sequence[str], own_dir: str | None = None, *, resolve: bool = True
) -> tuple[dict[str, Any], Exception | None]:
    """The plain configuration, empty where there is none, and why. `own_dir`: further YAML (--config-dir)."""
    try:
        config = _compose(overrides, own_dir)
        if resolve:
            OmegaConf.resolve(config)
    except NOT_COMPOSED as error:
        return {}, error
    plain = OmegaConf.to_container(config, throw_on_missing=False)
    assert isinstance(plain, dict)
    return as_chosen({str(key): value for key, value in plain.items()}, overrides)[0], None


def _compose(overrides: Sequence[str], own_dir: str | None, **options: bool) -> DictConfig:
    places = [f"hydra.searchpath=['file://{Path(own_dir).absolute()}']"] if own_dir else []
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("config", [*overrides, *places], **options)


def _state_dir_not_filled_in(job: Sequence[str], own_dir: str | None) -> str | None:
    """The folder of a sweep is in its state_dir, and Hydra makes it before there is a job that could say what is wrong."""
    if own_dir is None and not any("${" in one for one in job):
        return None
    try:
        config = _compose(job, own_dir)
    except NOT_COMPOSED:
        return None  # said of the job
    try:
        OmegaConf.select(config, "state_dir")
    except OmegaConfBaseException as error:
        return str(ConfigError([NO_HYDRA_YET]) if NO_HYDRA in str(error) else not_filled_in(error))
    return None


def not_filled_in(error: OmegaConfBaseException) -> ConfigError:
    """Of ${...} in a file of the user's own, or on the command line."""
    return ConfigError([f"a value with ${{...}} cannot be filled in: {' '.join(str(error).split())}"])


def as_chosen(config: Mapping[str, Any], typed: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The configuration without what a named experiment has set for a choice that another one, typed, takes the place of
    (`+run=demo sampler=full`: the demo's `sampler.fraction`), and which keys that were.

    Keys that were typed stay, and so do all of a choice that is not ours: its YAML may have a key that is a mistake.
    """
    found, left_out = dict(config), []
    said = {key: value for key, _, value in (one.lstrip("+").partition("=") for one in typed)}
    for stage in STAGES:
        ours = stage in said and (conf_dir() / stage / f"{said[stage]}.yaml").is_file()
        if not ours or (known := keys_of(stage, config)) is None:
            continue
        foreign = [key for key in config[stage] if key not in {*known, "_target_"} and f"{stage}.{key}" not in said]
        found[stage] = {key: value for key, value in config[stage].items() if key not in foreign}
        left_out += [f"{stage}.{key}" for key in foreign]
    return found, left_out


def unknown_choice(error: Exception) -> str | None:
    """Which choice there is not, and which there are; None where the error is another one."""
    if not isinstance(error, MissingConfigException):
        return None
    missing = str(error.missing_cfg_file or "")
    is_stage = missing.partition("/")[0] in STAGES  # the choice may be a path; a group of Hydra's has one in its name
    group, slash, choice = missing.partition("/") if is_stage else missing.rpartition("/")
    if not slash or not error.options:
        return None
    close = "".join(f"; did you mean {one}?" for one in difflib.get_close_matches(choice, error.options, n=1))
    way_out = f"; a folder is {group}.path" if "/" in choice and group in ("source", "dataset") else close
    return f"{group}: got {choice!r}, expected one of {', '.join(error.options)}{way_out}"


def _unknown_key(key: str, config: Mapping[str, Any]) -> str:
    """Names what has no such key, and the keys that may have been meant; never the value, which may be a secret."""
    place, _, name = key.rpartition(".")
    part: Any = config
    for step in place.split(".") if place else ():
        part = part.get(step) if isinstance(part, Mapping) else None
    if key in STAGES:
        return not_chosen(key)
    if not isinstance(part, Mapping):
        return f"{key}: no such key"
    target = str(part.get("_target_", "")).split(".")
    owner = f"{place}={target[-2]} has" if len(target) > 1 else "there is"
    names = [str(other) for other in part if other != "_target_"]
    prefix = f"{place}." if place else ""
    if name in names:
        return f"{key}: takes names with a value each; set {key}.NAME=VALUE"
    if close := difflib.get_close_matches(name, names, n=1):
        return f"{key}: {owner} no such key; did you mean {prefix}{close[0]}?"
    files = sorted((conf_dir() / place).glob("*.yaml")) if place in STAGES else ()
    having = ",".join(file.stem for file in files if name in OmegaConf.load(file))
    ours = f"; it has {', '.join(names)}" if names else f"; it is one of {place}={having}" if having else ""
    ours = ours if place else "; --help lists them"
    return f"{key}: {owner} no such key{ours}"


def _other_problems(config: Mapping[str, Any]) -> Sequence[str]:
    if config.get("task") not in ("validate", "doctor"):
        return ()  # other tasks make do with less
    try:
        build(config)
        error = ConfigError([])
    except ConfigError as found:
        error = found
    return with_other_problems(error, config).problems
