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

SETTINGS = {"method": "lucene", "k1": 0.9, "b": 0.4, "tokenizer": 2}  # tokenizer: change it when `_terms` changes
DOCUMENTS_AT_ONCE = 10_000
# Thai and Lao; Myanmar, Khmer; kana, Han (with its extensions), half-width kana: scripts without spaces between words, marks
# included, which `\w` would not match.
_UNSPACED = (
    r"\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0edf\u1000-\u109f\u1780-\u17d3\u3005-\u3007\u3040-\u3096\u309d-\u309f\u30a1-\u30fa"
    r"\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
_FIRST_UNSPACED = "\u0e01"
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]{{2,}}")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
LONG_WORD = 20  # letters: no language with spaces comes near that on average
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
            return _matched(path, test_set)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, SetupError) as error:
            log.warning("%s is damaged (%s): BM25 is computed again", path, error)
    log.info("BM25 over %d documents of %s starts", len(test_set.corpus), test_set.name)
    with atomic_file(path) as stream, gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1, mtime=0, filename="") as file:
        for query_id, document_id, rank, score in _hits(test_set, depth):
            file.write(f"{query_id}\tQ0\t{document_id}\t{rank}\t{score}\tbm25\n".encode())
        if not file.tell():
            raise SetupError(f"bm25 finds no term of any query in the documents of {test_set.name}; give another run")
    log.info("BM25 is kept in %s", path)
    return _matched(path, test_set)


def _matched(path: Path, test_set: TestSet) -> Run:
    run = match(read_file(path), test_set, "bm25")
    if without := len(test_set.query_ids) - len(np.unique(run.rows)):
        log.warning("BM25 finds nothing for %d of %d queries of %s", without, len(test_set.query_ids), test_set.name)
    return run


def _hits(test_set: TestSet, depth: int) -> Iterator[tuple[str, str, int, str]]:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG for itself

    tokens = _Tokens(test_set)
    if not tokens.vocab:
        raise SetupError(f"bm25 found no words in the documents of {test_set.name}; give another run")
    tokens.describe(test_set.name)
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

    def describe(self, name: str) -> None:
        """Say where the text has no spaces: its terms are pairs of characters then, or whole sentences, which find nothing."""
        counts = np.bincount(np.array(self._flat), minlength=len(self.vocab)).tolist()
        terms = [(term, count) for term, count in zip(self.vocab, counts, strict=True) if isinstance(term, str)]
        spaced = [(len(term), count) for term, count in terms if not _IS_UNSPACED.match(term)]
        words, letters = sum(count for _, count in spaced), sum(length * count for length, count in spaced)
        pairs = sum(count for _, count in terms) - words
        if pairs > words:
            log.info("%s is written without spaces between words: BM25 searches it by pairs of characters", name)
        elif letters > LONG_WORD * words:
            log.warning(
                "words of %s have %.0f letters on average: it seems to be text without spaces, in which BM25 finds little; "
                "give another run (sampler.run, sampler.pool)",
                *(name, letters / words),
            )

    @property
    def ids(self) -> "_Tokens":
        return self

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for place in range(len(self)):
            yield self._flat[self._offsets[place] : self._offsets[place + 1]].tolist()


def _terms(text: str | list[int]) -> Sequence[str] | Sequence[int]:
    """Words of two letters or more in lower case, not stemmed, and pairs of neighbouring characters in scripts that have no
    spaces (Chinese, Japanese, Thai ...), where one that stands alone is a term; of tokenized collections, the token ids."""
    if not isinstance(text, str):
        return text
    terms: list[str] = []
    for word in _WORD.findall(text.lower()):
        if word[0] >= _FIRST_UNSPACED and _IS_UNSPACED.match(word):
            terms += [word[place : place + 2] for place in range(len(word) - 1)] or [word]
        elif word not in _STOP_WORDS:
            terms.append(word)
    return terms
