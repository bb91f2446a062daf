"""A collection of random numbers, checkpoints of any quality on it, and probability samples of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dr_validate.estimator.evidence import RankEvidence, rank_evidence
from dr_validate.values import Float32, Float64, Int64, Qrels, Ranking, Sample

POOL_SHARE = 0.7
OTHER_RETRIEVER = 1_000  # seed of the scores that choose the pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """`likeness` is what every retriever sees of a pair; relevant documents are more alike. `id_hash` stands for the ids."""

    seed: int
    likeness: Float64  # (num_queries, num_documents)
    qrels: Qrels
    id_hash: NDArray[np.uint64]  # (num_documents,)

    @property
    def num_documents(self) -> int:
        return len(self.id_hash)


def collection(seed: int, num_documents: int = 3_000, num_queries: int = 60) -> Collection:
    """One to three relevant documents for each query, with gains of 1 to 3."""
    rng = np.random.default_rng(seed)
    likeness = rng.normal(size=(num_queries, num_documents))
    counts = rng.integers(1, 4, num_queries)
    relevant = np.concatenate([rng.choice(num_documents, count, replace=False) for count in counts])
    likeness[np.repeat(np.arange(num_queries), counts), relevant] += rng.normal(3.0, 0.7, len(relevant))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    qrels = Qrels(offsets=offsets, documents=relevant, gains=rng.integers(1, 4, len(relevant)))
    id_hash = rng.integers(0, 2**63, num_documents).astype(np.uint64)
    return Collection(seed=seed, likeness=likeness, qrels=qrels, id_hash=id_hash)


def scores_of(collection: Collection, signal: float, seed: int) -> Float32:
    """(num_queries, num_documents) of a checkpoint that sees the share `signal` of the likeness, and noise of its own."""
    noise = np.random.default_rng([collection.seed, 1, seed]).normal(size=collection.likeness.shape)
    scores: Float32 = (signal * collection.likeness + (1 - signal**2) ** 0.5 * noise).astype(np.float32)
    return scores


def training(collection: Collection, number: int = 6) -> list[Float32]:
    """Scores of checkpoints that get better."""
    return [scores_of(collection, signal, seed) for seed, signal in enumerate(np.linspace(0.45, 0.8, number))]


def topics(
    seed: int, noise: Sequence[float], num_documents: int = 3_000, num_queries: int = 60
) -> tuple[Collection, list[Float32]]:
    """Documents in 60 groups, each query near one of them, its only relevant one; and a checkpoint for each `noise`."""
    rng = np.random.default_rng(seed)
    middles = np.repeat(rng.normal(size=(60, 16)), num_documents // 60, axis=0)
    documents = middles + 0.35 * rng.normal(size=(num_documents, 16))
    relevant = rng.choice(num_documents, num_queries, replace=False)
    queries = documents[relevant] + 0.2 * rng.normal(size=(num_queries, 16))
    ones = np.ones(num_queries, dtype=np.int64)
    made = Collection(
        seed=seed,
        likeness=queries @ documents.T,
        qrels=Qrels(offsets=np.arange(num_queries + 1), documents=relevant, gains=ones),
        id_hash=rng.integers(0, 2**63, num_documents).astype(np.uint64),
    )
    checkpoints = []
    for size in noise:
        seen = documents + size * rng.normal(size=documents.shape)
        asked = queries + 0.3 * size * rng.normal(size=queries.shape)
        checkpoints.append((asked @ (seen / np.linalg.norm(seen, axis=1, keepdims=True)).T).astype(np.float32))
    return made, checkpoints


def everything(num_documents: int) -> Sample:
    return Sample(
        ordinals=np.arange(num_documents),
        inclusion=np.ones(num_documents),
        num_documents=num_documents,
        fingerprint="everything",
    )


def pool_and_rest(collection: Collection, num_encoded: int, seed: int) -> Sample:
    """The judged documents and those that another retriever ranks highest for certain, the others by chance."""
    inclusion = np.zeros(collection.num_documents)
    inclusion[collection.qrels.documents] = 1
    room = num_encoded - int(inclusion.sum())
    other = scores_of(collection, 0.5, OTHER_RETRIEVER)
    best_rank = np.argsort(np.argsort(-other, axis=1), axis=1).min(axis=0)
    order = np.lexsort((collection.id_hash, best_rank))
    inclusion[order[inclusion[order] == 0][: int(POOL_SHARE * room)]] = 1
    rest = np.flatnonzero(inclusion == 0)
    count = num_encoded - int(inclusion.sum())
    drawn = np.random.default_rng([collection.seed, 2, seed]).choice(rest, count, replace=False)
    inclusion[drawn] = count / len(rest)
    return sample_of(inclusion)


def sample_of(inclusion: Float64) -> Sample:
    """Those with an inclusion probability above 0."""
    chosen = np.flatnonzero(inclusion)
    return Sample(ordinals=chosen, inclusion=inclusion[chosen], num_documents=len(inclusion), fingerprint="synthetic")


def ranked(scores: Float32, sample: Sample, id_hash: NDArray[np.uint64], top_k: int) -> Ranking:
    """Exact search over the sample, ties by id; places that stay empty hold -1."""
    num_queries, filled = len(scores), min(top_k, len(sample.ordinals))
    found = scores[:, sample.ordinals]
    ties = np.broadcast_to(id_hash[sample.ordinals], found.shape)
    order = np.lexsort((ties, -found), axis=1)[:, :filled]
    documents: Int64 = np.full((num_queries, top_k), -1)
    best = np.full((num_queries, top_k), -np.inf, dtype=np.float32)
    documents[:, :filled], best[:, :filled] = sample.ordinals[order], np.take_along_axis(found, order, axis=1)
    return Ranking(documents=documents, scores=best)


def history_of(
    collection: Collection, checkpoints: Sequence[Float32], sample: Sample, top_k: int = 1_000
) -> list[RankEvidence]:
    id_hash = collection.id_hash
    rankings = [ranked(scores, sample, id_hash, top_k) for scores in checkpoints]
    return [rank_evidence(ranking, collection.qrels, sample, id_hash[sample.ordinals]) for ranking in rankings]
