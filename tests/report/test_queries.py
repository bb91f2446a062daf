"""Which queries moved, and what they say."""

import logging

import numpy as np
import pytest

from dr_validate.report.gather import movement
from tests.report.training import FULL, Training, bound


def test_the_change_is_from_the_best_to_the_last_checkpoint_query_by_query(training: Training) -> None:
    training.sample(bound(0.2), bound(0.4), bound(0.3))
    first, best, last = training.ledger.reports("a" * 16)
    for report, values in ((first, [1.0, 1.0]), (best, [0.2, 0.5, None, 0.5]), (last, [0.7, 0.25, 0.1, 0.5])):
        training.queries(report, {"mrr@10": values, "ndcg@10": [0.9] * len(values)})
    found = movement(training.section(), training.state_dir)
    assert found and (found.before, found.after) == (best, last)
    assert found.query_ids == ("q0", "q1", "q3")  # q2 has no relevant document in one of them
    assert found.changes == pytest.approx([0.5, -0.25, 0.0])
    assert ([*found.largest(1)], [*found.largest(-1)]) == ([0], [1])
    assert found.interval is None  # three queries say nothing about others


def test_the_interval_of_the_mean_change_is_that_of_a_hand_calculation_from_ten_queries_on(training: Training) -> None:
    training.full(0.2, 0.4)
    for queries, expected in ((9, None), (10, (0.1346679, 0.2653321))):
        # five changes of 0.1, five of 0.3: mean 0.2, standard deviation 0.1054093; 1.959964 * 0.1054093 / sqrt(10) = 0.0653321
        for report, change in zip(training.ledger.reports(FULL), (0.0, 0.1), strict=True):
            training.queries(report, {"mrr@10": [0.25 + change * (1 if n % 2 else 3) for n in range(queries)]})
        found = movement(training.section(), training.state_dir)
        assert found
        assert found.interval == (expected and pytest.approx(expected, abs=1e-6))


def test_where_the_last_is_the_best_the_change_is_from_the_one_before_and_full_values_come_first(training: Training) -> None:
    training.sample(bound(0.2), bound(0.3))
    training.full(0.1, 0.2)
    rng = np.random.default_rng(0)
    for report in (*training.ledger.reports("a" * 16), *training.ledger.reports(FULL)):
        training.queries(report, {"mrr@10": rng.random(50).tolist()})
    found = movement(training.section(), training.state_dir)
    assert found and (found.before.checkpoint.step, found.after.checkpoint.step) == (100, 200)
    assert found.strategy.spec == FULL
    reach = 1.96 * found.changes.std(ddof=1) / 50**0.5
    assert found.interval == pytest.approx((found.changes.mean() - reach, found.changes.mean() + reach), rel=1e-4)


def test_a_file_that_is_missing_or_broken_costs_only_this_part(training: Training, caplog: pytest.LogCaptureFixture) -> None:
    training.sample(bound(0.2), bound(0.3))
    assert movement(training.section(), training.state_dir) is None
    for report in training.ledger.reports("a" * 16):
        path = training.queries(report, {"mrr@10": [0.5, 0.5]})
    path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert movement(training.section(), training.state_dir) is None
    assert f"{path}: cannot be read" in caplog.text
