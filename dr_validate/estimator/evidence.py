"""What one ranking of a sample shows: how many sampled documents rank above each threshold, and how many should (README.md)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dr_validate.estimator.priors import PRIORS
from dr_validate.metrics.gains import gains_retrieved
from dr_validate.values import Float32, Float64, Int64, Qrels, Ranking, Sample

FORMAT = 2  # of what these numbers mean, and so of files that keep them; 1 had tails that had seen their own threshold
NUM_FOLDS = 4
LEAST_SAMPLED = 40  # documents drawn in a stratum, under which nothing can be said about it


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvidence:
    """Rows are thresholds: the relevant documents in the ranking, and other certain ones beside them for calibration."""

    query: Int64  # (num_rows,)
    rank: Int64  # (num_rows,) documents of the sample above, relevant ones included
    document: Int64  # (num_rows,) ordinal of the threshold
    gain: Int64  # (num_rows,) of the relevant document, 0 for one that only calibrates
    pool_tail: Float32  # (num_rows,) p: logarithm of how many certain documents that are not relevant should rank higher
    rest_tail: Float32  # (num_strata, NUM_FOLDS, num_rows) t: of how many of the whole stratum should, by all but the fold
    outranking: NDArray[np.int32]  # (num_strata, NUM_FOLDS, num_rows) x: sampled documents of the fold that do
    inclusion: Float64  # (num_strata,) probability of a document of the stratum to be sampled


def can_be_estimated(sample: Sample) -> bool:
    """Whether the sample says anything of what it leaves out: probabilities below 1, each with enough documents behind it."""
    _, counts = np.unique(sample.inclusion[sample.inclusion < 1], return_counts=True)
    return bool(len(counts)) and int(counts.min()) >= LEAST_SAMPLED


def rank_evidence(ranking: Ranking, qrels: Qrels, sample: Sample, id_hash: NDArray[np.uint64]) -> RankEvidence:
    """From one ranking; `id_hash` (num_encoded,) of the sample's documents puts each into a fold, whatever the checkpoint."""
    hits = _Hits(ranking, qrels, sample, id_hash)
    query, rank = np.nonzero(hits.inclusion == 1)
    relevant = hits.gain[query, rank] > 0
    spread = (query + rank) % PRIORS.threshold_step == 0  # at other ranks for other queries
    other = np.flatnonzero(~relevant & ((rank < PRIORS.shallow) | spread))
    some = np.linspace(0, len(other) - 1, min(len(other), PRIORS.most_thresholds)).astype(np.int64)
    rows = np.sort(np.concatenate([np.flatnonzero(relevant), other[some]]))
    query, rank = query[rows], rank[rows]
    strata = np.unique(sample.inclusion[sample.inclusion < 1])
    shape = (len(strata), NUM_FOLDS, len(query))
    rest_tail, outranking = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
    for number, fold in np.ndindex(shape[:2]):
        of_stratum, of_fold = hits.inclusion == strata[number], hits.fold == fold
        expected = _expected_above(hits, of_stratum & ~of_fold, PRIORS.rest_tail_length, query, rank)
        rest_tail[number, fold] = np.log(expected / ((1 - 1 / NUM_FOLDS) * strata[number]))
        outranking[number, fold] = np.cumsum(of_stratum & of_fold, axis=1, dtype=np.int32)[query, rank]
    return RankEvidence(
        query=query,
        rank=rank,
        document=ranking.documents[query, rank],
        gain=hits.gain[query, rank],
        pool_tail=np.log(_expected_above(hits, hits.pool, PRIORS.pool_tail_length, query, rank)).astype(np.float32),
        rest_tail=rest_tail,
        outranking=outranking,
        inclusion=strata,
    )


class _Hits:
    """Each place of a ranking, (num_queries, top_k); and `spread` (num_queries,), of a query's pool: the unit of its scores."""

    def __init__(self, ranking: Ranking, qrels: Qrels, sample: Sample, id_hash: NDArray[np.uint64]) -> None:
        filled = ranking.documents >= 0
        table = np.zeros(sample.num_documents, dtype=np.int32)  # a look-up: to search costs ten times as much
        table[sample.ordinals] = np.arange(len(sample.ordinals))
        place = table[np.maximum(ranking.documents, 0)]
        self.inclusion = np.where(filled, sample.inclusion[place], 0.0)  # 0 for an empty place, which has the last real score
        self.fold = (id_hash[place] % np.uint64(NUM_FOLDS)).astype(np.int8)
        self.gain = gains_retrieved(ranking.documents, qrels)
        self.pool = (self.inclusion == 1) & (self.gain == 0)
        scores = ranking.scores.astype(np.float64)
        last = np.where(filled, scores, np.inf).min(axis=1, keepdims=True)
        self.scores = np.where(filled, scores, np.where(np.isfinite(last), last, 0.0))
        lowest = np.where(self.pool, self.scores, np.inf).min(axis=1, keepdims=True)
        self.spread = np.where(self.pool, self.scores - lowest, 0).sum(axis=1) / np.maximum(self.pool.sum(axis=1), 1)


def _expected_above(hits: _Hits, chosen: NDArray[np.bool_], length: int, query: Int64, rank: Int64) -> Float64:
    """(num_rows,) how many of the chosen documents should rank above each threshold, which is itself left out of them.

    Counted at or below the `length`-th best of the others; beyond it by an exponential tail through those (Hill, Weissman).
    """
    count = np.cumsum(chosen, axis=1, dtype=np.int32)  # of the chosen down to each place
    best = np.repeat(hits.scores[:, -1:], length + 1, axis=1)  # where there are fewer, the ranking's last score
    rows, columns = np.nonzero(chosen & (count <= length + 1))
    best[rows, count[rows, columns] - 1] = hits.scores[rows, columns]
    excess = (best[:, :length] - best[:, length - 1, None]).sum(axis=1)  # over the last of them
    known = hits.spread > 0
    common = (excess[known] / hits.spread[known]).sum() / max(float(np.minimum(count[:, -1], length - 1).sum()), 1.0)

    inside, above = chosen[query, rank], count[query, rank]
    left_out = np.where(inside, above - 1, length)[:, None]  # place among the best, or none of them
    others = best[query[:, None], np.arange(length) + (np.arange(length) >= left_out)]
    floor, number = others[:, -1], np.minimum(count[query, -1] - inside, length)
    excess = (others - floor[:, None]).sum(axis=1)
    lean = PRIORS.tail_shrinkage * known[query]  # towards the scale of all queries, in the unit of each
    scale = (excess + lean * common * hits.spread[query]) / np.maximum(np.minimum(number, length - 1) + lean, 1)
    score = hits.scores[query, rank]
    beyond = np.divide(np.maximum(score - floor, 0), scale, out=np.full(len(query), np.inf), where=scale > 0)
    expected = np.where(score > floor, np.maximum(number, 0.5) * np.exp(-beyond), above - inside)
    return np.maximum(expected, PRIORS.least_tail)
