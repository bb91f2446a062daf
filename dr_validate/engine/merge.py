"""Exact top-k of parts of a collection to the exact top-k of all of it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dr_validate.stages import Workload
from dr_validate.values import Float32, Int64, Ranking, TopK

ROWS_AT_ONCE = 256  # stays in the processor's cache


def merge(tops: Sequence[TopK], tie_rank: Int64) -> TopK:
    """The best of all of them, in the order of `TopK`. A document counts once, with its best score, in however many it is: so
    a part may be merged again when it has grown, and two may hold the same documents."""
    starts = range(0, len(tops[0].scores), ROWS_AT_ONCE)
    parts = [_merge_rows(tops, slice(start, start + ROWS_AT_ONCE), tie_rank) for start in starts]
    documents, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return TopK(documents=documents, scores=scores)


def _merge_rows(tops: Sequence[TopK], rows: slice, tie_rank: Int64) -> tuple[Int64, Float32]:
    documents = np.concatenate([top.documents[rows] for top in tops], axis=1)
    scores = np.concatenate([top.scores[rows] for top in tops], axis=1)
    # A stable sort is a merge of sorted runs, which these are: four times as fast as another one.
    order = np.argsort(_places(documents, scores, tie_rank), axis=1, kind="stable")
    documents, scores = np.take_along_axis(documents, order, axis=1), np.take_along_axis(scores, order, axis=1)
    again = _again(documents)
    documents, scores = np.where(again, np.int64(-1), documents), np.where(again, np.float32(-np.inf), scores)
    best = np.argsort(documents < 0, axis=1, kind="stable")[:, : tops[0].scores.shape[1]]
    return np.take_along_axis(documents, best, axis=1), np.take_along_axis(scores, best, axis=1)


def _again(documents: Int64) -> NDArray[np.bool_]:
    """Where a row has a document that it had before."""
    order = np.argsort(documents, axis=1, kind="stable")
    ordered = np.take_along_axis(documents, order, axis=1)
    found = np.zeros(documents.shape, dtype=bool)
    found[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    again = np.empty_like(found)
    np.put_along_axis(again, order, found, axis=1)
    return again


def ranking_of(top: TopK, workload: Workload) -> Ranking:
    """Own documents dropped, everything below them one place up, cut to top_k."""
    own = (top.documents == workload.own_documents[:, None]) & (top.documents >= 0)
    order = np.argsort(own, axis=1, kind="stable")[:, : workload.top_k]
    documents = np.take_along_axis(top.documents, order, axis=1)
    return Ranking(documents=documents, scores=np.take_along_axis(top.scores, order, axis=1))


def searched_k(workload: Workload) -> int:
    """How deep to search: the document that is the query itself takes a place until it is dropped."""
    return workload.top_k + int(np.any(workload.own_documents >= 0))


def _places(documents: Int64, scores: Float32, tie_rank: Int64) -> Int64:
    """Numbers that ascend as scores descend and, where those are equal, as tie ranks ascend; one sort instead of two."""
    bits = np.ascontiguousarray(scores).view(np.int32).astype(np.int64)
    ascending = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # as integers, floats below zero run backwards
    ties = np.where(documents < 0, np.int64(2**32 - 1), tie_rank[documents])
    places: Int64 = -ascending * 2**32 + ties
    return places
