"""The running top-k with libraries that are less exact than they should be, or slower to tell."""

import logging

import numpy as np
import pytest

from dr_validate.index.flat import FlatIndex
from dr_validate.index.running import Proposal, RunningTopK
from dr_validate.values import Float32


def rounded(vectors: Float32) -> Float32:
    """To the 8 significant bits of bfloat16."""
    return (vectors.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


class HalfPrecision:
    """Multiplies in bfloat16, as torch and cuBLAS do where somebody allowed it."""

    def __init__(self, queries: Float32) -> None:
        self._queries = rounded(queries)

    def load(self, vectors: Float32) -> None:
        self._vectors = rounded(vectors)

    def propose(self, queries: slice, count: int, floor: Float32) -> Proposal:
        scores = self._queries[queries] @ self._vectors.T
        best = np.argsort(-scores, axis=1)[:, :count]
        found = np.take_along_axis(scores, best, axis=1)
        rows, columns = np.nonzero(found >= floor[:, None])
        return Proposal(rows=rows, positions=best[rows, columns], scores=found[rows, columns], rest=found[:, -1])


class Nonsense(HalfPrecision):
    """Scores that have nothing to do with the vectors."""

    def load(self, vectors: Float32) -> None:
        super().load(vectors[::-1].copy())


@pytest.mark.parametrize("library", [HalfPrecision, Nonsense])
def test_a_library_of_low_precision_is_noticed_and_the_ranking_stays_right(
    library: type[HalfPrecision], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    rng = np.random.default_rng(1)
    vectors, queries = (np.asarray(rng.standard_normal((num, 32)), dtype=np.float32) for num in (3_000, 40))
    tie_rank = rng.permutation(3_000)
    exact = FlatIndex().open(queries, 50, tie_rank, "cpu")
    found = RunningTopK(queries, 50, tie_rank, library(queries))
    for ordinals in np.split(np.arange(3_000), [1_000, 1_100]):
        exact.add(vectors[ordinals], ordinals)
        found.add(vectors[ordinals], ordinals)
    np.testing.assert_array_equal(found.top().documents, exact.top().documents)
    np.testing.assert_array_equal(found.top().scores, exact.top().scores)
    assert "less precisely than float32" in caplog.text
