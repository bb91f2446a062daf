"""Vectors of texts in slices: kept ones as they are, the others through the model."""

import time

import numpy as np

from dr_validate.stages import Model, TextBlocks, Vectors
from dr_validate.values import Float32, Int64, Side, TokenBlock


class Texts:
    """The texts of one side of a workload; counts what had to be encoded and adds up the seconds of each phase.

    Neither the model nor the tokens are touched for a slice whose vectors are all kept.
    """

    def __init__(self, side: Side, blocks: TextBlocks, ordinals: Int64, vectors: Vectors, model: Model) -> None:
        self._side, self._blocks, self._ordinals, self._vectors, self._model = side, blocks, ordinals, vectors, model
        self.encoded_now = 0
        self.seconds = {"encode": 0.0, "vectors": 0.0}

    def vectors(self, number: int, part: slice) -> Float32:
        """(num_texts, dim) of positions `part`, which lie in block `number`."""
        offset = part.start - self._blocks.positions(number).start
        elsewhere = 0.0  # seconds in the model and in what it needs first

        def encode(rows: Int64) -> Float32:
            nonlocal elsewhere
            asked = time.monotonic()
            tokens = pick(self._blocks.block(number), rows + offset)
            began = time.monotonic()
            vectors = self._model.encode(tokens, self._side)
            self.encoded_now += len(rows)
            self.seconds["encode"] += time.monotonic() - began
            elsewhere += time.monotonic() - asked
            return vectors

        began = time.monotonic()
        vectors = self._vectors.get(self._side, self._ordinals[part], encode)
        self.seconds["vectors"] += time.monotonic() - began - elsewhere
        return vectors


def pick(tokens: TokenBlock, rows: Int64) -> TokenBlock:
    """Some texts of a block, in the order of `rows`."""
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):  # nothing needs to be copied
        first, last = int(tokens.offsets[rows[0]]), int(tokens.offsets[rows[-1] + 1])
        return TokenBlock(ids=tokens.ids[first:last], offsets=tokens.offsets[rows[0] : rows[-1] + 2] - first)
    lengths = tokens.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(int(offsets[-1])) + np.repeat(tokens.offsets[rows] - offsets[:-1], lengths)
    return TokenBlock(ids=np.asarray(tokens.ids)[places], offsets=offsets)
