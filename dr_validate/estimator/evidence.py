"""What an estimate needs from one checkpoint's ranking of a sample: around each threshold, how many sampled documents rank
higher, and how many its score tails let expect. The reasons are in README.md beside this file."""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dr_validate.estimator.priors import PRIORS
from dr_validate.files import atomic_file
from dr_validate.metrics.gains import gains_retrieved
from dr_validate.values import Float32, Float64, Int64, Qrels, Ranking, Sample

FORMAT = 2  # of the files and of what their numbers mean; 1 kept tails that had seen their own threshold
NUM_FOLDS = 4
CELLS = 1 << 24  # compared at once
LEAST_SAMPLED = 40  # documents drawn in a stratum, under which nothing can be said about it


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvidence:
    """Rows are thresholds: the relevant documents in the ranking, and other certain ones beside them for calibration.

    Neither tail knows what it is to judge. `rest_tail` is read from the sampled documents outside one fold, `outranking` counts
    those inside it; `pool_tail` is read from certain documents other than the threshold itself.
    """

    query: Int64  # (num_rows,)
    rank: Int64  # (num_rows,) documents of the sample above, relevant ones included
    document: Int64  # (num_rows,) ordinal of the threshold
    gain: Int64  # (num_rows,) of the relevant document, 0 for one that only calibrates
    pool_tail: Float32  # (num_rows,) logarithm of how many certain documents that are not relevant should rank higher
    rest_tail: Float32  # (num_strata, NUM_FOLDS, num_rows) logarithm of how many of the whole stratum should
    outranking: NDArray[np.int32]  # (num_strata, NUM_FOLDS, num_rows) sampled documents of the fold that do
    inclusion: Float64  # (num_strata,) probability of a document of the stratum to be sampled

    @property
    def mean_tail(self) -> Float64:
        """(num_strata,) mean of `rest_tail` over the first ranks: how near the documents left out come to the top, with little
        noise."""
        first = self.rest_tail[:, :, self.rank < PRIORS.shallow]
        return first.mean(axis=(1, 2), dtype=np.float64) if first.size else np.zeros(len(self.inclusion))

    def unsampled_above(self, full: Ranking) -> Int64:
        """(num_rows,) how many documents that were not sampled are above each threshold in the checkpoint's ranking of the
        whole corpus; where that does not reach down to the threshold, as many as it shows at least."""
        depth = full.documents.shape[1]
        place = np.full(len(self.query), depth, dtype=np.int64)
        for part in np.array_split(np.arange(len(place)), 1 + len(place) * depth // CELLS):
            found = full.documents[self.query[part]] == self.document[part, None]
            place[part] = np.where(found.any(axis=1), found.argmax(axis=1), depth)
        above: Int64 = np.maximum(place - self.rank, 0)
        return above

    def shows_the_same_as(self, other: Self) -> bool:
        """Whether the two are of one ranking: of one checkpoint, or of copies of it."""
        return all(np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    def save(self, path: Path) -> None:
        with atomic_file(path) as stream:
            arrays: Any = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
            np.savez(stream, format=np.array(FORMAT), **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises OSError for a file that cannot be read, ValueError for one that is damaged or of another format."""
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                if (found := int(file["format"])) != FORMAT:
                    raise ValueError(f"format {found}, expected {FORMAT}")
                values: dict[str, Any] = {field.name: file[field.name] for field in fields(cls)}
        except (ValueError, KeyError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not the evidence of a checkpoint ({error}); delete it") from error
        return cls(**values)


def can_be_estimated(sample: Sample) -> bool:
    """Whether the sample says anything of what it leaves out: probabilities below 1, each with enough documents behind it."""
    _, counts = np.unique(sample.inclusion[sample.inclusion < 1], return_counts=True)
    return bool(len(counts)) and int(counts.min()) >= LEAST_SAMPLED


def rank_evidence(ranking: Ranking, qrels: Qrels, sample: Sample, id_hash: NDArray[np.uint64]) -> RankEvidence:
    """Read from one ranking; `id_hash` (num_encoded,) of the sample's documents puts each into a fold, the same for every
    checkpoint."""
    hits = _Hits(ranking, qrels, sample, id_hash)
    query, rank = _thresholds(hits)
    strata = np.unique(sample.inclusion[sample.inclusion < 1])
    shape = (len(strata), NUM_FOLDS, len(query))
    rest_tail, outranking = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
    for number, inclusion in enumerate(strata):
        of_stratum = hits.inclusion == inclusion
        for fold in range(NUM_FOLDS):
            expected = _tail(hits, of_stratum & (hits.fold != fold), PRIORS.rest_tail_length, query, rank)
            rest_tail[number, fold] = np.log(np.maximum(expected, PRIORS.least_tail) / ((1 - 1 / NUM_FOLDS) * inclusion))
            outranking[number, fold] = np.cumsum(of_stratum & (hits.fold == fold), axis=1, dtype=np.int32)[query, rank]
    pool = _tail(hits, (hits.inclusion == 1) & (hits.gain == 0), PRIORS.pool_tail_length, query, rank)
    return RankEvidence(
        query=query,
        rank=rank,
        document=ranking.documents[query, rank],
        gain=hits.gain[query, rank],
        pool_tail=np.log(np.maximum(pool, PRIORS.least_tail)).astype(np.float32),
        rest_tail=rest_tail,
        outranking=outranking,
        inclusion=strata,
    )


class _Hits:
    """The ranking with inclusion probability, fold and gain of each place. Empty places have probability 0 and the last real
    score. `spread` (num_queries,) is how far a query's certain documents score above the lowest of them: its unit."""

    def __init__(self, ranking: Ranking, qrels: Qrels, sample: Sample, id_hash: NDArray[np.uint64]) -> None:
        filled = ranking.documents >= 0
        table = np.zeros(sample.num_documents, dtype=np.int32)  # a look-up: to search costs ten times as much
        table[sample.ordinals] = np.arange(len(sample.ordinals))
        place = table[np.maximum(ranking.documents, 0)]
        self.inclusion = np.where(filled, sample.inclusion[place], 0.0)  # (num_queries, top_k), as all of these
        self.fold = (id_hash[place] % np.uint64(NUM_FOLDS)).astype(np.int8)
        self.gain = np.where(filled, gains_retrieved(ranking.documents, qrels), 0)
        scores = ranking.scores.astype(np.float64)
        worst = np.where(filled, scores, np.inf).min(axis=1, keepdims=True)
        self.scores = np.where(filled, scores, np.where(np.isfinite(worst), worst, 0.0))
        certain = (self.inclusion == 1) & (self.gain == 0)
        lowest = np.where(certain, self.scores, np.inf).min(axis=1, keepdims=True)
        self.spread = np.where(certain, self.scores - lowest, 0).sum(axis=1) / np.maximum(certain.sum(axis=1), 1)


def _thresholds(hits: _Hits) -> tuple[Int64, Int64]:
    """(query, rank) of every relevant document and of a part of the other certain ones."""
    rows, ranks = np.nonzero(hits.inclusion == 1)
    relevant = hits.gain[rows, ranks] > 0
    spread = (rows + ranks) % PRIORS.threshold_step == 0  # at other ranks for other queries
    other = np.flatnonzero(~relevant & ((ranks < PRIORS.shallow) | spread))
    if len(other) > PRIORS.most_thresholds:
        other = other[np.linspace(0, len(other) - 1, PRIORS.most_thresholds).astype(np.int64)]
    keep = np.sort(np.concatenate([np.flatnonzero(relevant), other]))
    return rows[keep], ranks[keep]


def _tail(hits: _Hits, chosen: NDArray[np.bool_], length: int, query: Int64, rank: Int64) -> Float64:
    """(num_rows,) how many of the chosen documents should rank above each threshold, which is itself left out of them.

    Counted at or below the `length`-th best of the others; beyond it by an exponential tail through them (Hill, Weissman),
    whose scale is drawn towards that of the other queries, in units of each query's own spread: scores of one query may be
    shifted and multiplied without a change.
    """
    count = np.cumsum(chosen, axis=1, dtype=np.int32)
    best = np.full((len(chosen), length + 1), np.nan)
    rows, columns = np.nonzero(chosen & (count <= length + 1))
    best[rows, count[rows, columns] - 1] = hits.scores[rows, columns]
    _, excess, number, _ = _excess(best[:, :length], hits.scores[:, -1])
    known = hits.spread > 0
    common = (excess[known] / hits.spread[known]).sum() / max(float(number.sum()), 1.0)

    inside, above = chosen[query, rank], count[query, rank]
    left_out = np.where(inside, above - 1, length)[:, None]  # place among the best, or none of them
    others = best[query[:, None], np.arange(length) + (np.arange(length) >= left_out)]
    floor, excess, number, kept = _excess(others, hits.scores[query, -1])
    lean = PRIORS.tail_shrinkage * known[query]
    scale = (excess + lean * common * hits.spread[query]) / np.maximum(number + lean, 1)
    score = hits.scores[query, rank]
    beyond = np.divide(np.maximum(score - floor, 0), scale, out=np.full(len(query), np.inf), where=scale > 0)
    expected: Float64 = np.where(score > floor, np.maximum(kept, 0.5) * np.exp(-beyond), above - inside)
    return expected


def _excess(best: Float64, lowest: Float64) -> tuple[Float64, Float64, Int64, Int64]:
    """Of each row of best scores, NaN where there are fewer: where the tail begins (at the last of them, or at `lowest`), their
    sum over that, how many are above it, and how many there are."""
    kept = np.count_nonzero(~np.isnan(best), axis=1)
    full = kept == best.shape[1]
    floor = np.where(full, best[:, -1], lowest)
    return floor, np.nansum(best - floor[:, None], axis=1), kept - full, kept
