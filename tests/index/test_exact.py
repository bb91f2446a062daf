"""The exact indexes against a reference that is too simple to be wrong, on vectors full of ties."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_validate.errors import SetupError
from dr_validate.index.factory import FactoryIndex
from dr_validate.index.flat import FlatIndex
from dr_validate.index.torch import TorchIndex
from dr_validate.stages import Index
from dr_validate.values import Float32, Int64, TopK

EXACT: dict[str, Index] = {"flat": FlatIndex(), "torch": TorchIndex(), "factory": FactoryIndex(spec="Flat")}
exact = pytest.mark.parametrize("index", EXACT.values(), ids=EXACT.keys())


def exact_product(query: Float32, document: Float32) -> np.float32:
    """Nothing is rounded before the end: two float32 make a whole float64, and `fsum` adds without loss."""
    return np.float32(math.fsum(query.astype(np.float64) * document.astype(np.float64)))


def reference(queries: Float32, vectors: Float32, top_k: int, tie_rank: Int64) -> TopK:
    documents = np.full((len(queries), top_k), -1)
    scores = np.full((len(queries), top_k), -np.inf, dtype=np.float32)
    for row, query in enumerate(queries):
        every = [exact_product(query, vector) for vector in vectors]
        best = sorted(range(len(vectors)), key=lambda document: (-every[document], tie_rank[document]))[:top_k]
        documents[row, : len(best)] = best
        scores[row, : len(best)] = [every[document] for document in best]
    return TopK(documents=documents, scores=scores)


def search(index: Index, queries: Float32, vectors: Float32, tie_rank: Int64, options: tuple[int, Sequence[int]]) -> TopK:
    """`options`: top_k, and where to cut the documents into blocks."""
    top_k, cuts = options
    running = index.open(queries, top_k, tie_rank, "cpu")
    for ordinals in np.split(np.arange(len(vectors)), cuts):
        if len(ordinals):
            running.add(vectors[ordinals], ordinals)
    return running.top()


def assert_same(found: TopK, expected: TopK) -> None:
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.documents, expected.documents)


def unit_vectors(rng: np.random.Generator, num: int, dim: int) -> Float32:
    vectors = rng.standard_normal((num, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


@exact
@settings(max_examples=40)
@given(data=st.data())
def test_every_split_into_blocks_gives_the_reference_ranking(index: Index, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    num, dim = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 6))
    vectors = rng.integers(-2, 3, (num, dim)).astype(np.float32)
    if data.draw(st.booleans()):
        vectors = vectors / np.float32(3)
    queries = rng.integers(-2, 3, (data.draw(st.integers(1, 30)), dim)).astype(np.float32) * np.float32(0.7)
    top_k = data.draw(st.integers(1, 100))
    cuts = sorted(data.draw(st.lists(st.integers(0, num), max_size=4)))
    tie_rank = rng.permutation(num)
    assert_same(search(index, queries, vectors, tie_rank, (top_k, cuts)), reference(queries, vectors, top_k, tie_rank))


@exact
def test_real_valued_vectors_give_the_reference_ranking(index: Index) -> None:
    rng = np.random.default_rng(1)
    vectors, queries, tie_rank = unit_vectors(rng, 700, 48), unit_vectors(rng, 4, 48), rng.permutation(700)
    expected = reference(queries, vectors, 20, tie_rank)
    for cuts in ([], [1, 40, 41, 300], [650]):
        assert_same(search(index, queries, vectors, tie_rank, (20, cuts)), expected)


@exact
def test_thousands_of_equal_documents_are_ordered_by_tie_rank_alone(index: Index) -> None:
    rng = np.random.default_rng(2)
    num = 20_000
    vectors = np.repeat(unit_vectors(rng, 1, 16), num, axis=0)
    vectors[rng.choice(num, 50, replace=False)] *= np.float32(1.5)
    tie_rank = rng.permutation(num)
    query = vectors[:1].copy()
    higher = np.flatnonzero(vectors[:, 0] != np.median(vectors[:, 0]))
    equal = np.setdiff1d(np.arange(num), higher)
    expected = np.concatenate([higher[np.argsort(tie_rank[higher])], equal[np.argsort(tie_rank[equal])]])[:100]
    for cuts in ([], [9_000, 9_010, 15_000]):
        np.testing.assert_array_equal(search(index, query, vectors, tie_rank, (100, cuts)).documents[0], expected)


@exact
def test_nearly_equal_documents_are_ordered_by_their_exact_products(index: Index) -> None:
    rng = np.random.default_rng(3)
    base = unit_vectors(rng, 1, 64)
    noise = rng.standard_normal((3_000, 64)).astype(np.float32) * np.float32(1e-7)
    vectors, queries, tie_rank = base + noise, base + noise[:3], rng.permutation(3_000)
    products = np.array([[exact_product(q, v) for v in vectors[:400]] for q in queries])
    found = search(index, queries, vectors[:400], tie_rank[:400].argsort().argsort(), (30, [123]))
    assert_same(found, reference(queries, vectors[:400], 30, tie_rank[:400].argsort().argsort()))
    assert len(np.unique(products)) < products.size / 5  # the premise: most scores tie in float32
    whole = search(index, queries, vectors, tie_rank, (30, []))
    assert_same(search(index, queries, vectors, tie_rank, (30, [17, 1_000, 2_990])), whole)


def test_the_three_exact_indexes_agree_over_many_blocks() -> None:
    rng = np.random.default_rng(4)
    vectors, queries, tie_rank = unit_vectors(rng, 12_000, 24), unit_vectors(rng, 1_100, 24), rng.permutation(12_000)
    vectors[6_000:] = vectors[:6_000]  # every document twice
    found = [search(index, queries, vectors, tie_rank, (50, [2_000, 9_000])) for index in EXACT.values()]
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])
    assert np.all(np.diff(found[0].scores, axis=1) <= 0)


@exact
def test_a_search_goes_on_from_an_earlier_top_k(index: Index) -> None:
    rng = np.random.default_rng(5)
    vectors, queries, tie_rank = unit_vectors(rng, 300, 8), unit_vectors(rng, 5, 8), rng.permutation(300)
    first = index.open(queries, 120, tie_rank, "cpu")
    first.add(vectors[:70], np.arange(70))
    second = index.open(queries, 120, tie_rank, "cpu")
    second.restore(first.top())
    second.add(vectors[70:], np.arange(70, 300))
    assert_same(second.top(), search(index, queries, vectors, tie_rank, (120, [])))


@exact
def test_fewer_documents_than_top_k_leave_empty_places(index: Index) -> None:
    queries = np.array([[1.0, 0.0]], dtype=np.float32)
    found = search(index, queries, np.array([[0.5, 1.0], [-2.0, 0.0]], dtype=np.float32), np.array([1, 0]), (4, []))
    assert found.documents.tolist() == [[0, 1, -1, -1]]
    assert found.scores.tolist() == [[0.5, -2.0, -np.inf, -np.inf]]


def test_exact_indexes_leave_no_mark_in_the_spec() -> None:
    assert [dict(index.fingerprint()) for index in EXACT.values()] == [{}, {}, {}]


def test_a_missing_faiss_is_an_error_of_the_factory_that_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SetupError, match=r"dr_validate\[cpu\].*dr_validate\[gpu\].*index=torch"):
        FactoryIndex(spec="Flat").open(np.zeros((1, 2), dtype=np.float32), 1, np.arange(1), "cpu")


def test_a_faiss_that_fails_while_it_is_imported_leaves_the_search_to_torch_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """faiss-gpu without the libraries of CUDA raises RuntimeError, not ImportError."""
    (tmp_path / "faiss.py").write_text("raise RuntimeError('faiss-gpu installed but nvidia-cuda-runtime-cu12 is missing')\n")
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    query, documents = np.array([[1.0, 0.0]], dtype=np.float32), np.array([[0.5, 1.0], [2.0, 0.0]], dtype=np.float32)
    for _ in range(2):
        assert search(FlatIndex(), query, documents, np.array([1, 0]), (2, [])).documents.tolist() == [[1, 0]]
    (said,) = [record.message for record in caplog.records if "nvidia-cuda-runtime-cu12 is missing" in record.message]
    assert "index=torch searches" in said
