"""What is retrieved for each query, in order; and BM25 over the whole corpus: where a pool can start without another run."""

import logging
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_validate.errors import SetupError
from dr_validate.process import cores, in_processes
from dr_validate.values import Float32, Float64, Int32, Int64, TestSet

log = logging.getLogger(__name__)
_Hits = tuple[dict[Any, float], float, Sequence[Any]]  # weights of a query's terms, the mean length of documents, texts

K1, B = 0.9, 0.4
SETTINGS = {"method": "lucene", "k1": K1, "b": B, "tokenizer": 2}  # tokenizer: change it when `_terms` changes
DOCUMENTS_AT_ONCE = 10_000
FEW = 50_000  # documents or hits: processes would take longer to start
SEEN = 200_000  # documents that tell how common a word is
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievedRun:
    """Hits by query row, then rank: ties are ordered by `Corpus.tie_rank`, as trec_eval orders them, unless all hits of a query
    are tied: such a list has no order, and they share the first rank."""

    rows: Int64  # (num_hits,) of the test set's queries
    documents: Int64  # (num_hits,) ordinals
    ranks: Int64  # (num_hits,) from 0 on within each query

    def first(self, depth: int) -> "RetrievedRun":
        """At most `depth` hits of each query; of those that share a rank, the highest ids."""
        kept = np.arange(len(self.rows)) - np.searchsorted(self.rows, self.rows) < depth
        return RetrievedRun(rows=self.rows[kept], documents=self.documents[kept], ranks=self.ranks[kept])


def bm25_run(test_set: TestSet, depth: int) -> RetrievedRun:
    """The top `depth` of each query; documents without a common term are not hits. Raises SetupError where there are none.

    Memory: 4 bytes for each word of the corpus, and what bm25s needs to index them, some 40 for each word of each document.
    """
    log.info("BM25 over %d documents of %s starts", len(test_set.corpus), test_set.name)
    rows, documents, scores = _hits(test_set, depth)
    if not len(rows):
        raise SetupError(f"bm25 finds no term of any query in the documents of {test_set.name}; give another run")
    run = ranked(rows, documents, scores, test_set)
    if without := len(test_set.query_ids) - len(np.unique(run.rows)):
        log.warning("BM25 finds nothing for %d of %d queries of %s", without, len(test_set.query_ids), test_set.name)
    return run


def ordered(run: RetrievedRun, test_set: TestSet) -> RetrievedRun:
    """A run without an order, in BM25's: no index is needed for the hits of a query alone.

    How common a term is, SEEN documents tell, the first by `id_hash`; of a smaller corpus all do, and this is BM25 itself.
    """
    corpus = test_set.corpus
    seen = np.sort(np.argsort(corpus.id_hash, kind="stable")[:SEEN])
    having: Counter[Any] = Counter()
    length = 0
    for start in range(0, len(seen), DOCUMENTS_AT_ONCE):
        for text in corpus.texts(seen[start : start + DOCUMENTS_AT_ONCE]):
            terms = _terms(text)
            having.update(set(terms))
            length += len(terms)

    def parts() -> Iterator[_Hits]:
        for row in range(len(test_set.query_ids)):
            first, last = np.searchsorted(run.rows, [row, row + 1])
            wanted = Counter(_terms(test_set.query_texts[row]))
            weights = {t: n * math.log(1 + (len(seen) - having[t] + 0.5) / (having[t] + 0.5)) for t, n in wanted.items()}
            yield weights, length / len(seen), corpus.texts(run.documents[first:last])

    log.info("the hits of %d queries have no order: BM25 ranks them", len(np.unique(run.rows)))
    count = cores() if len(run.rows) > FEW else 1
    scores = list(map(_scored, parts()) if count < 2 else in_processes(_scored, parts(), count))
    return ranked(run.rows, run.documents, np.concatenate(scores), test_set)


def ranked(rows: Int64, documents: Int64, scores: Float64, test_set: TestSet) -> RetrievedRun:
    """Hits in any order; of two equal hits the better stays, own documents of a query go."""
    kept = test_set.own_documents[rows] != documents
    rows, documents, scores = rows[kept], documents[kept], scores[kept]
    order = np.lexsort((test_set.corpus.tie_rank[documents], -scores, rows))
    rows, documents, scores = rows[order], documents[order], scores[order]
    _, first = np.unique(rows * len(test_set.corpus) + documents, return_index=True)
    first.sort()
    rows, documents, scores = rows[first], documents[first], scores[first]
    starts, ends = np.searchsorted(rows, rows), np.searchsorted(rows, rows, side="right")
    ranks = np.where(scores[starts] == scores[ends - 1], 0, np.arange(len(rows)) - starts)
    return RetrievedRun(rows=rows, documents=documents, ranks=ranks)


def _scored(part: "_Hits") -> Float64:
    """Scores of the texts of one query's hits."""
    weights, mean_length, texts = part
    scores = []
    for text in texts:
        terms = _terms(text)
        norm = K1 * (1 - B + B * len(terms) / mean_length)
        counts = Counter(term for term in terms if term in weights)
        scores.append(sum(weights[term] * count / (count + norm) for term, count in counts.items()))
    return np.array(scores, dtype=np.float64)


def _hits(test_set: TestSet, depth: int) -> tuple[Int64, Int64, Float64]:
    """Rows of queries, ordinals and scores."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG for itself

    tokens = _Tokens(test_set)
    if not tokens.vocab:
        raise SetupError(f"bm25 found no words in the documents of {test_set.name}; give another run")
    tokens.describe(test_set.name)
    retriever = bm25s.BM25(method=SETTINGS["method"], k1=SETTINGS["k1"], b=SETTINGS["b"])
    retriever.index(tokens, create_empty_token=False, show_progress=False)

    def search(text: Any) -> tuple[Int64, Float64]:
        scores = retriever.get_scores_from_ids([tokens.vocab[term] for term in _terms(text) if term in tokens.vocab])
        best = _best(scores, test_set.corpus.tie_rank, depth)
        return best, scores[best].astype(np.float64)

    with ThreadPoolExecutor(cores()) as pool:  # numpy does most of it, and lets others compute meanwhile
        found = list(pool.map(search, test_set.query_texts))
    rows = np.repeat(np.arange(len(found)), [len(documents) for documents, _ in found])
    return rows, np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])


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
        starts = range(0, len(corpus), DOCUMENTS_AT_ONCE)
        parts = (corpus.texts(np.arange(start, min(start + DOCUMENTS_AT_ONCE, len(corpus)))) for start in starts)
        count = cores() if len(corpus) > FEW else 1
        try:
            for terms, flat, lengths in map(_words_of, parts) if count < 2 else in_processes(_words_of, parts, count):
                numbers = np.array([self.vocab.setdefault(term, len(self.vocab)) for term in terms], dtype=np.int32)
                self._flat.frombytes(numbers[flat].tobytes())
                self._offsets.frombytes((self._offsets[-1] + np.cumsum(lengths)).tobytes())
        except BrokenProcessPool as error:
            raise SetupError("a process that reads words for BM25 was ended; is there too little memory?") from error

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


def _words_of(texts: Sequence[str] | Sequence[list[int]]) -> tuple[list[Any], Int32, Int64]:
    """Terms of some texts, each once, as they come; the number among these of every word; and how many words each text has."""
    terms: dict[Any, int] = {}
    flat, lengths = array("i"), []
    for text in texts:
        before = len(flat)
        flat.extend(terms.setdefault(term, len(terms)) for term in _terms(text))
        lengths.append(len(flat) - before)
    return list(terms), np.array(flat, dtype=np.int32), np.array(lengths, dtype=np.int64)


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
