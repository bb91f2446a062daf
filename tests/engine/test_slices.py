"""Who does which slice, and tops of parts made the top of all."""

from typing import Any

import numpy as np

from dr_validate.engine.local import Slice
from dr_validate.engine.ray_ranking import Dealer, merge
from dr_validate.values import TopK

PIECES = [Slice(block=n // 4, start=n * 10, stop=n * 10 + 10) for n in range(12)]


def test_a_worker_has_blocks_to_itself_until_none_is_untouched() -> None:
    dealer = Dealer(PIECES)
    dealt = [(worker, dealer.next(worker)) for worker in [0, 1] * 3 + [0] * 7]
    blocks = [(worker, piece.block) for worker, piece in dealt if piece is not None]
    assert blocks == [(0, 0), (1, 1)] * 3 + [(0, 0), (0, 2), (0, 2), (0, 2), (0, 2), (0, 1)]
    assert [piece for _, piece in dealt if piece is not None][-1] == PIECES[7]  # its last one
    assert sorted(piece.start for _, piece in dealt if piece is not None) == [piece.start for piece in PIECES]
    assert len(dealer) == 0


def test_what_comes_next_is_known_and_what_a_lost_worker_had_comes_first() -> None:
    dealer = Dealer(PIECES)
    assert dealer.following("a") == PIECES[0]
    assert (dealer.next("a"), dealer.following("a"), dealer.following("b")) == (PIECES[0], PIECES[1], PIECES[4])
    assert dealer.next("b") == PIECES[4]
    dealer.give_back("a", [PIECES[0]])
    assert len(dealer) == 11
    assert [dealer.next("c") for _ in range(5)] == [*PIECES[:4], PIECES[8]]
    assert Dealer([]).next("a") is None


def test_merging_keeps_the_order_of_ties_of_both_signs_and_of_empty_places() -> None:
    chance = np.random.default_rng(3)
    tie_rank = chance.permutation(600)
    scores = chance.integers(-3, 4, 600).astype(np.float32) / 8
    whole = best_of(np.arange(600), scores, tie_rank, 300)
    thirds = np.array_split(chance.permutation(600), 3)
    merged = merge([best_of(part, scores, tie_rank, 300) for part in thirds], tie_rank)
    np.testing.assert_array_equal(merged.documents, whole.documents)
    np.testing.assert_array_equal(merged.scores, whole.scores)
    few = merge([best_of(np.arange(start, start + 2), scores, tie_rank, 300) for start in (0, 2)], tie_rank)
    assert (few.documents[0] >= 0).sum() == 4
    assert np.all(few.documents[0, 4:] == -1)
    assert np.all(few.scores[0, 4:] == -np.inf)


def test_a_document_counts_once_however_often_it_comes_and_whichever_score_it_was_given() -> None:
    chance = np.random.default_rng(5)
    tie_rank = chance.permutation(200)
    scores = chance.integers(-3, 4, 200).astype(np.float32) / 8
    whole = best_of(np.arange(200), scores, tie_rank, 50)
    parts = [chance.choice(200, 120, replace=False) for _ in range(9)]
    missing = np.setdiff1d(np.arange(200), np.concatenate(parts))
    found = best_of(missing, scores, tie_rank, 50)
    for part in [*parts, parts[0]]:
        found = merge([found, best_of(part, scores, tie_rank, 50)], tie_rank)
    np.testing.assert_array_equal(found.documents, whole.documents)
    np.testing.assert_array_equal(found.scores, whole.scores)
    a_little_less = np.nextafter(scores, np.float32(-np.inf))  # as another device may round
    again = merge([best_of(np.arange(200), a_little_less, tie_rank, 50), whole], tie_rank)
    np.testing.assert_array_equal(again.documents, whole.documents)
    np.testing.assert_array_equal(again.scores, whole.scores)


def best_of(documents: Any, scores: Any, tie_rank: Any, top_k: int) -> TopK:
    order = documents[np.lexsort((tie_rank[documents], -scores[documents]))][:top_k]
    found = np.full((1, top_k), -1)
    found[0, : len(order)] = order
    values = np.full((1, top_k), -np.inf, dtype=np.float32)
    values[0, : len(order)] = scores[order]
    return TopK(documents=found, scores=values)
