"""What full-corpus rankings of some checkpoints change for the others, some of it worked out by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dr_validate.estimator.estimate import Estimated, best_weights, differences, estimate
from dr_validate.metrics.gains import means
from dr_validate.values import Float32, Float64
from tests.estimator.synthetic import (
    Collection,
    collection,
    everything,
    history_of,
    pool_and_rest,
    ranked,
    training,
)

TOP_K = 200
METRIC = "mrr@10"
NOTHING: tuple[dict[int, float] | None, ...] = (None, {})


@pytest.fixture(scope="module")
def given_() -> Collection:
    return collection(1)


@pytest.fixture(scope="module")
def checkpoints(given_: Collection) -> list[Float32]:
    return training(given_, 6)


def full(given_: Collection, scores: Float32) -> float:
    """The metric of a checkpoint on the full corpus."""
    documents = ranked(scores, everything(given_.num_documents), given_.id_hash, TOP_K).documents
    return means([METRIC], documents, given_.qrels)[METRIC]


def values(estimates: Sequence[Estimated]) -> Float64:
    return np.array([each.value for each in estimates])


def test_one_baseline_takes_bias_from_the_others() -> None:
    """Of a small sample, whose corrections are large, over scores that are independent normal numbers."""
    before, after = [], []
    for seed in range(4):
        given_ = collection(seed)
        checkpoints = training(given_, 6)
        truth = values(estimate(history_of(given_, checkpoints, everything(given_.num_documents)), given_.qrels, METRIC, TOP_K))
        history = history_of(given_, checkpoints, pool_and_rest(given_, 300, seed=0), TOP_K)
        known = {3: full(given_, checkpoints[3])}
        others = [place for place in range(6) if place != 3]
        plain = estimate(history, given_.qrels, METRIC, TOP_K)
        learnt = estimate(history, given_.qrels, METRIC, TOP_K, known)
        before.append((values(plain) - truth)[others].mean())
        after.append((values(learnt) - truth)[others].mean())
        for each in learnt:
            assert each.interval[0] <= each.value <= each.interval[1] <= each.naive + 1e-12
    assert np.abs(before).mean() > 0.01
    assert np.abs(after).mean() < 0.5 * np.abs(before).mean()


def test_a_checkpoint_is_not_told_its_own_value(given_: Collection, checkpoints: Sequence[Float32]) -> None:
    history = history_of(given_, checkpoints, pool_and_rest(given_, 600, seed=0), TOP_K)
    known = {place: full(given_, checkpoints[place]) for place in (1, 4)}
    alone = estimate(history[:1], given_.qrels, METRIC, TOP_K, {0: full(given_, checkpoints[0])})
    assert_allclose(values(alone), values(estimate(history[:1], given_.qrels, METRIC, TOP_K)), rtol=0, atol=0)
    both = estimate(history, given_.qrels, METRIC, TOP_K, known)
    lies = estimate(history, given_.qrels, METRIC, TOP_K, {**known, 4: 0.0})
    assert lies[4].value == both[4].value
    assert lies[0].value != both[0].value


def test_without_baselines_nothing_changes(given_: Collection, checkpoints: Sequence[Float32]) -> None:
    history = history_of(given_, checkpoints, pool_and_rest(given_, 600, seed=0), TOP_K)
    plain, empty = (estimate(history, given_.qrels, METRIC, TOP_K, known) for known in NOTHING)
    assert_allclose(values(plain), values(empty), rtol=0, atol=0)


def test_one_baseline_multiplies_corrections_by_what_was_right_for_its_own() -> None:
    """Where all errors are shared, each is known by that of the baseline: errors 0.04 of 0.2 and x of 0.1 make x = 0.02."""
    weights = best_weights(np.outer([0.2, 0.1, 0.3], [0.2, 0.1, 0.3]), np.eye(3), [0])
    assert_allclose(weights @ np.array([0.04, 0, 0]), np.array([0, 0.02, 0.06]), atol=1e-12)


def test_a_baseline_says_little_where_errors_are_each_ones_own() -> None:
    """Variances 0.04, of which 0.01 is shared: a quarter of the known error is expected of the other."""
    covariance = np.array([[0.04, 0.01], [0.01, 0.04]])
    assert_allclose(best_weights(covariance, np.eye(2), [0]), np.array([[0, 0], [0.25, 0]]), atol=1e-12)


def test_two_baselines_are_weighed_by_how_near_they_are() -> None:
    """Of three errors with variance 1, the third is correlated with the first (0.8) more than with the second (0.4), those two
    by 0.5: (0.8 - 0.5 * 0.4) / 0.75 = 0.8 and (0.4 - 0.5 * 0.8) / 0.75 = 0."""
    covariance = np.array([[1, 0.5, 0.8], [0.5, 1, 0.4], [0.8, 0.4, 1]])
    weights = best_weights(covariance, np.eye(3), [0, 1])
    assert_allclose(weights, np.array([[0, 0.5, 0], [0.5, 0, 0], [0.8, 0, 0]]), atol=1e-12)


def test_the_full_ranking_of_a_copy_moves_neither(given_: Collection, checkpoints: Sequence[Float32]) -> None:
    history = history_of(given_, [*checkpoints[:3], checkpoints[2]], pool_and_rest(given_, 600, seed=0), TOP_K)
    plain = estimate(history, given_.qrels, METRIC, TOP_K)
    told = estimate(history, given_.qrels, METRIC, TOP_K, {2: full(given_, checkpoints[2])})
    assert told[2].value == told[3].value == plain[2].value
    (none,) = differences(told[2], [told[3]])
    assert (none.low, none.high) == (0, 0)
    assert told[0].value != plain[0].value
