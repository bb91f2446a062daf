"""From the ledger to sections: which Report counts, what belongs together, what is told apart; and which queries moved."""

import logging
from pathlib import Path

import numpy as np
import pytest

from dr_validate.report.gather import movement
from tests.report.training import FULL, SAMPLE, Training, bound, exact, within

OTHER = "b" * 16


def test_what_was_skipped_first_and_validated_later_counts_once(training: Training) -> None:
    training.strategy()
    training.ended(100, "skipped", "incomplete", at="2026-11-21T03:00:00Z")
    training.done(100, bound(0.3), at="2026-11-21T04:00:00Z")
    (sampled,) = training.section().sampled
    assert [(report.status, report.checkpoint.step) for report in sampled.reports] == [("done", 100)]


def test_what_waits_for_another_attempt_is_unfinished_and_a_withdrawn_failure_is_gone(training: Training) -> None:
    training.strategy()
    failed = training.ended(100, "failed", "out of memory")
    training.ledger.retry(failed.checkpoint.digest, SAMPLE)
    training.ledger.begin(failed.checkpoint, SAMPLE, "2026-11-21T05:00:00Z")
    training.ledger.retry_later(failed.checkpoint.digest, SAMPLE, "out of memory again", "2026-11-21T05:01:00Z")
    (sampled,) = training.section().sampled
    assert not sampled.reports
    assert [(state.state, state.error) for state in sampled.unfinished] == [("waiting", "out of memory again")]


def test_each_training_run_has_a_section_and_what_names_none_is_of_the_only_one(training: Training) -> None:
    training.strategy()
    training.done(100, bound(0.3), run="first")
    training.ended(50, "skipped", "incomplete")
    assert [len(strategy.reports) for strategy in training.section().sampled] == [2]
    training.done(100, bound(0.4), run="second", name="other-100")
    titles = [section.title for section in training.sections()]
    assert titles == ["vaswani, first", "vaswani, second", "vaswani"]  # whose the skipped one is, is not known any more


def test_a_training_without_a_name_is_of_the_named_one_only_where_both_are_in_one_folder(training: Training) -> None:
    training.strategy()
    training.done(100, bound(0.3), folder="/x/cold")  # before it got its name
    training.done(200, bound(0.4), run="cold", folder="/x/cold")
    assert [len(strategy.reports) for strategy in training.section().sampled] == [2]
    training.done(100, bound(0.6), folder="/x/output")
    training.done(200, bound(0.5), folder="/x/output")
    found = {
        section.title: [report.metrics["mrr@10"].value for report in section.sampled[0].done] for section in training.sections()
    }
    assert found == {"vaswani, cold": [0.3, 0.4], "vaswani": [0.6, 0.5]}


def test_one_folder_under_two_paths_is_one_training(training: Training, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "output")
    training.strategy()
    training.done(100, bound(0.3), folder=f"{tmp_path}/link")
    training.done(150, bound(0.3), folder=f"{tmp_path}/elsewhere/../output")
    training.done(200, bound(0.4), run="cold", folder=f"{tmp_path}/output")
    assert [len(strategy.reports) for strategy in training.section().sampled] == [3]


@pytest.mark.parametrize("runs", [("", "cold"), ("cold", "")])
def test_a_final_model_is_of_the_training_whose_checkpoints_lie_in_it(training: Training, runs: tuple[str, str]) -> None:
    training.strategy()
    training.done(300, bound(0.3), folder="/x", run=runs[0])  # /x/300
    training.done(200, bound(0.4), folder="/x/300", run=runs[1])
    assert [len(strategy.reports) for strategy in training.section().sampled] == [2]
    training.done(400, bound(0.5), folder="/x")  # a neighbour
    assert [section.run for section in training.sections()] == ["cold", ""]


def test_two_samples_of_one_kind_are_told_apart_and_the_full_corpus_is_its_own(training: Training) -> None:
    for spec in (SAMPLE, OTHER):
        training.strategy(spec)
        training.done(100, bound(0.3), spec)
    training.full(0.1)
    section = training.section()
    assert {strategy.name for strategy in section.sampled} == {"random 5% (aaaaaa)", "random 5% (bbbbbb)"}
    assert section.full and (section.full.name, section.full.spec, section.full.fraction) == ("full corpus", FULL, 1.0)


def test_the_strategy_with_most_checkpoints_comes_first_then_the_one_with_the_smaller_error(training: Training) -> None:
    training.full(0.1, 0.2)
    for spec, values in ((SAMPLE, [0.5, 0.6]), (OTHER, [0.11, 0.21]), ("c" * 16, [0.1])):
        training.strategy(spec, f"by-{spec[0]}")
        for number, value in enumerate(values, 1):
            training.done(100 * number, bound(value), spec)
    assert [strategy.name for strategy in training.section().sampled] == ["by-b 5%", "by-a 5%", "by-c 5%"]


def test_one_collection_under_two_lists_of_metrics_has_two_titles(training: Training) -> None:
    training.strategy()
    training.done(100, bound(0.3))
    training.strategy(OTHER, full_spec="e" * 16)
    training.done(100, {"ndcg@10": bound(0.3)}, OTHER)
    assert [section.title for section in training.sections()] == ["vaswani, spec ffffff", "vaswani, spec eeeeee"]


def test_a_spec_without_reports_is_shown_as_nothing_yet(training: Training) -> None:
    training.strategy()
    section = training.section()
    assert (section.strategies, section.metric, section.deciding) == ((), None, None)


def test_metrics_keep_their_order(training: Training) -> None:
    training.strategy()
    training.done(100, {"recall@100": exact(0.5), "mrr@10": exact(0.3)})
    assert training.section().metrics == ("recall@100", "mrr@10")


def test_earlier_values_are_those_that_the_latest_report_sees(training: Training) -> None:
    training.strategy()
    first = training.done(100, within(0.5, 0.1), notes={"estimate": {"sample": "s", "baselines": 0}})
    seen = {first.checkpoint.digest: {"mrr@10": [0.3, 0.25, 0.35, 0.2, 0.4]}}
    training.done(200, within(0.4, 0.05), notes={"estimate": {"sample": "s", "baselines": 1, "earlier": {"s": seen}}})
    (sampled,) = training.section().sampled
    values = [report.metrics["mrr@10"] for report in sampled.done]
    assert (values[0].value, values[0].low, values[0].high) == (0.3, 0.25, 0.35)
    assert values[1] == within(0.4, 0.05)
    assert values[0].naive == within(0.5, 0.1).naive


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
    for queries, expected in ((9, None), (10, (0.1346666, 0.2653334))):
        # five changes of 0.1, five of 0.3: mean 0.2, standard deviation 0.1054093; 1.96 * 0.1054093 / sqrt(10) = 0.0653334
        for report, change in zip(training.ledger.reports(FULL), (0.0, 0.1), strict=True):
            training.queries(report, {"mrr@10": [0.25 + change * (1 if n % 2 else 3) for n in range(queries)]})
        found = movement(training.section(), training.state_dir)
        assert found
        assert found.interval == (expected and pytest.approx(expected, abs=1e-6))


def test_a_change_of_upper_bounds_has_no_interval(training: Training) -> None:
    training.sample(bound(0.2), bound(0.3))
    for report in training.ledger.reports(SAMPLE):
        training.queries(report, {"mrr@10": [report.checkpoint.step / 1000 + n / 100 for n in range(20)]})
    found = movement(training.section(), training.state_dir)
    assert found and found.mean == pytest.approx(0.1) and found.interval is None


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
