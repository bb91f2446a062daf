"""The one score of a query and a document: their exact dot product, rounded once to float64 and then to float32.

It depends on nothing else, whatever library proposed the pair and in whatever block it stood. Computed in float64, whose
error is far below one float32 step; the few sums that lie within that error of a rounding border are added exactly.
"""

import math
from dataclasses import dataclass

import numpy as np

from dr_validate.values import Float32, Float64, Int64

PAIRS_AT_ONCE = 128  # float64 rows of both sides stay in the processor's cache
DENSE_FROM = 1 / 64  # a matrix product over everything is faster than single pairs from about this share of pairs on


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Vectors as given, in float64, and their Euclidean norms."""

    single: Float32  # (n, dim)
    double: Float64  # (n, dim)
    norms: Float64  # (n,)

    @classmethod
    def of(cls, vectors: Float32) -> "Vectors":
        double = vectors.astype(np.float64)
        norms: Float64 = np.sqrt(np.einsum("ij,ij->i", double, double))
        return cls(single=np.ascontiguousarray(vectors, dtype=np.float32), double=double, norms=norms)

    def __len__(self) -> int:
        return len(self.single)

    def part(self, part: slice) -> "Vectors":
        """A view of some rows."""
        return Vectors(single=self.single[part], double=self.double[part], norms=self.norms[part])


def products(queries: Vectors, documents: Vectors) -> Float64:
    """(num_queries, num_documents) dot products, right to within `uncertainty`."""
    product: Float64 = queries.double @ documents.double.T
    return product


def score_pairs(queries: Vectors, documents: Vectors, rows: Int64, positions: Int64) -> Float32:
    """(num_pairs,) canonical scores of `queries[rows]` and `documents[positions]`."""
    if len(rows) > DENSE_FROM * len(queries) * len(documents):
        sums = products(queries, documents)[rows, positions]
    else:
        sums = _sum_pairs(queries, documents, rows, positions)
    return round_sums(queries, documents, (rows, positions), sums)


def _sum_pairs(queries: Vectors, documents: Vectors, rows: Int64, positions: Int64) -> Float64:
    sums = np.empty(len(rows))
    left, right = np.empty((2, PAIRS_AT_ONCE, queries.double.shape[1]))  # kept: fresh pages cost more than the sums
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        num = len(rows[part])
        np.take(queries.double, rows[part], axis=0, out=left[:num], mode="clip")
        np.take(documents.double, positions[part], axis=0, out=right[:num], mode="clip")
        sums[part] = np.einsum("ij,ij->i", left[:num], right[:num])
    return sums


def round_sums(queries: Vectors, documents: Vectors, pairs: tuple[Int64, Int64], sums: Float64) -> Float32:
    """Canonical scores from float64 sums of those pairs (rows of queries, positions of documents)."""
    rows, positions = pairs
    error = uncertainty(queries, documents)[rows] * documents.norms[positions]
    scores = sums.astype(np.float32)
    for pair in np.flatnonzero((sums - error).astype(np.float32) != (sums + error).astype(np.float32)):
        # A product of two float32 is exact in float64 and fsum rounds once: the order of adding plays no part.
        terms = queries.double[rows[pair]] * documents.double[positions[pair]]
        scores[pair] = np.float32(math.fsum(terms.tolist()))
    return scores


def uncertainty(queries: Vectors, documents: Vectors) -> Float64:
    """(num_queries,) bound on the error of a float64 sum, per unit of the document's norm.

    n * u / (1 - n * u) * |q||d| with u = 2**-53 bounds a sum of n products added in any order (Higham, Accuracy and
    Stability of Numerical Algorithms, 3.1); twice that leaves room for the norms' own rounding.
    """
    dim = documents.double.shape[1]
    bound: Float64 = queries.norms * (2 * (dim + 2) * 2.0**-53)
    return bound
