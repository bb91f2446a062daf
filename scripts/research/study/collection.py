"""A test collection in memory, from one JSON file, and the first queries of any collection."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.component import fingerprint
from dr_validate.errors import SetupError
from dr_validate.files import sha256_of_file
from dr_validate.values import Int64, Qrels, TestSet


class MemoryCorpus:
    """`values.Corpus` over a list of texts; a document's id is its ordinal unless ids are given."""

    def __init__(self, texts: Sequence[str], ids: Sequence[str] | None = None) -> None:
        self._texts = texts
        self._ids = [str(number) for number in range(len(texts))] if ids is None else list(ids)
        self._ordinals = {identity: number for number, identity in enumerate(self._ids)}
        encoded = [identity.encode() for identity in self._ids]
        # As dataset/corpus.py makes them: these two decide who is drawn and who comes first among ties.
        hashes = b"".join(hashlib.blake2b(identity, digest_size=8).digest() for identity in encoded)
        self._id_hash = np.frombuffer(hashes, dtype="<u8").astype(np.uint64)
        order = sorted(range(len(encoded)), key=encoded.__getitem__, reverse=True)
        self._tie_rank = np.empty(len(encoded), dtype=np.int64)
        self._tie_rank[order] = np.arange(len(encoded))

    def __len__(self) -> int:
        return len(self._texts)

    def ids(self, ordinals: Int64) -> list[str]:
        return [self._ids[number] for number in ordinals.tolist()]

    def texts(self, ordinals: Int64) -> list[str] | list[list[int]]:
        return [self._texts[number] for number in ordinals.tolist()]

    def find(self, ids: Sequence[str]) -> Int64:
        return np.array([self._ordinals.get(identity, -1) for identity in ids], dtype=np.int64)

    @property
    def tie_rank(self) -> Int64:
        return self._tie_rank

    @property
    def id_hash(self) -> NDArray[np.uint64]:
        return self._id_hash


def read_collection(file: Path) -> TestSet:
    """From `{"docs": [text], "queries": [text], "gold": [ordinal]}`, or `"rel": [[ordinal]]` where a query has several;
    `"ids": [id]` if the documents have some. Raises SetupError for a file of another form."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        relevant = content["rel"] if "rel" in content else [[gold] for gold in content["gold"]]
        docs, queries, ids = content["docs"], content["queries"], content.get("ids")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetupError(
            f"{file}: {type(error).__name__} {error}; expected a JSON object with docs, queries, and gold or rel"
        ) from error
    if len(relevant) != len(queries) or (ids is not None and len(ids) != len(docs)):
        raise SetupError(f"{file}: got {len(queries)} queries with {len(relevant)} judgements, {len(docs)} docs and their ids")
    return TestSet(
        name=file.parent.name if file.stem == "coll" else file.stem,
        corpus=MemoryCorpus(docs, ids),
        query_ids=tuple(str(number) for number in range(len(queries))),
        query_texts=queries,
        qrels=_qrels(relevant, len(docs), file),
        own_documents=np.full(len(queries), -1, dtype=np.int64),
        fingerprint=sha256_of_file(file)[:16],
    )


def first_queries(test_set: TestSet, number: int | None) -> TestSet:
    """The same collection with its first queries only; what is relevant for the others is a document like any other."""
    if number is None or number >= len(test_set.query_ids):
        return test_set
    judgements = int(test_set.qrels.offsets[number])
    return dataclasses.replace(
        test_set,
        query_ids=test_set.query_ids[:number],
        query_texts=test_set.query_texts[:number],
        qrels=Qrels(
            offsets=test_set.qrels.offsets[: number + 1],
            documents=test_set.qrels.documents[:judgements],
            gains=test_set.qrels.gains[:judgements],
        ),
        own_documents=test_set.own_documents[:number],
        fingerprint=fingerprint({"test_set": test_set.fingerprint, "first_queries": number}),
    )


def _qrels(relevant: Any, num_documents: int, file: Path) -> Qrels:
    counts = [len(documents) for documents in relevant]
    documents = np.array([ordinal for row in relevant for ordinal in row], dtype=np.int64)
    if len(documents) and not (documents.min() >= 0 and documents.max() < num_documents):
        raise SetupError(f"{file}: got a relevant document {documents.max()}, expected ordinals from 0 to {num_documents - 1}")
    return Qrels(
        offsets=np.cumsum([0, *counts], dtype=np.int64), documents=documents, gains=np.ones(len(documents), dtype=np.int64)
    )
