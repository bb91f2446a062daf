"""Test sets in memory."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
