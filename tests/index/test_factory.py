import numpy as np
import pytest

from dr_validate.errors import SetupError
from dr_validate.index.factory import FactoryIndex
from dr_validate.index.flat import FlatIndex
from dr_validate.stages import Index
from dr_validate.values import Float32, TopK


def vectors_of(num: int) -> Float32:
    return np.random.default_rng(num).standard_normal((num, 16)).astype(np.float32)


def search(index: Index, documents: Float32, block: int) -> TopK:
    running = index.open(vectors_of(20), 10, np.arange(len(documents)), "cpu")
    for start in range(0, len(documents), block):
        ordinals = np.arange(start, min(start + block, len(documents)))
        running.add(documents[ordinals], ordinals)
    return running.top()


def test_an_approximate_index_returns_most_of_the_best_with_exact_scores() -> None:
    documents = vectors_of(2_000)
    approximate, exact = search(FactoryIndex(spec="IVF4,SQ8"), documents, 1_000), search(FlatIndex(), documents, 1_000)
    shared = [len(set(a) & set(e)) for a, e in zip(approximate.documents, exact.documents, strict=True)]
    assert 20 * 2 < sum(shared) < 20 * 10  # one of four cells is searched: some are missed
    assert np.all(np.diff(approximate.scores, axis=1) <= 0)
    products = np.einsum("qd,qkd->qk", vectors_of(20).astype(np.float64), documents[approximate.documents].astype(np.float64))
    np.testing.assert_allclose(approximate.scores, products, rtol=1e-6)


def test_a_block_too_small_to_train_on_is_searched_exactly() -> None:
    documents = vectors_of(30)
    found, exact = search(FactoryIndex(spec="IVF64,Flat"), documents, 30), search(FlatIndex(), documents, 30)
    np.testing.assert_array_equal(found.documents, exact.documents)


def test_an_approximate_index_is_part_of_the_spec() -> None:
    assert FactoryIndex(spec="HNSW8").fingerprint() == {"index": "HNSW8"}


def test_an_unknown_spec_is_an_error_that_names_it() -> None:
    said = r"index.spec: got 'Flatt', .* \(could not parse index string Flatt\); see https"  # and no line of C++
    with pytest.raises(SetupError, match=said):
        FactoryIndex(spec="Flatt").open(vectors_of(1), 1, np.arange(1), "cpu")
