"""Score and tie rank of a hit as one unsigned 64-bit number: ascending keys are the ranking, equal keys the same document.

The upper half holds the bits of the float32 score, mapped so that a higher score is a smaller number; the lower half the
tie rank. Sorting rows of such numbers merges rankings without a second array to carry along.
"""

import numpy as np
from numpy.typing import NDArray

from dr_validate.values import Float32, Int64, TopK

Keys = NDArray[np.uint64]
NOTHING = np.uint64(2**64 - 1)  # sorts after every hit
_SIGN = np.uint32(1 << 31)
_LOW = np.uint64(2**32 - 1)
_HALF = np.uint64(32)


def encode(scores: Float32, tie_ranks: NDArray[np.uint64]) -> Keys:
    """Keys of hits; scores must not be NaN, tie ranks lie below 2**32 - 1."""
    bits = np.ascontiguousarray(scores + np.float32(0), dtype=np.float32).view(np.uint32)  # + 0 turns -0.0 into 0.0
    descending = np.where(bits & _SIGN, bits, ~(bits | _SIGN))
    keys: Keys = (descending.astype(np.uint64) << _HALF) | tie_ranks
    return keys


def scores_of(keys: Keys) -> Float32:
    """The scores, -inf where there is no hit."""
    descending = (keys >> _HALF).astype(np.uint32)
    bits = np.where(descending & _SIGN, descending, ~descending & ~_SIGN)
    return np.where(keys == NOTHING, np.float32(-np.inf), bits.view(np.float32))


def from_top(top: TopK, tie_rank: Int64) -> Keys:
    """Sorted keys (num_queries, top_k) of an earlier `to_top`."""
    empty = top.documents < 0
    keys = encode(np.where(empty, np.float32(0), top.scores), tie_rank[np.where(empty, 0, top.documents)].astype(np.uint64))
    return np.sort(np.where(empty, NOTHING, keys), axis=1)


def to_top(keys: Keys, document_of: Int64) -> TopK:
    """Documents and scores; `document_of[tie_rank]` is the ordinal."""
    empty = keys == NOTHING
    tie_ranks = np.where(empty, np.uint64(0), keys & _LOW).astype(np.int64)
    return TopK(documents=np.where(empty, np.int64(-1), document_of[tie_ranks]), scores=scores_of(keys))


def merge(keys: Keys, rows: Int64, candidates: Keys) -> Keys:
    """The smallest of each row of `keys` (num_queries, top_k) and of the candidates of that row; `rows` ascends."""
    entering = candidates < keys[rows, -1]
    rows, candidates = rows[entering], candidates[entering]
    if len(rows) == 0:
        return keys
    changed, first, counts = np.unique(rows, return_index=True, return_counts=True)
    padded = np.full((len(changed), int(counts.max())), NOTHING)
    padded[np.repeat(np.arange(len(changed)), counts), np.arange(len(rows)) - np.repeat(first, counts)] = candidates
    merged = keys.copy()
    merged[changed] = np.sort(np.concatenate([keys[changed], padded], axis=1), axis=1)[:, : keys.shape[1]]
    return merged
