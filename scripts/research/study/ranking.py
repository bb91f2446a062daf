"""Exact rankings of any documents by any checkpoint, from scores that are computed once where there is room for them."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dr_validate.index.topk import NOTHING, sort_keys, top_of
from dr_validate.values import Float32, Int64, Ranking, TestSet
from scripts.research.study.encoded import Encoded

SCORES_AT_ONCE = 1 << 23


class Rankings:
    """Scores are dot products in float64, rounded once to float32, ties by `Corpus.tie_rank`: the ranking of `index/`."""

    def __init__(self, test_set: TestSet, top_k: int) -> None:
        self._top_k = top_k
        self._own = test_set.own_documents
        self._tie_rank = test_set.corpus.tie_rank
        self._document_of = np.empty(len(self._tie_rank), dtype=np.int64)
        self._document_of[test_set.corpus.tie_rank] = np.arange(len(self._tie_rank))
        self._checkpoints: Sequence[Encoded] = ()
        self._matrices: list[Float32] = []

    def load(self, checkpoints: Sequence[Encoded], max_bytes: float) -> None:
        """Keep the scores of all pairs, 4 bytes each, where they fit into `max_bytes`."""
        self._checkpoints = checkpoints
        every, num_queries = np.arange(len(self._tie_rank)), len(self._own)
        if 4 * len(checkpoints) * num_queries * len(every) > max_bytes:
            return
        for checkpoint in checkpoints:
            matrix = np.empty((num_queries, len(every)), dtype=np.float32)
            for part in self._parts(every):
                matrix[:, part] = _products(checkpoint, part)
            self._matrices.append(matrix)

    def of(self, number: int, ordinals: Int64, only: NDArray[np.bool_] | None = None) -> Ranking:
        """The top k of these documents (ascending ordinals) by a checkpoint; own documents are left out. `only` (num_queries,
        len(ordinals)): which of them may be found for a query; None: all."""
        if self._matrices:
            scores = self._matrices[number]
            return self._ranked(((part, scores[:, part]) for part in self._parts(ordinals)), only)
        return self.by(self._checkpoints[number], ordinals, only)

    def by(self, checkpoint: Encoded, ordinals: Int64, only: NDArray[np.bool_] | None = None) -> Ranking:
        """The same, from vectors."""
        return self._ranked(((part, _products(checkpoint, part)) for part in self._parts(ordinals)), only)

    def _ranked(self, blocks: Iterable[tuple[Int64, Float32]], only: NDArray[np.bool_] | None) -> Ranking:
        found, start = [], 0
        for part, scores in blocks:
            keys = self._keys(part, scores)
            if only is not None:
                keys[~only[:, start : start + len(part)]] = NOTHING
            found.append(self._best(keys))
            start += len(part)
        best = np.concatenate(found, axis=1)
        top = top_of(torch.from_numpy(np.sort(self._best(best), axis=1)), self._document_of)
        return Ranking(documents=top.documents, scores=top.scores)

    def _keys(self, ordinals: Int64, scores: Float32) -> Int64:
        found = sort_keys(torch.from_numpy(scores), torch.from_numpy(self._tie_rank[ordinals])).numpy()
        place = np.minimum(np.searchsorted(ordinals, self._own), len(ordinals) - 1)
        own = np.flatnonzero(ordinals[place] == self._own)
        found[own, place[own]] = NOTHING
        return found

    def _best(self, found: Int64) -> Int64:
        if found.shape[1] <= self._top_k:
            return found
        return np.partition(found, self._top_k - 1, axis=1)[:, : self._top_k]

    def _parts(self, ordinals: Int64) -> list[Int64]:
        size = max(self._top_k, SCORES_AT_ONCE // len(self._own))
        return [ordinals[start : start + size] for start in range(0, len(ordinals), size)]


def _products(checkpoint: Encoded, ordinals: Int64) -> Float32:
    queries, documents = checkpoint.queries.astype(np.float64), checkpoint.documents(ordinals).astype(np.float64)
    scores: Float32 = (queries @ documents.T).astype(np.float32)
    return scores
