"""The numbers about fidelity: the same as everywhere else, with intervals that do not promise too much."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from dr_validate.fidelity.comparison import compare, kendall_tau_b, tau_interval
from dr_validate.report.verdict import Candidate, smallest_errors
from tests.report.training import FULL, SAMPLE, Training, bound, within


def test_tau_is_scipys_with_and_without_ties() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 3, 10, 60):
        x, y = rng.integers(0, 6, size).astype(float), rng.integers(0, 6, size) + rng.random(size).round(1)
        expected = float(kendalltau(x, y).statistic)
        found = kendall_tau_b(x, y)
        assert (np.isnan(expected) and found is None) or found == pytest.approx(expected)


def test_tau_is_undefined_where_one_side_is_constant() -> None:
    assert kendall_tau_b(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])) is None


def test_intervals_that_hold_the_full_value_are_counted_and_bounds_are_not(training: Training) -> None:
    training.sample(within(0.30, 0.02), within(0.40, 0.02), bound(0.5))
    training.full(0.31, 0.45, 0.2)
    found = compare(training.ledger.reports(SAMPLE), training.ledger.reports(FULL), "mrr@10")
    assert found and (found.covered, found.with_interval) == (1, 2)
    means = [replace(one, notes={"collections": {"nq": "1", "fiqa": "2"}}) for one in training.ledger.reports(SAMPLE)]
    found = compare(means, training.ledger.reports(FULL), "mrr@10")
    assert found and found.with_interval == 0  # the intervals of a mean are for other queries, and wider


def test_a_perfect_order_is_not_called_certain_and_few_checkpoints_have_no_interval() -> None:
    assert tau_interval(1.0, 4) is None
    five, twenty = tau_interval(1.0, 5), tau_interval(1.0, 20)
    assert five and twenty
    assert five[0] < 0 < 0.9 < twenty[0] < 1
    assert five[1] == twenty[1] == 1.0
    middle = tau_interval(0.0, 50)
    assert middle and middle[0] == pytest.approx(-middle[1])


def test_the_interval_of_tau_is_that_of_a_hand_calculation() -> None:
    # 20 checkpoints: a swapped pair is 2 / 190 = 0.0105263; the reach is 1.96 * sqrt(0.437 / 16) = 0.3239193
    # tanh(atanh(0.4894737) - 0.3239193) and tanh(atanh(0.5105263) + 0.3239193)
    assert tau_interval(0.5, 20) == pytest.approx((0.2083527, 0.7100877), abs=1e-6)


@pytest.mark.parametrize(("checkpoints", "tau"), [(6, 0.9), (12, 0.9), (12, 0.5), (30, 0.8)])
def test_the_interval_of_tau_holds_the_truth_in_at_least_nine_cases_of_ten(checkpoints: int, tau: float) -> None:
    rng = np.random.default_rng(2)
    correlation = np.sin(np.pi / 2 * tau)  # of a normal pair with this tau
    held = 0
    for _ in range(300):
        x, noise = rng.standard_normal((2, checkpoints))
        found = kendall_tau_b(x, correlation * x + np.sqrt(1 - correlation**2) * noise)
        assert found is not None
        ends = tau_interval(found, checkpoints)
        assert ends is not None
        held += ends[0] <= tau <= ends[1]
    assert held >= 270


def test_equal_errors_have_no_single_winner_and_three_sizes_make_groups_of_their_own(training: Training) -> None:
    training.sample(bound(0.3), bound(0.4))
    training.full(0.2, 0.3)
    found = compare(training.ledger.reports(SAMPLE), training.ledger.reports(FULL), "mrr@10")
    assert found
    better, for_each, over = replace(found, rmse=0.05), "for a checkpoint", "over 2 checkpoints"
    sizes = {"a": (1_000, found), "b": (1_000, found), "c": (2_000, found), "d": (2_040, better), "e": (2_041, better)}
    candidates = [Candidate(name=name, documents=size, comparison=known) for name, (size, known) in sizes.items()]
    one, two = smallest_errors(candidates)
    assert one == f"Of 2 strategies with 1,000 documents {for_each} a and b have the smallest error (RMSE 0.100 {over})."
    assert two == f"Of 2 strategies with 2,000 to 2,040 documents {for_each} d has the smallest error (RMSE 0.050 {over})."
