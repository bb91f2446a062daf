"""RankEvidence against plain loops over the ranking."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dr_validate.estimator.evidence import NUM_FOLDS, RankEvidence, can_be_estimated, rank_evidence
from dr_validate.estimator.priors import PRIORS
from dr_validate.values import Float64, Qrels, Ranking, Sample
from tests.estimator.synthetic import collection, history_of, pool_and_rest, ranked, sample_of, training

STRATA = (0.125, 0.5)  # of two strata
NUM_DOCUMENTS, NUM_QUERIES, TOP_K = 160, 5, 110


@dataclass(frozen=True, kw_only=True)
class Example:
    inclusion: dict[int, float]
    fold: dict[int, int]
    gain: dict[tuple[int, int], int]
    ranking: Ranking
    qrels: Qrels
    sample: Sample
    found: RankEvidence


def example(seed: int) -> Example:
    """Few distinct scores, graded and negative judgements, a short ranking and an empty one."""
    rng = np.random.default_rng(seed)
    inclusion = rng.choice([0.0, *STRATA, 1.0], NUM_DOCUMENTS, p=[0.1, 0.35, 0.35, 0.2])
    judged = [rng.choice(NUM_DOCUMENTS, 4, replace=False) for _ in range(NUM_QUERIES)]
    qrels = Qrels(
        offsets=np.arange(0, 4 * NUM_QUERIES + 1, 4),
        documents=np.concatenate(judged),
        gains=rng.integers(-1, 4, 4 * NUM_QUERIES),
    )
    inclusion[qrels.documents] = 1
    sample, id_hash = sample_of(inclusion), rng.integers(0, 2**63, NUM_DOCUMENTS).astype(np.uint64)
    scores = rng.integers(0, 60, (NUM_QUERIES, NUM_DOCUMENTS)).astype(np.float32)
    whole = ranked(scores, sample, id_hash, TOP_K)
    documents, best = whole.documents.copy(), whole.scores.copy()
    for row, kept in ((3, 17), (4, 0)):
        documents[row, kept:], best[row, kept:] = -1, -np.inf
    ranking = Ranking(documents=documents, scores=best)
    rows = np.repeat(np.arange(NUM_QUERIES), 4)
    return Example(
        inclusion=dict(enumerate(inclusion.tolist())),
        fold={document: int(number) % NUM_FOLDS for document, number in enumerate(id_hash)},
        gain={(int(q), int(d)): int(g) for q, d, g in zip(rows, qrels.documents, qrels.gains, strict=True) if g >= 1},
        ranking=ranking,
        qrels=qrels,
        sample=sample,
        found=rank_evidence(ranking, qrels, sample, id_hash[sample.ordinals]),
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_thresholds_ranks_gains_and_outranking_counts_are_those_that_a_plain_loop_counts(seed: int) -> None:
    given = example(seed)
    rows = []
    for query, documents in enumerate(given.ranking.documents.tolist()):
        for rank, document in enumerate(documents):
            if document < 0 or given.inclusion[document] < 1:
                continue
            gain = given.gain.get((query, document), 0)
            if gain or rank < PRIORS.shallow or (query + rank) % PRIORS.threshold_step == 0:
                above = [(given.inclusion[other], given.fold[other]) for other in documents[:rank]]
                counts = [[above.count((chance, fold)) for fold in range(NUM_FOLDS)] for chance in STRATA]
                rows.append((query, rank, gain, counts))
    found = given.found
    assert_array_equal(found.inclusion, STRATA)
    assert_array_equal(found.query, [query for query, *_ in rows])
    assert_array_equal(found.rank, [rank for _, rank, *_ in rows])
    assert_array_equal(found.gain, [gain for *_, gain, _ in rows])
    assert_array_equal(found.outranking, np.moveaxis(np.array([counts for *_, counts in rows]), 0, -1))
    assert len(np.unique(found.gain)) >= 3
    assert found.outranking.max() >= 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expected_number_is_counted_beyond_the_tail_and_less_within_it(seed: int) -> None:
    given = example(seed)
    counted = 0
    for row, (query, rank) in enumerate(zip(given.found.query, given.found.rank, strict=True)):
        documents, scores = given.ranking.documents[query].tolist(), given.ranking.scores[query]
        for number, chance in enumerate(STRATA):
            for fold in range(NUM_FOLDS):
                places = [
                    p for p, d in enumerate(documents) if d >= 0 and given.inclusion[d] == chance and given.fold[d] != fold
                ]
                if len(places) < PRIORS.rest_tail_length:
                    continue
                expected, share = float(given.found.rest_tail[number, fold, row]), chance * (1 - 1 / NUM_FOLDS)
                if scores[rank] <= scores[places[PRIORS.rest_tail_length - 1]]:
                    above = sum(place < rank for place in places)
                    assert expected == pytest.approx(math.log(max(above, PRIORS.least_tail) / share), abs=1e-6)
                    counted += 1
                else:
                    assert expected < math.log(PRIORS.rest_tail_length / share)
    assert counted > 50


def hand_made(scores: Sequence[float], certain: Sequence[int], relevant: int) -> RankEvidence:
    """One query over documents 0, 1, ... in that order; those that are not certain are drawn with probability 0.5."""
    inclusion = np.full(len(scores), 0.5)
    inclusion[list(certain)] = 1
    qrels = Qrels(offsets=np.array([0, 1]), documents=np.array([relevant]), gains=np.array([1]))
    ranking = Ranking(documents=np.arange(len(scores))[None], scores=np.array([scores], dtype=np.float32))
    return rank_evidence(ranking, qrels, sample_of(inclusion), np.arange(len(scores), dtype=np.uint64))


def test_a_threshold_is_left_out_of_the_tail_that_judges_it() -> None:
    """Ten certain documents score 20, 18, ... 2, and one beyond them that is not certain 0; the relevant one scores 15.

    The tail of all but the last two: the 8th best is 6, the excess over it 14 + 12 + ... + 2 = 56, over 7 of them 8. There are
    no other queries: the common scale is 8, too, and scale = (56 + 3 * 8) / (7 + 3) = 8.
    """
    scores = sorted([15.0, *np.arange(20.0, 0.0, -2.0), 0.0], reverse=True)
    certain = range(len(scores) - 1)
    found = hand_made(scores, certain, scores.index(15.0))
    expected = dict(zip((scores[rank] for rank in found.rank), np.exp(found.pool_tail.astype(np.float64)), strict=True))
    # The relevant one is in no tail: 8 exp(-(15 - 6) / 8) = 2.597. With nothing left out the best would have 8 exp(-14 / 8).
    assert expected[15.0] == pytest.approx(8 * math.exp(-9 / 8), rel=1e-5)
    # Without the best: 18, ... 4. The excess over 4 is 14 + 12 + ... + 2 = 56 again: 8 exp(-(20 - 4) / 8) = 1.083.
    assert expected[20.0] == pytest.approx(8 * math.exp(-2), rel=1e-5)
    # Without 10: 20, 18, 16, 14, 12, 8, 6, 4. The excess is 16 + 14 + 12 + 10 + 8 + 4 + 2 = 66, scale (66 + 24) / 10 = 9.
    assert expected[10.0] == pytest.approx(8 * math.exp(-6 / 9), rel=1e-5)
    # Without 6: 20, 18, ... 8, 4. The excess is 16 + 14 + ... + 4 = 70, scale (70 + 24) / 10 = 9.4.
    assert expected[6.0] == pytest.approx(8 * math.exp(-2 / 9.4), rel=1e-5)
    assert expected[4.0] == pytest.approx(8)  # below the tail they are counted, itself not


@pytest.mark.parametrize(("factor", "shift"), [(20.0, 0.0), (0.05, 0.0), (1.0, 7.0)])
def test_the_scale_of_a_querys_scores_changes_nothing(factor: float, shift: float) -> None:
    given = collection(0, num_documents=600, num_queries=20)
    scores = np.round(training(given, 1)[0], 3)
    moved = scores.copy()
    moved[::2] = moved[::2] * factor + shift
    before, after = history_of(given, [scores, moved], pool_and_rest(given, 300, seed=0))
    assert_array_equal(after.document, before.document)
    np.testing.assert_allclose(after.pool_tail, before.pool_tail, atol=1e-3)
    np.testing.assert_allclose(after.rest_tail, before.rest_tail, atol=1e-3)


def test_a_fold_is_judged_by_documents_of_other_folds_alone() -> None:
    given, fold = collection(0, num_documents=600, num_queries=20), 2
    sample = pool_and_rest(given, 300, seed=0)
    chance = np.zeros(given.num_documents, dtype=np.bool_)
    chance[sample.ordinals[sample.inclusion < 1]] = True
    (scores,) = training(given, 1)
    lowered = scores.copy()
    lowered[:, chance & (given.id_hash % NUM_FOLDS == fold)] = -100
    before, after = history_of(given, [scores, lowered], sample)
    rows, same_rows = np.flatnonzero(before.gain > 0), np.flatnonzero(after.gain > 0)  # in the same order, at other ranks
    assert before.outranking[0, fold, rows].sum() > 20
    assert after.outranking[0, fold].max() == 0
    assert_array_equal(after.outranking[0, :fold, same_rows], before.outranking[0, :fold, rows])
    assert_array_equal(after.rest_tail[0, fold, same_rows], before.rest_tail[0, fold, rows])
    assert not np.array_equal(after.rest_tail[0, 0, same_rows], before.rest_tail[0, 0, rows])


@pytest.mark.parametrize(
    ("counts", "possible"),
    [
        ({1.0: 500}, False),
        ({1.0: 500, 0.1: 39}, False),
        ({1.0: 1, 0.1: 40}, True),
        ({0.1: 40}, True),
        ({1.0: 500, 0.1: 400, 1 / 3: 39}, False),
        ({1.0: 500, 0.1: 40, 1 / 3: 40}, True),
    ],
)
def test_a_sample_can_be_estimated_with_forty_documents_behind_every_probability_under_one(
    counts: dict[float, int], possible: bool
) -> None:
    inclusion: Float64 = np.repeat(list(counts), list(counts.values()))
    assert can_be_estimated(sample_of(np.random.default_rng(0).permutation(inclusion))) is possible
