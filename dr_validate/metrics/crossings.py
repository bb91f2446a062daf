"""What an estimate needs from one checkpoint's ranking: around each threshold, how many sampled documents of each stratum score
higher, and how many its score tail lets expect. See metrics/ESTIMATE.md for the reasoning."""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dr_validate.files import atomic_file
from dr_validate.values import Float32, Float64, Int64, Qrels, Ranking, Sample

NUM_FOLDS = 4
TAIL = 10  # scores of a stratum from which its tail is read
TAIL_OF_POOL = 8
SHALLOW = 10
UNKNOWN = -1
EVERY = 8  # deeper than SHALLOW, one certain document in this many is a threshold
MOST_THRESHOLDS = 40_000
LEAST_SAMPLED = 40  # documents drawn in a stratum, under which nothing can be said about it (FIDELITY, section 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossings:
    """Rows are thresholds: the relevant documents in the ranking, and other certain ones beside them for calibration.

    `expected` is the natural logarithm of how many documents of the *whole* stratum should score above the threshold, by the
    score tail of the sampled documents outside one fold; `crossed` counts the sampled documents above it inside that fold: the
    two share no document, so that one can be judged by the other.
    """

    query: Int64  # (num_rows,)
    rank: Int64  # (num_rows,) documents of the sample above, relevant ones included
    document: Int64  # (num_rows,) ordinal of the threshold, or UNKNOWN
    gain: Int64  # (num_rows,) of the relevant document, 0 for one that only calibrates
    pool_above: Float32  # (num_rows,) logarithm of how many certain documents should score above, by the tail of the pool
    expected: Float32  # (num_strata, NUM_FOLDS, num_rows)
    crossed: NDArray[np.int32]  # (num_strata, NUM_FOLDS, num_rows)
    odds: Float64  # (num_strata,) of a document of the stratum to be sampled
    quality: float  # mean reciprocal rank of the first relevant document in the sample: what a checkpoint is like

    @property
    def crowd(self) -> Float64:
        """(num_strata,) mean of `expected`: how near the documents that were left out come to the top, with little noise."""
        return self.expected.mean(axis=(1, 2), dtype=np.float64) if len(self.query) else np.zeros(len(self.odds))

    def save(self, path: Path) -> None:
        with atomic_file(path) as stream:
            arrays: Any = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises OSError for a file that cannot be read, ValueError for one that is damaged."""
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                names = {field.name for field in fields(cls)}
                values: dict[str, Any] = {name: file[name] for name in names - {"document"}}
                earlier = set(file.files) == names - {"document"}  # a version that did not keep it
                values["document"] = np.full(values["query"].shape, UNKNOWN) if earlier else file["document"]
        except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not the crossings of a checkpoint ({error}); delete it") from error
        return cls(**{**values, "quality": float(values["quality"])})


def can_be_estimated(sample: Sample) -> bool:
    """Whether the sample says anything about what it leaves out: some odds below 1, each with enough documents behind it."""
    _, counts = np.unique(sample.inclusion[sample.inclusion < 1], return_counts=True)
    return bool(len(counts)) and int(counts.min()) >= LEAST_SAMPLED


def crossings(ranking: Ranking, qrels: Qrels, sample: Sample, id_hash: NDArray[np.uint64]) -> Crossings:
    """`id_hash` (num_encoded,) of the sample's documents puts each into a fold, the same for every checkpoint."""
    hits = _Hits(ranking, qrels, sample, id_hash)
    query, rank = _thresholds(hits)
    odds = np.unique(sample.inclusion[sample.inclusion < 1])
    shape = (len(odds), NUM_FOLDS, len(query))
    expected, crossed = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
    for number, chance in enumerate(odds):
        of_stratum = hits.inclusion == chance
        for fold in range(NUM_FOLDS):
            seen = _tail(hits.scores, of_stratum & (hits.fold != fold), TAIL, query, rank)
            expected[number, fold] = np.log(np.maximum(seen, 1e-4) / ((1 - 1 / NUM_FOLDS) * chance))
            crossed[number, fold] = np.cumsum(of_stratum & (hits.fold == fold), axis=1, dtype=np.int32)[query, rank]
    pool = _tail(hits.scores, (hits.inclusion == 1) & (hits.gain == 0), TAIL_OF_POOL, query, rank)
    return Crossings(
        query=query,
        rank=rank,
        document=ranking.documents[query, rank],
        gain=hits.gain[query, rank],
        pool_above=np.log(np.maximum(pool, 1e-3)).astype(np.float32),
        expected=expected,
        crossed=crossed,
        odds=odds,
        quality=_reciprocal_rank(hits.gain),
    )


class _Hits:
    """The ranking with odds, fold and gain of each place. Empty places have odds 0 and the last real score."""

    def __init__(self, ranking: Ranking, qrels: Qrels, sample: Sample, id_hash: NDArray[np.uint64]) -> None:
        filled = ranking.documents >= 0
        table = np.zeros(sample.num_documents, dtype=np.int32)  # a look-up: to search costs ten times as much
        table[sample.ordinals] = np.arange(len(sample.ordinals))
        place = table[np.maximum(ranking.documents, 0)]
        self.inclusion = np.where(filled, sample.inclusion[place], 0.0)  # (num_queries, top_k), as all of these
        self.fold = (id_hash[place] % np.uint64(NUM_FOLDS)).astype(np.int8)
        self.gain = np.where(filled, _gains(ranking.documents, qrels), 0)
        scores = ranking.scores.astype(np.float64)
        worst = np.where(filled, scores, np.inf).min(axis=1, keepdims=True)
        self.scores = np.where(filled, scores, np.where(np.isfinite(worst), worst, 0.0))


def _gains(documents: Int64, qrels: Qrels) -> Int64:
    """Gain of each retrieved document, 0 where it is not judged relevant."""
    many = int(max(documents.max(initial=0), qrels.documents.max(initial=0))) + 1
    rows = np.repeat(np.arange(len(documents)), np.diff(qrels.offsets))
    relevant = qrels.gains >= 1
    keys = rows[relevant] * many + qrels.documents[relevant]
    order = np.argsort(keys)
    keys, gains = keys[order], qrels.gains[relevant][order]
    for_any = np.zeros(many, dtype=np.bool_)  # few documents are relevant for any query: only those are searched for
    for_any[qrels.documents[relevant]] = True
    query, rank = np.nonzero(for_any[documents] & (documents >= 0))
    wanted = query * many + documents[query, rank]
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = np.zeros_like(documents)
    found[query, rank] = np.where(keys[place] == wanted, gains[place], 0)
    return found


def _thresholds(hits: _Hits) -> tuple[Int64, Int64]:
    """(query, rank) of every relevant document and of a part of the other certain ones."""
    rows, ranks = np.nonzero(hits.inclusion == 1)
    relevant = hits.gain[rows, ranks] > 0
    spread = (rows + ranks) % EVERY == 0  # one in EVERY, at other ranks for other queries
    other = np.flatnonzero(~relevant & ((ranks < SHALLOW) | spread))
    if len(other) > MOST_THRESHOLDS:
        other = other[np.linspace(0, len(other) - 1, MOST_THRESHOLDS).astype(np.int64)]
    keep = np.sort(np.concatenate([np.flatnonzero(relevant), other]))
    return rows[keep], ranks[keep]


def _tail(scores: Float64, chosen: NDArray[np.bool_], length: int, query: Int64, rank: Int64) -> Float64:
    """How many of the chosen should score above each threshold: counted within their top `length`, beyond it by an exponential
    tail through them (Hill, Weissman), whose scale leans on that of the other queries where a query has few."""
    count = np.cumsum(chosen, axis=1, dtype=np.int32)
    total, taken = count[:, -1], chosen & (count <= length)
    enough = total >= length
    lowest = np.where(enough, np.where(taken, scores, np.inf).min(axis=1), scores[:, -1])
    excess = np.where(taken, scores - lowest[:, None], 0).sum(axis=1)
    number = np.where(enough, length - 1, total)
    common = excess.sum() / max(int(number.sum()), 1) + 1e-9
    scale = np.maximum((excess + 3 * common) / (number + 3), 1e-9)
    score = scores[query, rank]
    beyond = np.maximum(score - lowest[query], 0) / scale[query]
    extrapolated = np.maximum(np.minimum(total, length), 0.5)[query] * np.exp(-beyond)
    seen: Float64 = np.where(score > lowest[query], extrapolated, count[query, rank])
    return seen


def _reciprocal_rank(gain: Int64) -> float:
    found = gain > 0
    first = np.argmax(found, axis=1)
    return float(np.where(found.any(axis=1), 1 / (1 + first), 0).mean()) if len(gain) else 0.0
