"""Small test sets in memory, and Vaswani where it is at hand."""

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dr_validate.component import fingerprint
from dr_validate.values import Int64, Qrels, TestSet


@dataclass(frozen=True)
class ListCorpus:
    document_ids: Sequence[str]
    document_texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.document_ids)

    def ids(self, ordinals: Int64) -> list[str]:
        return [self.document_ids[ordinal] for ordinal in ordinals]

    def texts(self, ordinals: Int64) -> list[str] | list[list[int]]:
        return [self.document_texts[ordinal] for ordinal in ordinals]

    def find(self, ids: Sequence[str]) -> Int64:
        place = {document: ordinal for ordinal, document in enumerate(self.document_ids)}
        return np.array([place.get(document, -1) for document in ids], dtype=np.int64)

    @property
    def tie_rank(self) -> Int64:
        order = sorted(range(len(self)), key=lambda ordinal: self.document_ids[ordinal].encode(), reverse=True)
        rank = np.empty(len(self), dtype=np.int64)
        rank[order] = np.arange(len(self))
        return rank

    @property
    def id_hash(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        digests = (hashlib.blake2b(document.encode(), digest_size=8).digest() for document in self.document_ids)
        return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def build(documents: dict[str, str], queries: dict[str, str], judgements: dict[str, dict[str, int]]) -> TestSet:
    corpus = ListCorpus(list(documents), list(documents.values()))
    rows = [judgements[query] for query in queries]
    return TestSet(
        name="small",
        corpus=corpus,
        query_ids=tuple(queries),
        query_texts=list(queries.values()),
        qrels=Qrels(
            offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]),
            documents=corpus.find([document for row in rows for document in row]),
            gains=np.array([gain for row in rows for gain in row.values()]),
        ),
        own_documents=np.full(len(queries), -1),
        fingerprint=fingerprint({"documents": documents, "queries": queries, "judgements": judgements}),
    )


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
