import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dr_validate.errors import SetupError
from dr_validate.sampler.bm25 import RetrievedRun, bm25_run, ordered
from dr_validate.values import TestSet
from tests.sampler.in_memory import build


def bm25_by_hand(test_set: TestSet, query: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Lucene's BM25 with k1 = 0.9 and b = 0.4, document by document."""
    documents = [str(text).split() for text in test_set.corpus.texts(np.arange(len(test_set.corpus)))]
    mean_length = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(documents))
    for term in query.split():
        having = sum(term in document for document in documents)
        idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        for ordinal, document in enumerate(documents):
            tf = document.count(term)
            scores[ordinal] += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(document) / mean_length))
    return scores


def test_every_query_gets_the_best_by_the_formula_with_ties_by_descending_id(small: TestSet) -> None:
    run = bm25_run(small, 20)
    for row in range(6):
        scores = bm25_by_hand(small, str(small.query_texts[row])).round(5)
        expected = np.lexsort((small.corpus.tie_rank, -scores))[:20]
        np.testing.assert_array_equal(run.documents[run.rows == row], expected[scores[expected] > 0])
        np.testing.assert_array_equal(run.ranks[run.rows == row], np.arange(np.count_nonzero(run.rows == row)))


def test_the_order_of_the_corpus_plays_no_part(small: TestSet, reordered: TestSet) -> None:
    first, second = bm25_run(small, 20), bm25_run(reordered, 20)
    assert small.corpus.ids(first.documents) == reordered.corpus.ids(second.documents)


def test_a_collection_that_came_as_token_ids_is_searched_by_them(small: TestSet) -> None:
    class TokenCorpus(type(small.corpus)):  # type: ignore[misc]  # a class that is known by its object
        def texts(self, ordinals: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[list[int]]:
            return [[int(word[4:]) for word in text.split()] for text in super().texts(ordinals)]

    queries = [[int(word[4:]) for word in str(text).split()] for text in small.query_texts]
    corpus = TokenCorpus(small.corpus.ids(np.arange(200)), small.corpus.texts(np.arange(200)))
    found = bm25_run(replace(small, corpus=corpus, query_texts=queries, fingerprint="tokens"), 20)
    expected = bm25_run(small, 20)
    np.testing.assert_array_equal(found.documents, expected.documents)


# Documents and queries of three words each, without a space between them; the second document holds the query.
UNSPACED = {
    "Chinese": ("北京大学历史系", "上海天气今天很好", "天气很好"),
    "Chinese beyond the basic plane": ("𠀀𠀁𠀂𠀃", "𠀅𠀆𠀇𠀈", "𠀆𠀇"),
    "Japanese": ("東京タワーへ行く", "ラーメンを食べたい", "ラーメン"),
    "half-width kana": ("ﾄｳｷｮｳﾀﾜｰ", "ﾗｰﾒﾝｦﾀﾍﾞﾙ", "ﾗｰﾒﾝ"),
    "Thai": ("ประเทศไทยสวยงาม", "ฉันชอบกินข้าวผัด", "ข้าวผัด"),
    "Lao": ("ສະບາຍດີ", "ຂອບໃຈຫຼາຍໆ", "ຂອບໃຈ"),
    "Khmer": ("សួស្តី", "អរគុណច្រើន", "អរគុណ"),
    "Burmese": ("မင်္ဂလာပါ", "ကျေးဇူးတင်ပါတယ်", "ကျေးဇူး"),
}


@pytest.mark.parametrize("script", UNSPACED)
def test_text_without_spaces_is_searched_by_pairs_of_characters_which_is_said(
    caplog: pytest.LogCaptureFixture, script: str
) -> None:
    caplog.set_level(logging.INFO)
    other, document, query = UNSPACED[script]
    test_set = build({"other": other, "one": document}, {"q": query}, {"q": {"one": 1}})
    run = bm25_run(test_set, 10)
    assert run.documents.tolist()[0] == 1
    assert "is written without spaces between words: BM25 searches it by pairs of characters" in caplog.text


def test_words_of_several_scripts_in_one_text_are_all_found(tmp_path: Path) -> None:
    documents = {"a": "BM25の検索 system", "b": "検 alone", "c": "nothing"}
    for query, expected in {"system": [0], "検索": [0], "bm25": [0], "検": [1], "alone 検索": [0, 1]}.items():
        run = bm25_run(build(documents, {"q": query}, {"q": {"c": 1}}), 10)
        assert sorted(run.documents.tolist()) == expected


def test_words_that_no_language_has_are_said_to_be_text_without_spaces(caplog: pytest.LogCaptureFixture) -> None:
    documents = {"a": "thisisatextwithoutanyspacesinit", "b": "andthisisanotheronewithoutspaces"}
    bm25_run(build(documents, {"q": documents["a"]}, {"q": {"a": 1}}), 10)
    assert "words of small have 32 letters on average: it seems to be text without spaces" in caplog.text


def test_queries_that_find_nothing_are_counted_and_all_of_them_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    bm25_run(build({"a": "some words"}, {"q": "words", "r": "others"}, {"q": {"a": 1}, "r": {"a": 1}}), 10)
    assert "BM25 finds nothing for 1 of 2 queries of small" in caplog.text
    with pytest.raises(SetupError, match="bm25 finds no term of any query in the documents of small; give another run"):
        bm25_run(build({"a": "some words"}, {"r": "others"}, {"r": {"a": 1}}), 10)


def test_bm25_on_vaswani_is_as_good_as_bm25_is(vaswani: TestSet) -> None:
    run = bm25_run(vaswani, 1000)
    values = []
    for row in range(len(vaswani.query_ids)):
        documents, gains = vaswani.qrels.row(row)
        top = run.documents[(run.rows == row) & (run.ranks < 10)]
        hits = np.isin(top, documents[gains > 0])
        ideal = min(10, np.count_nonzero(gains > 0))
        discounts = 1 / np.log2(np.arange(2, 12))
        values.append((hits * discounts[: len(top)]).sum() / discounts[:ideal].sum())
    assert 0.36 < np.mean(values) < 0.42  # without stemming; chance would be near 0


def test_hits_without_an_order_get_that_of_bm25(small: TestSet) -> None:
    expected = bm25_run(small, 20)
    mixed = np.random.default_rng(3).permutation(len(expected.rows))
    order = np.argsort(expected.rows[mixed], kind="stable")
    unordered = RetrievedRun(
        rows=expected.rows[mixed][order], documents=expected.documents[mixed][order], ranks=np.zeros(len(mixed), dtype=np.int64)
    )
    found = ordered(unordered, small)
    for name in ("rows", "documents", "ranks"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_several_processes_find_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(1).integers(0, 300, (500, 8))
    documents = {f"d{n}": " ".join(f"w{word}" for word in row) for n, row in enumerate(words)}
    queries = {f"q{n}": " ".join(f"w{word}" for word in row) for n, row in enumerate(words[:5])}
    test_set = build(documents, queries, {query: {"d0": 1} for query in queries})
    alone = bm25_run(test_set, 20)
    monkeypatch.setattr("dr_validate.sampler.bm25.FEW", 100)
    monkeypatch.setattr("dr_validate.sampler.bm25.DOCUMENTS_AT_ONCE", 60)
    monkeypatch.setattr("dr_validate.sampler.bm25.cores", lambda: 2)
    together = bm25_run(test_set, 20)
    again = ordered(alone, test_set)
    for name in ("rows", "documents", "ranks"):
        np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))
        np.testing.assert_array_equal(getattr(again, name), getattr(alone, name))
