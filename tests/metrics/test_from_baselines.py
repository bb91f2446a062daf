"""What full-corpus rankings of some checkpoints change for the others."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dr_validate.metrics.crossings import Crossings
from dr_validate.metrics.estimate import Estimated, estimate
from dr_validate.metrics.from_baselines import left_out_above, taught
from dr_validate.values import Float32, Float64, Int64
from tests.metrics.synthetic import (
    Collection,
    collection,
    everything,
    history_of,
    pool_and_rest,
    ranked,
    scores_of,
    training,
)

TOP_K = 200
METRIC = "mrr@10"
NOTHING: tuple[dict[int, Int64] | None, ...] = (None, {})


@pytest.fixture(scope="module")
def given_() -> Collection:
    return collection(1)


@pytest.fixture(scope="module")
def checkpoints(given_: Collection) -> list[Float32]:
    return training(given_, 6)


def above(given_: Collection, scores: Float32, met: Crossings) -> Int64:
    return left_out_above(met, ranked(scores, everything(given_.num_documents), given_.id_hash, TOP_K))


def values(estimates: Sequence[Estimated]) -> Float64:
    return np.array([each.value for each in estimates])


def test_documents_above_are_counted_as_by_hand(given_: Collection, checkpoints: Sequence[Float32]) -> None:
    sample, scores = pool_and_rest(given_, 600, seed=0), checkpoints[2]
    met = history_of(given_, [scores], sample, TOP_K)[0]
    found = above(given_, scores, met)
    left_out = np.setdiff1d(np.arange(given_.num_documents), sample.ordinals)
    reached = 0
    for row in range(0, len(found), 7):
        threshold = scores[met.query[row], met.document[row]]
        exact = int((scores[met.query[row], left_out] > threshold).sum())
        if met.rank[row] + exact < TOP_K:
            assert found[row] == exact
            reached += 1
        else:
            assert found[row] == TOP_K - met.rank[row]  # at least so many
    assert reached > 50


def test_a_ranking_in_several_blocks_counts_the_same(
    given_: Collection, checkpoints: Sequence[Float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    met = history_of(given_, checkpoints[:1], pool_and_rest(given_, 600, seed=0), TOP_K)[0]
    whole = above(given_, checkpoints[0], met)
    monkeypatch.setattr("dr_validate.metrics.from_baselines.CELLS", 10 * TOP_K)
    assert_array_equal(above(given_, checkpoints[0], met), whole)


def test_one_baseline_takes_most_of_the_bias_from_the_others() -> None:
    """Where the model corrects too little: a deep pool, and scores that are independent normal numbers."""
    before, after = [], []
    for seed in range(4):
        given_ = collection(seed)
        checkpoints = training(given_, 6)
        truth = values(estimate(history_of(given_, checkpoints, everything(given_.num_documents)), given_.qrels, METRIC, TOP_K))
        history = history_of(given_, checkpoints, pool_and_rest(given_, 600, seed=0), TOP_K)
        known = {3: above(given_, checkpoints[3], history[3])}
        others = [place for place in range(6) if place != 3]
        plain = estimate(history, given_.qrels, METRIC, TOP_K)
        learnt = estimate(history, given_.qrels, METRIC, TOP_K, known)
        before.append((values(plain) - truth)[others].mean())
        after.append((values(learnt) - truth)[others].mean())
        for each in learnt:
            assert each.interval[0] <= each.value <= each.interval[1] <= each.naive + 1e-12
    assert np.abs(before).mean() > 0.01
    assert np.abs(after).mean() < np.abs(before).mean() / 2


def test_a_checkpoint_is_not_told_its_own_value(given_: Collection, checkpoints: Sequence[Float32]) -> None:
    history = history_of(given_, checkpoints, pool_and_rest(given_, 600, seed=0), TOP_K)
    tables = {place: above(given_, checkpoints[place], history[place]) for place in (1, 4)}
    alone = estimate(history[:1], given_.qrels, METRIC, TOP_K, {0: above(given_, checkpoints[0], history[0])})
    assert_allclose(values(alone), values(estimate(history[:1], given_.qrels, METRIC, TOP_K)), rtol=0, atol=0)
    both = estimate(history, given_.qrels, METRIC, TOP_K, tables)
    lies = estimate(history, given_.qrels, METRIC, TOP_K, {**tables, 4: np.zeros_like(tables[4])})
    assert lies[4].value == both[4].value
    assert lies[0].value != both[0].value


def test_equal_checkpoints_are_drawn_together_without_what_one_of_them_taught() -> None:
    given_ = collection(2)
    checkpoints = [scores_of(given_, 0.6, seed) for seed in range(6)]
    history = history_of(given_, checkpoints, pool_and_rest(given_, 600, seed=0), TOP_K)
    table = above(given_, checkpoints[3], history[3])
    told = [estimate(history, given_.qrels, METRIC, TOP_K, {3: each}) for each in (table, np.zeros_like(table))]
    assert told[0][3].value == told[1][3].value
    assert told[0][0].value != told[1][0].value


def test_a_baseline_without_relevant_documents_teaches_nothing(given_: Collection, checkpoints: Sequence[Float32]) -> None:
    history = history_of(given_, checkpoints, pool_and_rest(given_, 600, seed=0), TOP_K)
    blind = replace(history[0], gain=np.zeros_like(history[0].gain))  # as good as random
    plain, told = (
        estimate([blind, *history[1:]], given_.qrels, METRIC, TOP_K, known)
        for known in (None, {0: above(given_, checkpoints[0], history[0])})
    )
    for one, other in zip(plain[1:], told[1:], strict=True):
        assert (one.shared, one.own) == (other.shared, other.own)


def test_without_baselines_nothing_changes(given_: Collection, checkpoints: Sequence[Float32]) -> None:
    history = history_of(given_, checkpoints, pool_and_rest(given_, 600, seed=0), TOP_K)
    plain, empty = (estimate(history, given_.qrels, METRIC, TOP_K, known) for known in NOTHING)
    assert_allclose(values(plain), values(empty), rtol=0, atol=0)


def test_a_poor_baseline_teaches_the_poor_ones_only(given_: Collection, checkpoints: Sequence[Float32]) -> None:
    history = list(history_of(given_, checkpoints, pool_and_rest(given_, 600, seed=0), TOP_K))
    history[0] = replace(history[0], quality=0.74 * history[5].quality)
    history[1] = replace(history[1], quality=0.98 * history[0].quality)
    known = {0: above(given_, checkpoints[0], history[0])}
    calibrations = taught(history, 10, known)
    assert calibrations[1].baselines == 1
    assert calibrations[5].baselines == calibrations[0].baselines == 0
    assert_array_equal(calibrations[5].coefficients, calibrations[0].coefficients)
    assert not np.array_equal(calibrations[5].coefficients, calibrations[1].coefficients)
    better = {0: known[0], 5: above(given_, checkpoints[5], history[5])}
    assert [each.baselines for each in taught(history, 10, better)][:2] == [1, 2]
