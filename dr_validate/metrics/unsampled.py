"""How many of the documents that were left out score above a threshold, as the calibration predicts it."""

import numpy as np

from dr_validate.metrics.calibration import shape
from dr_validate.metrics.crossings import NUM_FOLDS
from dr_validate.values import Float64


def left_out(mean: Float64, odds: float, seen: Float64, spread: float) -> tuple[Float64, Float64]:
    """Mean and shape of the number above in one stratum, given `seen` of one fold; `mean` is that of the whole stratum.

    Gamma and Poisson are conjugate: the fold showed odds / NUM_FOLDS of the stratum, 1 - odds is not sampled.
    """
    form = shape(mean, odds) * np.exp(spread)
    return (1 - odds) * (form + seen) / (form / mean + odds / NUM_FOLDS), form + seen


def added(parts: list[tuple[Float64, Float64]]) -> tuple[Float64, Float64]:
    """Mean and shape of the sum over strata: the variances beyond Poisson's add up."""
    total = np.sum([mean for mean, _ in parts], axis=0)
    square = np.sum([mean**2 / form for mean, form in parts], axis=0)
    return total, total**2 / np.maximum(square, 1e-300)


def negative_binomial(mean: Float64, form: Float64, number: int) -> Float64:
    """(num_rows, number) chances of 0, 1, ... by the recursion p(u + 1) = p(u) (form + u) / (u + 1) mean / (mean + form)."""
    share = mean / (mean + form)
    chances = np.empty((number, len(mean)))  # this way round for speed: each step runs over all rows
    if number:
        chances[0] = np.exp(form * np.log1p(-np.minimum(share, 1 - 1e-15)))
    for count in range(number - 1):
        np.multiply(chances[count], (form + count) * (share / (count + 1)), out=chances[count + 1])
    return chances.T
