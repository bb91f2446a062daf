"""Tiny models as trainings hold them: a random BERT with its tokenizer, and the same as a SentenceTransformer."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dr_validate.integrations import child
from tests import warm
from tests.factories import WORDS
from tests.integrations.tiny import loaded


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def warm_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchers of trainings in this process start warm, and so do not end with it: for tests of what they do until then."""

    def start(command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        _, _, module, _, *overrides = command
        assert module == child.__name__
        return warm.popen([sys.executable, *warm.COMMAND, *overrides], **options)

    monkeypatch.setattr(child, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))


@pytest.fixture
def bert(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> tuple[Any, Any]:
    """A model of transformers and its tokenizer."""
    return loaded(write_checkpoint(tmp_path / "base", seed=1))


@pytest.fixture
def sentence_transformer(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> Any:
    """With mean pooling, cosine similarity and a prompt for queries."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as parts

    folder = write_checkpoint(tmp_path / "base", seed=1)
    transformer = parts.Transformer(str(folder))
    modules = [transformer, parts.Pooling(transformer.get_embedding_dimension(), "mean")]
    return SentenceTransformer(modules=modules, device="cpu", prompts={"query": "number ", "document": ""})


@pytest.fixture(scope="session")
def harder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder on which a random model is far from perfect: 240 documents of six words, queries of two of them."""
    import random

    chance = random.Random(3)
    vocabulary = [*WORDS, *map(str, range(40))]
    texts = [chance.sample(vocabulary, 6) for _ in range(240)]
    folder = tmp_path_factory.mktemp("data") / "harder"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{n}", "title": "", "text": " ".join(words)} for n, words in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{n}", "text": " ".join(texts[n][:2])} for n in range(24)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(24))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder
