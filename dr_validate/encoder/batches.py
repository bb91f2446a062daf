"""Which texts go through the model together: the longest first, full batches, next to no padding."""

from dataclasses import dataclass

import numpy as np

from dr_validate.values import Int64, TokenBlock

SHARES = 4  # of the work that is left, a thread takes one in so many at a time, so that all end together
SMALLEST_SHARE = 256  # tokens; below it the matrix products lose more than the threads win
# Packed rows are filled up to a multiple of this, so that they have few different lengths: for each, oneDNN keeps a program
# and its memory, up to 1024 of them (measured: 0.3 GiB in 300 batches).
ROUND_TO = 64
CUTS = 4  # a batch ends at that one of its last so many texts where least has to be filled up: 0.6% of the tokens, not 1.8%
UNLIKE = 0.9  # padded texts of one batch are at least so long, as parts of the longest ...
TOO_FEW = 8  # ... unless the batch would have fewer tokens than one in so many of the budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some texts of a block, by descending length, and their token ids one text after the other."""

    rows: Int64  # (num_texts,) positions in the block
    lengths: Int64  # (num_texts,) at least 1
    ids: Int64  # (num_tokens,)

    @property
    def places(self) -> Int64:
        """(num_tokens,) place of each token in its text, from 0."""
        starts = np.cumsum(self.lengths) - self.lengths
        places: Int64 = np.arange(len(self.ids)) - np.repeat(starts, self.lengths)
        return places


def plan(lengths: Int64, max_tokens: int, threads: int, *, pad: bool) -> list[Int64]:
    """Positions of the texts that are not empty, in batches of at most `max_tokens` tokens, or of one text that is longer.

    What needs most memory comes first, so that it fails at once if at all. With `pad`, tokens count padding.
    """
    order: Int64 = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    ends = np.cumsum(lengths[order])
    batches, start = [], 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        share = -(-(int(ends[-1]) - before) // (SHARES * threads)) if threads > 1 else max_tokens
        budget = min(max_tokens, max(share, SMALLEST_SHARE))
        if pad:
            stop = start + _similar(lengths[order[start:]], budget)
        else:
            stop = int(np.searchsorted(ends, before + budget, side="right"))
            if stop < len(order):
                stop = _least_filling(ends - before, start, stop)
        stop = max(stop, start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def take(tokens: TokenBlock, rows: Int64) -> Batch:
    """The texts at `rows` of a block, none of them empty."""
    taken = tokens.take(rows)
    return Batch(rows=rows, lengths=taken.lengths, ids=np.asarray(taken.ids).astype(np.int64))


def _least_filling(ends: Int64, start: int, stop: int) -> int:
    """Where to end a batch that begins at `start`, at `stop` or a few texts before; of equals, the latest."""
    cuts = np.arange(stop, max(start, stop - CUTS), -1)
    return int(cuts[np.argmin(-ends[cuts - 1] % ROUND_TO)]) if len(cuts) else stop


def _similar(lengths: Int64, budget: int) -> int:
    """How many of the first texts are padded together."""
    longest = int(lengths[0])
    alike = int(np.searchsorted(-lengths, -UNLIKE * longest, side="right"))
    return min(len(lengths), budget // longest, max(alike, budget // TOO_FEW // longest))
