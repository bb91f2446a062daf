"""Batches of texts of nearly equal length, so that next to nothing is padding."""

import numpy as np

from dr_validate.values import Int64, TokenBlock


def longest_first(lengths: Int64) -> Int64:
    """(num_texts,) positions by descending length: what needs most memory comes first, so it fails at once if at all."""
    order: Int64 = np.argsort(-lengths, kind="stable")
    return order


def batch_size(longest: int, max_tokens: int) -> int:
    """How many texts padded to `longest` fit into `max_tokens`; at least one."""
    return max(1, max_tokens // max(1, longest))


def padded(tokens: TokenBlock, rows: Int64, pad_id: int) -> tuple[Int64, Int64]:
    """Ids (num_rows, longest) padded on the right, and lengths (num_rows,), of some texts of a block."""
    lengths = tokens.lengths[rows]
    ids = np.full((len(rows), int(lengths.max())), pad_id, dtype=np.int64)
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    ids[inside] = np.asarray(tokens.ids)[_flat(tokens.offsets[rows], lengths)]
    return ids, lengths


def _flat(starts: Int64, lengths: Int64) -> Int64:
    """Positions of all tokens of the texts, one text after the other."""
    ends = np.cumsum(lengths)
    places: Int64 = np.arange(int(ends[-1])) + np.repeat(starts - (ends - lengths), lengths)
    return places
