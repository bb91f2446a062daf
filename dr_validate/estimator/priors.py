"""Every constant of the estimator, each with its reason and what it was measured on.

Fitted on three collections (A, B, K2 of scripts/research/STUDY.md: 2 to 10% of their documents, three draws), by least squares
of what a relevant document adds to MRR@10 and nDCG@10; each was left out once, which gave the ranges in brackets.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    """Two of these in a spec are two specs: they change values."""

    # How tails are read: from as many of the best scores; taken over from the first version, not fitted again.
    rest_tail_length: int = 10
    pool_tail_length: int = 8
    tail_shrinkage: float = 3.0  # scores' worth of the other queries' scale, in each query's own unit: tails of two or three
    least_tail: float = 1e-3  # documents; logarithms need a floor, and no coefficient is known further out
    # A pool tail below e^-2 documents says no more: near copies are above even what is far out. Floors of -1.5 and -2.7 fitted
    # worse (sum of squares 0.56 and 0.52 for 0.47); without one, corrections at 5% were a fifth and a third too large.
    least_pool_tail: float = -2.0

    # Which certain documents serve as thresholds beside the relevant ones: enough for counts, few enough for seconds.
    shallow: int = 10  # ranks of which all are, and of which the mean tail is taken
    threshold_step: int = 8  # of the deeper ones each so-manieth
    most_thresholds: int = 40_000
    most_rows: int = 300_000  # of all checkpoints together

    # log(mean number above in the whole stratum) = mean . [1, rest tail, pool tail, mean tail].
    # [-2.7 to -1.2, 0.10 to 0.21, 1.23 to 1.60, 0.92 to 1.23]; a collection left out had a bias of at most 0.012, mostly 0.005.
    mean: tuple[float, float, float, float] = (-2.45, 0.17, 1.5, 1.15)
    # Wider than those ranges. Deep metrics want less of the mean tail, and their many counts show it (RMSE of differences in
    # recall@100 at 5%: B 0.039 → 0.028, K2 0.035 → 0.023). Other pools have other slopes of both tails (MRR@10, BM25's alone: A
    # at 5% 0.016 → 0.010, K2 at 10% 0.025 → 0.021; none: K2 at 5% 0.11 → 0.044; those fitted on: 0.0151 → 0.0160).
    sd: tuple[float, float, float, float] = (1.2, 0.15, 0.3, 0.6)
    # What it is learnt from: relevant thresholds count in full, all others together this much of them (they are more, and a bit
    # unlike); rows with more documents above than `reach` of the cutoff, where a metric is 0 whatever their number, ever less.
    weight_of_others: float = 2.0
    reach: float = 0.8

    # Shape of the negative binomial = exp(shape[0]) mean^shape[1]. [-2.1 to -1.0]; with a power of the inclusion probability as
    # well, that came out as 0.04. A sample cannot show it: nearly all counts are 0 or 1. With 0.4 and 0.6 sqrt(mean),
    # all else fitted to it, RMSE of MRR@10 was 0.0155 and 0.0182, each collection left out, where it is 0.0130 so.
    shape: tuple[float, float] = (-1.3, 0.5)

    # Standard deviations of what the model has wrong, as shares of the correction, beside what its coefficients have: for all
    # checkpoints alike, and for each alone. With `scatter` 0.99 of the levels and of the differences on A, B, K2 and V are
    # covered, the worst checkpoint of a cell in 0.92 and the worst pair in 0.78 of the draws on the mean.
    model_error_sd: float = 0.05
    own_model_error_sd: float = 0.05
    # The posterior of the counts takes queries and documents as independent: errors of single checkpoints are wider than it
    # says. Differences at 10% of B were covered in 0.83 of the cases with 1.1.
    scatter: float = 1.3
    # How far one checkpoint's own counts may be from the model, as a logarithm; what they say against it is an error that all
    # share. Without, 95% intervals of MRR@10 held in 0.1 to 0.2 of the cases at 12% and 0.7 at 30% (Vaswani's documents, a
    # third of the words of one as a query, LSA of 15 to 300 dimensions), with it in 0.81 to 1.
    own_counts_sd: float = 0.5
    # Correlation of two checkpoints' own errors = similarity^this. Measured per query: similarity 0.3, 0.5, 0.7, 0.9 went with
    # 0.0 to 0.4, 0.3 to 0.6, 0.5 to 0.8, 0.5 to 0.95, the lower ones at 10%.
    similarity_power: int = 2


PRIORS = Priors()
