"""Small test sets in memory, and Vaswani where it is at hand."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dr_validate.values import TestSet
from tests.sampler.in_memory import ListCorpus, build


@pytest.fixture(scope="session")
def small() -> TestSet:
    """200 documents of 8 out of 60 words, 6 queries, 13 judged documents."""
    rng = np.random.default_rng(1)
    words = np.array([f"word{number}" for number in range(60)])
    documents = {f"d{number}": " ".join(rng.choice(words, 8)) for number in range(200)}
    queries = {f"q{number}": " ".join(rng.choice(words, 3, replace=False)) for number in range(6)}
    judgements = {query: {f"d{row * 3}": 1, f"d{row * 3 + 1}": 0, "d199": 2} for row, query in enumerate(queries)}
    return build(documents, queries, judgements)


@pytest.fixture(scope="session")
def medium() -> TestSet:
    """600 documents of 8 out of 60 words, 6 queries that find nearly all of them, 13 judged documents."""
    rng = np.random.default_rng(3)
    words = np.array([f"word{number}" for number in range(60)])
    documents = {f"d{number}": " ".join(rng.choice(words, 8)) for number in range(600)}
    queries = {f"q{number}": " ".join(rng.choice(words, 3, replace=False)) for number in range(6)}
    judgements = {query: {f"d{row * 3}": 1, f"d{row * 3 + 1}": 0, "d599": 2} for row, query in enumerate(queries)}
    return build(documents, queries, judgements)


@pytest.fixture(scope="session")
def reordered(small: TestSet) -> TestSet:
    """The same documents in another order."""
    return shuffled(small)


@pytest.fixture(scope="session")
def reordered_medium(medium: TestSet) -> TestSet:
    """The same documents in another order."""
    return shuffled(medium)


def shuffled(test_set: TestSet) -> TestSet:
    order = np.random.default_rng(2).permutation(len(test_set.corpus))
    corpus = ListCorpus(test_set.corpus.ids(order), [str(text) for text in test_set.corpus.texts(order)])
    documents = corpus.find(test_set.corpus.ids(test_set.qrels.documents))
    return replace(test_set, corpus=corpus, qrels=replace(test_set.qrels, documents=documents))


@pytest.fixture(scope="session")
def vaswani() -> TestSet:
    folder = Path(__file__).resolve().parents[2].parent / "shared/data/vaswani"
    if not folder.is_dir():
        pytest.skip("the Vaswani collection is not beside the checkout (shared/data/vaswani)")
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in map(json.loads, lines)}
    judgements: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels/test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, gain = line.split("\t")
        judgements.setdefault(query, {})[document] = int(gain)
    with (folder / "queries.jsonl").open(encoding="utf-8") as lines:
        queries = {row["_id"]: row["text"] for row in map(json.loads, lines) if row["_id"] in judgements}
    return build(documents, queries, judgements)


WriteRun = Callable[[str, str], Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a run under a name; `.gz` compresses it."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write
