"""What trackers are told: the findings of one training run under one spec."""

import dataclasses

from dr_validate.report.verdict import fidelity_table, findings, pairs_table
from dr_validate.values import MAX_ROWS, Agreement, Findings, Report
from tests.report.training import FULL, SAMPLE, Training, bound, exact, within

NAMES = {"spec": SAMPLE, "full_spec": FULL, "training_run": "t"}


def test_each_training_run_has_its_own(training: Training) -> None:
    training.strategy()
    training.strategy(FULL, "full")
    for run, value in (("t1", 0.25), ("t2", 0.5)):
        training.done(100, within(value, 0.125), run=run)
        training.done(100, exact(value), FULL, run=run)
    for run, value in (("t1", 0.25), ("t2", 0.5)):
        found = findings(training.ledger, NAMES, run)
        assert [row[3] for row in found.tables["sampled_against_full"].rows] == [value]
        assert found.verdict.startswith(f"One checkpoint so far: step 100, mrr@10 {value:.3f}")
    assert findings(training.ledger, NAMES, "t") == findings(training.ledger, NAMES, "t3") == Findings()


def test_checkpoints_that_do_not_say_whose_they_are_belong_to_the_run_of_the_source(training: Training) -> None:
    training.sample(within(0.25, 0.125))
    assert findings(training.ledger, NAMES, "t").verdict.startswith("One checkpoint so far")
    assert findings(training.ledger, NAMES, "t1") == Findings()


def test_the_verdict_is_about_the_strategy_of_the_run_and_the_table_about_all(training: Training) -> None:
    training.sample(within(0.25, 0.125), within(0.5, 0.125))
    training.full(0.25, 0.5)
    other = "b" * 16
    training.strategy(other, "run_pool", encoded=1000)
    training.done(100, bound(0.75), other)
    for spec, first in ((SAMPLE, "random 5%"), (other, "run_pool 10%")):
        found = findings(training.ledger, {**NAMES, "spec": spec}, "t")
        strategies = [str(row[0]) for row in found.tables["error_and_cost"].rows]
        assert strategies[0] == first and sorted(strategies) == ["full corpus", "random 5%", "run_pool 10%"]
        assert {row[4] for row in found.tables["sampled_against_full"].rows} == ({0.125, 0.375} if spec == SAMPLE else {0.0})
    assert "The sample has 10% of the documents" not in findings(training.ledger, NAMES, "t").verdict
    inside = [row[-1] for row in findings(training.ledger, {**NAMES, "spec": other}, "t").tables["sampled_against_full"].rows]
    assert inside == [None]  # an upper bound is no interval


def test_a_full_corpus_without_a_sample_has_a_verdict_and_no_tables_to_compare(training: Training) -> None:
    training.full(0.25, 0.5)
    found = findings(training.ledger, {**NAMES, "spec": FULL}, "t")
    assert "Best of 2 checkpoints: step 200" in found.verdict
    assert not any(table.rows for table in found.tables.values())
    assert findings(training.ledger, {**NAMES, "full_spec": "c" * 16}, "t") == Findings()


def test_a_long_training_shows_its_newest_checkpoints(training: Training) -> None:
    training.sample(within(0.25, 0.125))
    training.full(0.25)
    section = training.section()
    (strategy,), full = section.sampled, section.full
    assert full

    def at_steps(report: Report, steps: range) -> tuple[Report, ...]:
        made = [dataclasses.replace(report.checkpoint, step=step, digest=f"sha256:{step:04x}") for step in steps]
        return tuple(dataclasses.replace(report, checkpoint=checkpoint) for checkpoint in made)

    last = MAX_ROWS + 3
    agreement = Agreement(checkpoints=2, metric="mrr@10", kendall_tau=1.0, rmse=0.1, bias=0.1, regret=0.0)
    many = dataclasses.replace(strategy, reports=at_steps(strategy.reports[0], range(1, last + 1)))
    for known, expected in ((last, range(4, last + 1)), (5, range(1, 6))):  # baselines of the first five alone are shown, too
        exact_ones = dataclasses.replace(full, reports=at_steps(full.reports[0], range(1, known + 1)))
        table = pairs_table(dataclasses.replace(section, full=exact_ones), [many])
        assert [row[0] for row in table.rows] == list(expected)
    agreeing = [dataclasses.replace(report, agreement=agreement) for report in many.reports]
    assert [row[0] for row in fidelity_table(agreeing[::-1]).rows] == list(range(4, last + 1))
