"""Tables of one spec: which rows are kept where there are more than a dashboard takes, and what stands in them."""

from dataclasses import replace
from pathlib import Path

import pytest

from dr_validate.tracker.rows import MAX_CHANGES, alert_of, table_of_checkpoints, table_of_queries
from dr_validate.values import MAX_ROWS, Estimate, Report
from tests.report.training import Training
from tests.tracker.watching import report


def test_the_newest_thousand_rows_are_kept_not_the_oldest() -> None:
    assert MAX_ROWS == 1_000
    history = [report(step) for step in range(1, 1_004)]
    steps = [row[0] for row in table_of_checkpoints(history).rows]
    assert steps == list(range(4, 1_004))  # the first three have to go
    assert [row[0] for row in table_of_checkpoints(history[:1_000]).rows] == list(range(1, 1_001))


def test_the_queries_that_changed_most_are_kept_on_both_sides(tmp_path: Path) -> None:
    training, queries = Training(tmp_path), 2 * MAX_CHANGES + 3
    best, newest = report(100, 0.6), report(200, 0.5)
    training.queries(best, {"mrr@10": [0.5] * (queries + 1)})
    changes = [(n - queries // 2 - 0.5) / 1_000 for n in range(queries)]  # from the largest loss to the largest gain
    training.queries(newest, {"mrr@10": [*(0.5 + change for change in changes), 0.5]})
    rows = table_of_queries([best, newest], "mrr@10", tmp_path).rows
    kept = [*range(MAX_CHANGES), *range(queries - MAX_CHANGES, queries)]
    assert [row[0] for row in rows] == [f"q{n}" for n in kept]
    assert [row[2] for row in rows] == pytest.approx([changes[n] for n in kept])
    assert rows[0][5:] == [200, 100]


def test_a_fall_is_told_by_values_that_one_report_sees(tmp_path: Path) -> None:
    def made(step: int, value: float, **estimate: object) -> Report:
        one = report(step, value)
        known = {"mrr@10": Estimate(value=value, low=value - 0.1, high=value + 0.1, naive=1.0)}
        return replace(one, metrics=known, notes={"estimate": {"metric": "mrr@10", "sample": "s", **estimate}})

    best = made(100, 0.6)
    digest = best.checkpoint.digest
    fallen = made(200, 0.5, as_of=1.0, differences={digest: {"low": -0.1, "high": -0.1, "population": [-0.13, -0.07]}})
    seen = {digest: {"mrr@10": [0.6, 0.5, 0.7]}, fallen.checkpoint.digest: {"mrr@10": [0.59, 0.5, 0.7]}}
    latest = made(300, 0.4, as_of=2.0, earlier={"s": seen})  # came before the alert could be told
    assert "minus the best, step 100: -0.1000 [-0.1300, -0.0700]" in str(alert_of(fallen, [best, fallen], tmp_path))
    assert alert_of(fallen, [best, fallen, latest], tmp_path) is None  # -0.01 [-0.04, +0.02]
