"""What a run needs, looked at before it is long: cheap things at the start of every run, all of it by `task=doctor`.

Each line of the doctor: what was found, or the way out.
"""

import contextlib
import importlib.metadata
import logging
import operator
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import NotGiven, Run, build, check_datasets, parts_that_build, state_dir_of
from dr_validate.errors import CheckpointError, ConfigError, DatasetError, DrValidateError, NotStated, SetupError
from dr_validate.files import give_home, make_state_dir, network_disk
from dr_validate.ledger.database import is_made
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.process import new_console
from dr_validate.source.folder import FolderSource
from dr_validate.values import TestSet

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy", "scipy", "ranx", "bm25s", "hydra-core")
NEEDED_BY = {"wandb": "wandb", "datasets": "hub"}  # a package that one choice takes
LOW_ON_SPACE_GIB = 5.0
Check = Callable[[Run], str]
log = logging.getLogger(__name__)


class LowOnSpace(SetupError):
    """Enough to begin with, perhaps not to go on."""


def examine(config: Mapping[str, Any]) -> int:
    """Print one line per check. Returns the exit code: 0, or 2 if anything would stop a run. A source or data set that is not
    given keeps nobody from having the rest looked at."""
    run = build(config, optional=("source", "dataset"))
    give_home(run.settings.state_dir)
    not_given = {stage: found for stage in ("source", "dataset") if isinstance(found := getattr(run, stage), NotGiven)}
    console = new_console()
    checks: dict[str, Check] = {
        "packages": _packages,
        "device": _device,
        "search": _search,
        "disk": _disk,
        "tracker": lambda run: run.tracker.examine(),
        "source": _source,
        "encoder": _encoder,
        "dataset": lambda run: "; ".join(map(_dataset, run.collections)),
    }
    needs = {"source": "source", "encoder": "source", "dataset": "dataset"}
    wrong = 0
    for name, check in checks.items():
        if missing := not_given.get(needs.get(name, "")):
            console.print(f"not given {name:9} {missing.problem}", soft_wrap=True)
            continue
        try:
            found, mark, style = check(run), "ok", "green"
        except (DrValidateError, OSError) as error:
            found, mark, style = in_words(error), "problem", "red"
            wrong += 1
        console.print(f"{mark:9}", style=style, end=" ")
        console.print(f"{name:9} {found}", soft_wrap=True)
    return 2 if wrong else 0


def check_start(run: Run) -> None:
    """What the doctor looks at, as far as that takes no time, no server and no torch. Raises SetupError with all problems."""
    give_home(run.settings.state_dir)
    checks: list[Callable[[Run], object]] = [_distributions, _search, _disk]
    checks += [lambda run: run.tracker.check(), _source_is_there, refuse_not_stated, check_datasets, _sampler_files]
    problems = _problems(run, checks)
    if problems and run.settings.device not in ("auto", "cpu"):
        problems = [*_problems(run, [_device]), *problems]  # takes torch, which without a problem the worker asks first
    if problems:
        raise SetupError("\n".join(problems))
    if remark := run.index.check():
        log.info("%s", remark)
    if remark := _network_disk(run.settings.state_dir):
        log.warning("%s", remark)


def state_dir_to_read(config: Mapping[str, Any]) -> Path:
    """The state_dir of a task that only reads it. Raises ConfigError where there is no folder that this user may look into."""
    state_dir = state_dir_of(config)
    way_out = "set it to the folder that task=validate wrote to"
    if not state_dir.is_dir():
        what = "which is no folder" if state_dir.exists() else f"but there is no folder {state_dir.absolute()}"
        raise ConfigError([f"state_dir: got {str(state_dir)!r}, {what}; {way_out}"])
    if not os.access(state_dir, os.X_OK):
        refused = f"which user {os.getuid()} may not look into; run as its owner, have its permissions changed, or {way_out}"
        raise ConfigError([f"state_dir: got {str(state_dir)!r}, {refused}"])
    return state_dir


def with_other_problems(error: ConfigError, config: Mapping[str, Any]) -> ConfigError:
    """The error, and what is not at its place of what the components that are configured well name; no package is loaded."""
    parts = parts_that_build(config)
    found = []
    for stage in [one for one in ("source", "dataset") if one in parts]:
        found += _problems(parts[stage], [operator.methodcaller("check")])
    found += _problems(parts.get("sampler"), [_sampler_files_of])
    return ConfigError([*error.problems, *found])


def _problems(part: Any, checks: Sequence[Callable[[Any], Any]]) -> list[str]:
    found = []
    for check in checks:
        try:
            check(part)
        except LowOnSpace as error:
            log.warning("%s", error)
        except (DrValidateError, OSError) as error:
            found.append(in_words(error))
    return found


def in_words(error: Exception) -> str:
    """Its message; of a file that the system does not let us use, which is mostly another user's, with the way out."""
    if not isinstance(error, PermissionError) or error.filename is None:
        return str(error)
    way_out = "run as its owner, have its permissions changed, or, if it is in state_dir, set another one"
    return f"{error.filename}: {error.strerror}, for user {os.getuid()}; {way_out}"


def sample_problems(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the size of the samples of several jobs that can be built, before any of them encodes anything.

    Data sets on this machine are opened for it, each once. Raises ConfigError for a job that cannot be built.
    """
    test_sets: dict[str, TestSet | None] = {}
    found = []
    for config in configs:
        for one in build(config).collections:
            found += _sample_problems(one, test_sets)
    return list(dict.fromkeys(found))


def _sample_problems(run: Run, test_sets: dict[str, TestSet | None]) -> list[str]:
    key = f"{run.settings.state_dir} {run.dataset!r}"
    try:
        if key not in test_sets:
            test_sets[key] = None  # in case that it cannot be opened
            if getattr(run.dataset, "is_here", True):
                test_sets[key] = run.dataset.open(run.settings.state_dir / "datasets")
        if (test_set := test_sets[key]) is not None:
            run.sampler.check(test_set)
    except (DatasetError, OSError):
        pass
    except SetupError as error:
        return [str(error)]
    return []


def _packages(run: Run) -> str:
    return ", ".join(f"{name} {found.version}" for name, found in _distributions(run).items())


def _distributions(run: Run) -> Mapping[str, importlib.metadata.Distribution]:
    """Of the packages that are needed, by name. Their versions are read when asked for, which takes a while."""
    parts = (run.source, run.tracker, *(one.dataset for one in run.collections))
    places = {type(part).__module__.rpartition(".")[2] for part in parts}
    wanted = (*PACKAGES, *(package for package, choice in NEEDED_BY.items() if choice in places))
    found, missing = {}, []
    for name in wanted:
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise SetupError(f"packages: missing {', '.join(missing)}; install with pip install {' '.join(missing)}")
    return found


def _device(run: Run) -> str:
    device = run.engine.find_device(run.settings.device)
    if elsewhere := run.engine.describe(device):
        return elsewhere
    import torch

    if not device.startswith("cuda"):
        threads = torch.get_num_threads()
        return f"{device}, {threads} thread{'s' if threads != 1 else ''}"
    free, total = torch.cuda.mem_get_info(device)
    return f"{device}, {torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _search(run: Run) -> str:
    name = type(run.index).__module__.rpartition(".")[2]
    return run.index.check() or f"index={name}"


def _source_is_there(run: Run) -> None:
    """Raise SetupError for a folder that would have to be there now: a finite run waits for none, and there are no copies."""
    source = run.source
    source.check()
    path = getattr(source, "path", None)
    has_none = isinstance(path, Path) and (not path.exists() or (isinstance(source, FolderSource) and not source.folders()))
    if has_none and run.watch.mode == "once" and not run.store.digests(run.settings.state_dir):
        raise SetupError(
            f"source: no checkpoint was found (source.path={path}), so nothing was validated; is it the right source?"
        )


def refuse_not_stated(run: Run) -> None:
    """Raise SetupError where each checkpoint in a folder lacks what is to be stated: before data that may take long to read.
    Not where there is a ledger: checkpoints that are not in the folder any more may have been validated."""
    source = run.source
    if not isinstance(source, FolderSource) or not source.path.is_dir() or is_made(run.settings.state_dir / "ledger.db"):
        return
    problem = ""
    for folder in source.whole():
        try:
            for one in run.collections:
                getattr(one.encoder, "check", lambda folder: None)(folder)
            return
        except NotStated as error:
            problem = problem or f"{folder.name}: {error}"
        except (CheckpointError, OSError):  # of that one alone, and the others may state it
            return
    if problem:
        raise SetupError(problem)


def _sampler_files(run: Run) -> None:
    for one in run.collections:
        _sampler_files_of(one.sampler)


def _sampler_files_of(sampler: Any) -> None:
    """Raise SetupError where a run is not at its place; samplers of others need not say."""
    getattr(sampler, "check_files", lambda: None)()


def _disk(run: Run) -> str:
    state_dir = run.settings.state_dir
    store: Any = run.store
    if (kept := getattr(store, "keep_best", None)) is not None:
        places = {"source.path": getattr(run.source, "path", None), "checkpoints of state_dir": state_dir / "checkpoints"}
        for name, place in places.items():
            if place is not None and kept.resolve().is_relative_to(Path(place).resolve()):
                raise SetupError(f"store.keep_best: got {str(kept)!r}, which is {name} or in it; name a folder of its own")
        store.check()
    refuse_file(state_dir)
    make_state_dir(state_dir)
    free = shutil.disk_usage(state_dir).free / 2**30
    remark = f"; {said}" if (said := _network_disk(state_dir)) else ""
    if free < LOW_ON_SPACE_GIB:
        raise LowOnSpace(f"state_dir {state_dir}: {free:.1f} GiB free; checkpoints are copied there, free some space")
    return f"{state_dir}: writable, {free:.0f} GiB free; kept vectors: {run.store.describe_vectors(state_dir)}{remark}"


def refuse_file(state_dir: Path) -> None:
    """Raise SetupError where there is a file in place of the folder, or of one above it."""
    with contextlib.suppress(PermissionError):  # which is said where the folder is made
        if found := next((place for place in (state_dir, *state_dir.parents) if place.is_file()), None):
            what = "a file" if found == state_dir else f"but {str(found)!r} is a file"
            raise SetupError(f"state_dir: got {str(state_dir)!r}, {what}; set it to a folder")


def _network_disk(state_dir: Path) -> str:
    """What may go wrong on a disk that other machines have as well, "" for any other."""
    if not (kind := network_disk(state_dir)):
        return ""
    return (
        f"CAREFUL: state_dir is on {kind}: its ledger (SQLite) and locks are safe for one machine at a time there, and only if "
        "locks work; never let two machines use it at once, or set state_dir to a disk of this machine"
    )


def _source(run: Run) -> str:
    listing = run.source.list(run.settings.state_dir)
    lines = [f"{len(listing.checkpoints)} checkpoints, {len(listing.incomplete)} incomplete"]
    lines += [f"{part.name}: {part.lacks}" for part in listing.incomplete]
    return "; ".join(lines)


def _encoder(run: Run) -> str:
    """Loads the latest checkpoint, where it lies on this machine: what it lacks (a pooling, say) would fail every one."""
    found = run.source.list(run.settings.state_dir).checkpoints
    latest = max(found, key=lambda checkpoint: (checkpoint.step, checkpoint.created_at), default=None)
    if latest is None:
        return "there is no checkpoint to look into yet"
    folder = Path(latest.uri)
    if not folder.is_dir():
        return f"{latest.label} is not on this machine; what it is shows when it is validated"
    with run.encoder.load(folder, "cpu") as model:
        return f"{latest.label}: {model.contract['kind']}, {model.dim} dimensions; {_sides(model.contract)}"


def _sides(contract: Mapping[str, Any]) -> str:
    sides = {side: _one_side(contract[side]) for side in ("query", "document")}
    if len(set(sides.values())) == 1:
        return f"queries and documents: {sides['query']}"
    return "; ".join(f"{side}: {words}" for side, words in sides.items())


def _one_side(tower: Mapping[str, Any]) -> str:
    length = f"at most {tower['max_length']} tokens ({tower['max_length_from']})"
    prefix = f", prefix {tower['prefix']!r}" if tower["prefix"] else ""
    heads = f", {', '.join(tower['heads'])}" if tower["heads"] else ""
    return f"{tower['pooling']} pooling{heads}, {'' if tower['normalize'] else 'not '}normalized, {length}{prefix}"


def _dataset(run: Run) -> str:
    from dr_validate.worker.samples import Samples

    test_set = run.dataset.open(run.settings.state_dir / "datasets")
    RanxMetrics(names=run.settings.metrics).check(test_set.qrels, test_set.name)
    documents, queries = len(test_set.corpus), len(test_set.query_ids)
    sample = Samples(run, test_set).sampled.sample
    encoded = len(sample.ordinals)
    return (
        f"{test_set.name}: {documents:,} documents, {queries:,} queries, {len(test_set.qrels.gains):,} judgements; "
        f"the sample has {encoded:,} documents ({encoded / documents:.1%})"
    )
