"""From a composed configuration to a `Run`: every component built, every problem collected into one ConfigError."""

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from dr_validate.component import UserPath, component
from dr_validate.devices import check_device
from dr_validate.errors import ConfigError, DrValidateError, SetupError
from dr_validate.files import expanded
from dr_validate.metrics.gains import deepest_cutoff, parse
from dr_validate.stages import Dataset, Encoder, Engine, Fidelity, Index, Sampler, Source, Store, Tracker

T = TypeVar("T")
STAGES: Mapping[str, Any] = {  # and what a class of each must have
    "source": Source,
    "store": Store,
    "dataset": Dataset,
    "encoder": Encoder,
    "sampler": Sampler,
    "engine": Engine,
    "index": Index,
    "fidelity": Fidelity,
    "tracker": Tracker,
}
REQUIRED = "required, no default"
PLUGINS = "dr_validate.plugins"  # the group of entry points by which an installed package offers its classes
MEAN = "mean"  # of the collections of a suite: what its Reports have in place of the name of one
TEXT_KEYS = ("query_prefix", "document_prefix", "query_max_length", "document_max_length")  # a collection may have its own
SECRET_WORDS = ("api_key", "apikey", "password", "secret", "auth_token", "access_token")


@component
class ReportSettings:
    """`task=report`: where the page goes, `report.html` in the state_dir unless said otherwise, and how often it is written
    anew while a watcher runs (seconds; 0: once)."""

    out: UserPath | None = None
    every_s: float = Field(default=0, ge=0)


@component
class Watch:
    """When to look for checkpoints, which comes first, and when to give up; times in seconds, 0 is no limit."""

    mode: Literal["follow", "once"] = "follow"
    order: Literal["newest_first", "oldest_first"] = "newest_first"
    poll_s: float = Field(default=30, gt=0)
    at_once: int = Field(default=1, ge=1)  # processes: one validates, the others rank what comes next
    max_attempts: int = Field(default=3, ge=1)
    retry_failed: bool = False  # those that failed for good before this start
    timeout_s: float = Field(default=0, ge=0)  # of a fetch, and of a validation
    stall_timeout_s: float | None = Field(default=3600, ge=0)  # without any progress, in an attempt or at the start
    skip: Literal["never", "stale"] = "never"
    stop_file: UserPath | None = None  # follow until this file exists and nothing is left to do
    max_hours: float = Field(default=0, ge=0)  # of this process, which then stops as after SIGTERM, with exit code 3
    exit_timeout_s: float = Field(default=20, gt=0)
    on_best: str | None = None  # command of a shell, with the Report on its standard input
    on_best_timeout_s: float = Field(default=600, gt=0)


@component
class Settings:
    """The values that stages share."""

    task: Literal["validate", "status", "doctor", "report", "dashboard"] = "validate"
    device: Annotated[str, BeforeValidator(check_device)] = "auto"
    state_dir: UserPath = Path(".dr_validate")
    seed: int = Field(default=13, ge=0)
    top_k: int = Field(default=100, ge=1)
    metrics: tuple[str, ...] = Field(default=("mrr@10", "ndcg@10", "recall@100"), min_length=1)
    write_ranking: bool = False
    block_documents: int = Field(default=8192, ge=1)  # documents between two looks at the clock; no effect on scores
    plugins: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], ...] = ()  # top-level packages with classes for `_target_`


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything a process needs to validate; `raw` is the plain configuration it was built from.

    `members`: of dataset=suite by name, each the run that validates this collection alone.
    """

    settings: Settings
    watch: Watch
    source: Source
    store: Store
    dataset: Dataset
    encoder: Encoder
    sampler: Sampler
    engine: Engine
    index: Index
    fidelity: Fidelity
    tracker: Tracker
    raw: Mapping[str, Any]
    members: Mapping[str, "Run"] = field(default_factory=dict)

    @property
    def collections(self) -> tuple["Run", ...]:
        """What is validated for each checkpoint: the members of a suite, else this run."""
        return tuple(self.members.values()) or (self,)


def conf_dir() -> Path:
    """The folder of the YAML files: inside an installed package, at the top level of a checkout."""
    package = Path(__file__).resolve().parent
    inside, beside = package / "conf", package.parent / "conf"
    return inside if inside.is_dir() else beside


@dataclass(frozen=True, slots=True)
class NotGiven:
    """Stands for a component of which something required is not set; `problem` says what."""

    problem: str


def build(config: Mapping[str, Any], optional: Collection[str] = ()) -> Run:
    """Build every component of a resolved configuration (plain mappings). Raises ConfigError with all problems at once.

    `optional` stages become `NotGiven` where they are not chosen, or lack a key that has no default.
    """
    problems: list[str] = []
    built = {stage: _build_stage(stage, config, problems) for stage in STAGES if stage not in optional}
    for stage in optional:
        found: list[str] = []
        component = _build_stage(stage, config, found)
        is_given = not found or not all(REQUIRED in problem for problem in found)
        problems.extend(found if is_given else ())
        built[stage] = component if is_given else NotGiven("; ".join(found))
    _give_config(built["source"], config)
    built["watch"] = _construct(Watch, "watch", config.get("watch") or {}, problems)
    _construct(ReportSettings, "report", config.get("report") or {}, problems)
    shared = {key: value for key, value in config.items() if key not in (*STAGES, "watch", "report")}
    settings = _construct(Settings, "", shared, problems)
    if built["watch"] is not None and built["engine"] is not None and built["watch"].at_once > 1:
        problems.extend(built["engine"].problems_of_many())
    members = _members(config, built["dataset"], problems)
    if settings is not None:
        problems.extend(_metric_problems(settings, config))
    if problems or settings is None:
        raise ConfigError(problems)
    run = Run(settings=settings, raw=config, **built)
    return dataclasses.replace(run, members={name: dataclasses.replace(run, **parts) for name, parts in members.items()})


def _members(config: Mapping[str, Any], suite: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """What the runs of a suite's members have of their own, by name; none where `suite` is another data set."""
    given = getattr(suite, "members", None)
    if given is not None and not given:
        problems.append(f"dataset.members: {REQUIRED}; name the collections: dataset.members.NAME=FOLDER for each of them")
    found = {}
    for name, keys in (given or {}).items():
        own: list[str] = []
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", str(name)) or name == MEAN:
            own.append(f"dataset.members: got the name {name!r}, expected letters, digits and ._+-, and not {MEAN!r}")
        raw = _member_config(config, suite, str(name), keys, own)
        if not own:
            place = f"dataset.members.{name}"
            stated = [stage for stage in ("encoder", "sampler") if raw[stage] != config.get(stage)]
            parts = {stage: _build_stage(stage, raw, own, f"{place}.{stage}") for stage in stated}
            found[str(name)] = {"raw": raw, "dataset": _build_stage("dataset", raw, own, place), **parts}
        problems.extend(own)
    return found


def _member_config(config: Mapping[str, Any], suite: Any, name: str, given: Any, problems: list[str]) -> dict[str, Any]:
    """The configuration that would validate this member alone."""
    place = f"dataset.members.{name}"
    keys: dict[str, Any] | None = {"path": given} if isinstance(given, str) else None
    keys = dict(given) if isinstance(given, Mapping) else keys
    if keys is None:
        problems.append(f"{place}: expected a folder, or keys such as {place}.path=FOLDER (got {given!r})")
        return {}
    encoder, sampler = keys.pop("encoder", None) or {}, keys.pop("sampler", None) or {}
    sampler = {"choice": sampler} if isinstance(sampler, str) else sampler
    for key in encoder if isinstance(encoder, Mapping) else ["encoder"]:
        if key not in TEXT_KEYS:
            problems.append(
                f"{place}.encoder.{key}: a collection may have its own {', '.join(TEXT_KEYS)}; all else is in encoder"
            )
    if not isinstance(sampler, Mapping):
        problems.append(f"{place}.sampler: expected a choice, or keys such as {place}.sampler.fraction=0.1 (got {sampler!r})")
    if problems:
        return {}
    dataset = _chosen("dataset", {"choice": "beir", **keys}, place, problems)
    if isinstance(suite.path, Path) and isinstance(dataset.get("path"), str):
        dataset["path"] = str(suite.path / expanded(dataset["path"]))
    if "name" in (keys_of("dataset", {**config, "dataset": dataset}) or ()):
        dataset = {"name": name, **dataset}
    chosen = _chosen("sampler", sampler, f"{place}.sampler", problems) if "choice" in sampler else None
    sampling = chosen or {**(config.get("sampler") or {}), **sampler}
    return {**config, "dataset": dataset, "encoder": {**(config.get("encoder") or {}), **encoder}, "sampler": sampling}


def _chosen(stage: str, keys: Mapping[str, Any], place: str, problems: list[str]) -> dict[str, Any]:
    """Keys with the class that their `choice` names, if they do not name one themselves."""
    from omegaconf import OmegaConf  # what only a suite takes

    others = {key: value for key, value in keys.items() if key != "choice"}
    if "_target_" in keys:
        return others
    files = {file.stem: file for file in sorted((conf_dir() / stage).glob("*.yaml")) if file.stem != "suite"}
    if (choice := str(keys["choice"])) not in files:
        problems.append(f"{place}.choice: got {choice!r}, expected one of {', '.join(files)}")
        return others
    found: Any = OmegaConf.load(files[choice])
    return {"_target_": str(found["_target_"]), **others}


def parts_that_build(config: Mapping[str, Any], stages: Collection[str] = tuple(STAGES)) -> dict[str, Any]:
    """The components of a configuration that may be wrong elsewhere, by stage."""
    built = {stage: _build_stage(stage, config, []) for stage in stages}
    _give_config(built.get("source"), config)
    return {stage: component for stage, component in built.items() if component is not None}


def check_datasets(run: Run) -> None:
    """Raise SetupError with everything that is not at its place in any of the collections; nothing is read."""
    problems = []
    for name, one in run.members.items() or [("", run)]:
        try:
            one.dataset.check()
        except SetupError as error:
            problems.append(of_member(name, str(error)) if name else str(error))
    if problems:
        raise SetupError("\n".join(problems))


def of_member(name: str, message: str) -> str:
    """What was said of a member of a suite, with its keys in place of those that a run of it alone has."""
    place = f"dataset.members.{name}"
    told = re.sub(r"(?<![\w./-])dataset\.(?=[a-z_]+\b)", f"{place}.", message)
    return told if told.startswith(place) else f"{place}: {told}"


def keys_of(stage: str, config: Mapping[str, Any]) -> frozenset[str] | None:
    """The keys of the class that a configuration names for a stage; None where there is no such class."""
    cls = _class_of(stage, config, [])
    return None if cls is None else frozenset(field.name for field in dataclasses.fields(cls))


def _give_config(source: Source | None, config: Mapping[str, Any]) -> None:
    """Tell the source that checkpoints need no config.json of their own where `encoder.config` states one."""
    encoder = config.get("encoder")
    if source is not None and isinstance(encoder, Mapping) and encoder.get("config"):
        object.__setattr__(source, "needs_config", False)  # components are frozen, and this is no key of theirs


def _build_stage(stage: str, config: Mapping[str, Any], problems: list[str], place: str = "") -> Any:
    cls = _class_of(stage, config, problems)
    if cls is None:
        return None
    return _construct(cls, place or stage, {key: value for key, value in config[stage].items() if key != "_target_"}, problems)


def _class_of(stage: str, config: Mapping[str, Any], problems: list[str]) -> Any:
    chosen = config.get(stage)
    if not isinstance(chosen, Mapping) or not isinstance(chosen.get("_target_"), str):
        problems.append(not_chosen(stage, REQUIRED if chosen is None else f"got {chosen!r}"))
        return None
    target = str(chosen["_target_"])
    module_name, _, class_name = target.rpartition(".")
    package = module_name.partition(".")[0]
    if package != "dr_validate" and not _is_plugin(package, config):
        # Hydra would import and call anything; a configuration file must not be able to.
        problems.append(
            f"{stage}._target_: got {target!r}, expected a class of dr_validate.{stage}; for one of your own, name its "
            f"package: plugins=[{package or 'my_package'}]"
        )
        return None
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        problems.append(f"{stage}._target_: got {target!r}, which cannot be imported ({error})")
        return None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        problems.append(f"{stage}._target_: got {target!r}, which is no @component (from dr_validate.component)")
        return None
    asked = {name for name in (*vars(STAGES[stage]), *STAGES[stage].__annotations__) if not name.startswith("_")}
    if lacking := sorted(asked - {*dir(found), *found.__dataclass_fields__}):
        what = f"which lacks {', '.join(lacking)}; dr_validate/stages.py says what each is (class {STAGES[stage].__name__})"
        problems.append(f"{stage}._target_: got {target!r}, {what}")
        return None
    return found


def _is_plugin(package: str, config: Mapping[str, Any]) -> bool:
    """Whether classes of this top-level package may be named: it is one of `plugins`, or an installed one that says so."""
    named = config.get("plugins") or ()
    return package in {str(name) for name in named if not isinstance(named, str)} or package in _installed_plugins()


@functools.cache
def _installed_plugins() -> frozenset[str]:
    return frozenset(entry.value.split(".")[0] for entry in importlib.metadata.entry_points(group=PLUGINS))


def _construct(cls: type[T], place: str, values: Any, problems: list[str]) -> T | None:
    if not isinstance(values, Mapping):
        name = dataclasses.fields(cls)[0].name  # type: ignore[arg-type]  # every one that is constructed is a @component
        problems.append(f"{place}: got {values!r}, expected keys of its own, such as {place}.{name}=VALUE")
        return None
    missing = [key for key, value in values.items() if isinstance(value, str) and value == "???"]
    try:
        return cls(**{key: value for key, value in values.items() if key not in missing})
    except ValidationError as error:
        problems.extend(_describe(problem, place, cls) for problem in error.errors(include_url=False))
    except DrValidateError as error:
        problems.append(f"{place}: {error}" if place else str(error))
    return None


def _describe(problem: Mapping[str, Any], place: str, cls: Any) -> str:
    path = ".".join([part for part in (place, *map(str, problem["loc"])) if part])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{path}: {REQUIRED} (set it as {path}=VALUE)"
    if is_secret(path):
        return f"{path}: {message} (value not shown; keys belong in the environment)"
    shown = problem["input"]
    if problem["type"] == "tuple_type":
        return f"{path}: expected a list, e.g. {path}=[{'A,B' if shown is None else shown}] (got {shown!r})"
    if problem["type"] == "too_short":
        return f"{path}: got {shown!r}, expected at least one; leave it out for the default"
    if problem["type"] == "unexpected_keyword_argument":
        names = [field.name for field in dataclasses.fields(cls)]
        close = "".join(f"did you mean {one}? Or " for one in difflib.get_close_matches(str(problem["loc"][-1]), names, n=1))
        owner = f"the chosen {place} has" if place else "there is"
        return f"{path}: {owner} no such key; {close}leave it out (~{path} takes away what a file says)"
    plain = isinstance(shown, (str, int, float, list, tuple)) or shown is None  # not the whole component
    return f"{path}: {message} (got {shown!r})" if plain else f"{path}: {message}"


def is_secret(name: str) -> bool:
    """Whether a key of this name, or an override with it, may hold what is not to be shown."""
    return any(word in name.lower() for word in SECRET_WORDS)


def _metric_problems(settings: Settings, config: Mapping[str, Any]) -> list[str]:
    problems = []
    for position, name in enumerate(settings.metrics):
        try:
            package = parse(name).package
            if package is not None and not _is_plugin(package, config):
                problems.append(f"metrics.{position}: got {name!r}; for one of your own, name its package: plugins=[{package}]")
        except DrValidateError as error:
            problems.append(f"metrics.{position}: {error}")
    if len(set(settings.metrics)) < len(settings.metrics):
        problems.append(f"metrics: got {list(settings.metrics)}, each may be named once")
    if not problems and (deepest := deepest_cutoff(settings.metrics)) > settings.top_k:
        problems.append(f"top_k: got {settings.top_k}, but metrics reach down to {deepest}; set top_k={deepest} or more")
    return problems


def not_chosen(stage: str, why: str = REQUIRED) -> str:
    """The problem of a group without a choice."""
    choices = sorted(file.stem for file in (conf_dir() / stage).glob("*.yaml"))
    return f"{stage}: {why}; choose one of {', '.join(f'{stage}={choice}' for choice in choices)}"


def state_dir_of(config: Mapping[str, Any]) -> Path:
    """Where a configuration keeps everything, whatever else may be wrong with it. Raises ConfigError."""
    return _checked(Settings, "", {"state_dir": str(config.get("state_dir"))}).state_dir


def report_settings(config: Mapping[str, Any]) -> ReportSettings:
    """The keys of `report`. Raises ConfigError with all problems; what else may be wrong with a configuration is no matter."""
    return _checked(ReportSettings, "report", config.get("report") or {})


def _checked(cls: type[T], place: str, values: Mapping[str, Any]) -> T:
    problems: list[str] = []
    made = _construct(cls, place, values, problems)
    if made is None:
        raise ConfigError(problems)
    return made


def tracker_of(config: Mapping[str, Any]) -> Tracker:
    """The tracker alone. Raises ConfigError; what else may be wrong with a configuration is no matter."""
    problems: list[str] = []
    tracker: Tracker | None = _build_stage("tracker", config, problems)
    if tracker is None:
        raise ConfigError(problems)
    return tracker
