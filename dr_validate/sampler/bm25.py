"""BM25 over the whole corpus, made once per test set: what a pool can start from when there is no other run."""

import gzip
import logging
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.component import fingerprint
from dr_validate.errors import SetupError
from dr_validate.files import atomic_file
from dr_validate.sampler.runs import Run, match, read_file
from dr_validate.values import Float32, Int64, TestSet

log = logging.getLogger(__name__)

SETTINGS = {"method": "lucene", "k1": 0.9, "b": 0.4, "tokenizer": 1}  # tokenizer: change it when `_terms` changes
DOCUMENTS_AT_ONCE = 10_000
_WORD = re.compile(r"\w\w+")
# Lucene's English stop words. In other languages they are rare or common words like any other, and little is lost.
_ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was "
    "will with"
)
_STOP_WORDS = frozenset(_ENGLISH.split())


def bm25_run(test_set: TestSet, depth: int, cache: Path) -> Run:
    """The top `depth` of each query, from `cache` where it is there; documents without a common term are not hits."""
    key = fingerprint({"test_set": test_set.fingerprint, "depth": depth, **SETTINGS})
    path = cache / f"bm25-{key}.trec.gz"
    if path.exists():
        try:
            return match(read_file(path), test_set, "bm25")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, SetupError) as error:
            log.warning("%s is damaged (%s): BM25 is computed again", path, error)
    log.info("BM25 over %d documents of %s starts", len(test_set.corpus), test_set.name)
    with atomic_file(path) as stream, gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1, mtime=0, filename="") as file:
        for query_id, document_id, rank, score in _hits(test_set, depth):
            file.write(f"{query_id}\tQ0\t{document_id}\t{rank}\t{score}\tbm25\n".encode())
    log.info("BM25 is kept in %s", path)
    return match(read_file(path), test_set, "bm25")


def _hits(test_set: TestSet, depth: int) -> Iterator[tuple[str, str, int, str]]:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG for itself

    tokens = _Tokens(test_set)
    if not tokens.vocab:
        raise SetupError(f"bm25 found no words in the documents of {test_set.name}; give another run")
    retriever = bm25s.BM25(method=SETTINGS["method"], k1=SETTINGS["k1"], b=SETTINGS["b"])
    retriever.index(tokens, create_empty_token=False, show_progress=False)
    for row, query_id in enumerate(test_set.query_ids):
        terms = [tokens.vocab[term] for term in _terms(test_set.query_texts[row]) if term in tokens.vocab]
        scores = retriever.get_scores_from_ids(terms)
        best = _best(scores, test_set.corpus.tie_rank, depth)
        for rank, (document, ordinal) in enumerate(zip(test_set.corpus.ids(best), best, strict=True), start=1):
            yield query_id, document, rank, repr(float(scores[ordinal]))


def _best(scores: Float32, tie_rank: Int64, depth: int) -> Int64:
    """Ordinals of the highest positive scores, ties by tie rank at the cut too."""
    positive = np.flatnonzero(scores > 0)
    if len(positive) > depth:
        cut = np.partition(scores[positive], -depth)[-depth]
        positive = positive[scores[positive] >= cut]
    order = np.lexsort((tie_rank[positive], -scores[positive]))[:depth]
    return positive[order]


class _Tokens:
    """What bm25s takes for a tokenized corpus (`ids`, `vocab`), 4 bytes a token: its own lists take ten times that."""

    def __init__(self, test_set: TestSet) -> None:
        self.vocab: dict[Any, int] = {}
        self._flat = array("i")
        self._offsets = array("q", [0])
        corpus = test_set.corpus
        for start in range(0, len(corpus), DOCUMENTS_AT_ONCE):
            for text in corpus.texts(np.arange(start, min(start + DOCUMENTS_AT_ONCE, len(corpus)))):
                self._flat.extend(self.vocab.setdefault(term, len(self.vocab)) for term in _terms(text))
                self._offsets.append(len(self._flat))

    @property
    def ids(self) -> "_Tokens":
        return self

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for place in range(len(self)):
            yield self._flat[self._offsets[place] : self._offsets[place + 1]].tolist()


def _terms(text: str | list[int]) -> Sequence[str] | Sequence[int]:
    """Words of two letters or more in lower case, not stemmed; of a collection that came tokenized, its token ids."""
    if not isinstance(text, str):
        return text
    return [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]
