"""The verdict: each thing it can say, from a ledger that has it."""

import dataclasses
from dataclasses import dataclass

import pytest

from dr_validate.fidelity.comparison import Comparison
from dr_validate.report.gather import Section, Strategy, movement
from dr_validate.report.verdict import verdict
from dr_validate.values import Report
from tests.report.training import FULL, SAMPLE, Training, bound, exact, within


def said(training: Training) -> str:
    section = training.section()
    return verdict(section, movement(section, training.state_dir)).text


def test_the_best_comes_first_with_its_interval(training: Training) -> None:
    training.sample(within(0.2, 0.01), within(0.312, 0.01), within(0.25, 0.01))
    assert said(training).startswith("Best of 3 checkpoints: step 200 (mrr@10 0.312 [0.302, 0.322]). No other interval reaches")


def test_a_mere_bound_is_called_one(training: Training) -> None:
    training.sample(bound(0.2), bound(0.3))
    text = said(training)
    assert "step 200 (mrr@10 at most 0.300)" in text
    assert "interval" not in text


def test_one_checkpoint_is_not_called_best(training: Training) -> None:
    training.sample(within(0.2, 0.01))
    assert said(training).startswith("One checkpoint so far: step 100, mrr@10 0.200 [0.190, 0.210].")


def test_checkpoints_whose_intervals_overlap_are_named(training: Training) -> None:
    training.sample(within(0.20, 0.01), within(0.31, 0.01), within(0.30, 0.01), within(0.295, 0.01))
    assert "Its interval overlaps with those of steps 300 and 400: these intervals cannot tell them apart." in said(training)


def together(training: Training, *values: float, reach: float, **notes: object) -> str:
    """Steps 100, 200 ... on a sample, each with an interval of 0.1 to both sides, and with every earlier one in a difference
    that is known to `reach`."""
    training.strategy()
    earlier: list[Report] = []
    for number, value in enumerate(values, 1):
        differences = {
            one.checkpoint.digest: {
                "low": (gap := value - one.metrics["mrr@10"].value) - reach,
                "high": gap + reach,
                "population": [gap - 2 * reach, gap + 2 * reach],
            }
            for one in earlier
        }
        notes = {**notes, "estimate": {"metric": "mrr@10", "differences": differences}}
        earlier.append(training.done(100 * number, within(value, 0.1), notes=notes, at=f"2026-11-21T03:{number:02}:00Z"))
    return said(training)


def test_what_the_best_is_told_from_goes_by_differences_where_they_are_known(training: Training) -> None:
    text = together(training, 0.20, 0.31, 0.30, 0.22, reach=0.02)
    assert "It cannot be told from step 300; all others are lower (95%, by the differences from it)." in text
    assert "overlap" not in text and "The last checkpoint (step 400) is 0.090 lower." in text


def test_means_are_told_apart_for_other_queries_as_their_intervals_are(training: Training) -> None:
    text = together(training, 0.31, 0.28, reach=0.02, collections={"nq": "s1", "fiqa": "s2"})  # twice that for others
    assert "It cannot be told from step 200 (95%, by the differences from it)." in text


def test_no_other_may_be_as_good(training: Training) -> None:
    text = together(training, 0.31, 0.20, 0.22, reach=0.02)
    assert "All others are lower, by the differences from it (95%, over all of them)." in text


def test_a_last_one_that_is_not_told_from_the_best_is_no_fall(training: Training) -> None:
    text = together(training, 0.2, 0.31, 0.30, reach=0.02)
    assert "The last checkpoint (step 300) is 0.010 lower, too little to tell the two apart." in text


@pytest.mark.parametrize(("others", "told"), [(1, True), (9, False)])
def test_the_more_are_held_against_the_best_the_more_it_takes(training: Training, others: int, told: bool) -> None:
    reach = 0.1 * 1.96 / 2.5  # 2.5 standard deviations: p = 0.0124, and 9 times that
    text = together(training, 0.31, *[0.21] * others, reach=reach)
    assert ("All others are lower" in text) == told


def test_equal_values_are_named(training: Training) -> None:
    training.full(0.2, 0.3, 0.3)
    assert "Step 300 has the very same value." in said(training)


def test_without_a_baseline_it_says_how_to_get_one(training: Training) -> None:
    training.sample(within(0.2, 0.01), within(0.3, 0.01))
    assert "No full-corpus baseline of these checkpoints yet" in said(training)
    assert "fidelity.baseline=idle" in said(training)


@pytest.mark.parametrize(
    ("sampled", "expected"),
    [
        ([0.2], "1 checkpoint has a full-corpus value, too: for an order there must be two."),
        ([0.2, 0.3], "has tau 1.00 with the full corpus over 2 checkpoints: too few to say."),
        ([0.3, 0.3, 0.3], "Over 3 checkpoints one side has the same value everywhere"),
        (
            [0.2, 0.3, 0.4, 0.5, 0.6],
            "Whether the sample (random 5%) orders 5 checkpoints as the full corpus does is not known yet",
        ),
        ([0.1 * n for n in range(1, 10)], "orders 9 checkpoints as the full corpus does: tau 1.00 [0.83, 1.00]."),
        ([0.2, 0.1, 0.3, 0.5, 0.4, 0.6, 0.7, 0.9, 0.8], "orders 9 checkpoints mostly as the full corpus does: tau 0.83"),
        ([0.4, 0.3, 0.2, 0.1, 0.6, 0.5, 0.7, 0.9, 0.8, 0.95], "orders 10 checkpoints only roughly as the full corpus does"),
    ],
)
def test_how_the_sample_orders_checkpoints(training: Training, sampled: list[float], expected: str) -> None:
    training.sample(*(bound(value) for value in sampled))
    training.full(*(0.01 * n for n in range(1, len(sampled) + 1)))
    assert expected in said(training)


def test_a_sample_that_orders_otherwise_is_said_not_to_order(training: Training) -> None:
    sampled = [(n * 17 % 40 + n / 2) / 100 for n in range(40)]
    training.sample(*(bound(value) for value in sampled))
    training.full(*(0.01 * n for n in range(1, 41)))
    assert "does not order 40 checkpoints as the full corpus does: tau 0." in said(training)


def test_the_choice_and_its_regret_are_told(training: Training) -> None:
    training.sample(bound(0.5), bound(0.4))
    training.full(0.25, 0.3)
    assert "Of these it picks step 100, which on the full corpus is 0.0500 below the best, step 200." in said(training)
    assert "Sampled values are 0.175 too high on average (RMSE 0.190)." in said(training)


def test_a_right_choice_is_told_with_the_share_of_covered_values(training: Training) -> None:
    training.sample(within(0.2, 0.01), within(0.3, 0.01))
    training.full(0.2, 0.3)
    text = said(training)
    assert "Of these it picks the one that is best on the full corpus, step 200." in text
    assert "right on average (RMSE 0.000); 2 of 2 of the 95% intervals hold the full-corpus value." in text
    training.done(300, within(0.40, 0.01))
    training.done(300, exact(0.3), FULL)
    assert "too high on average (RMSE 0.058); 2 of 3 of the 95% intervals hold the full-corpus value." in said(training)


def test_the_full_corpus_decides_only_where_it_knows_every_checkpoint(training: Training) -> None:
    training.sample(bound(0.5), bound(0.4))
    training.full(0.25, 0.3)
    assert said(training).startswith("Best of 2 checkpoints: step 200 (mrr@10 0.300 on the full corpus).")
    training.done(300, bound(0.6))
    assert said(training).startswith("Best of 3 checkpoints: step 300 (mrr@10 at most 0.600).")


def test_the_cost_is_told_in_documents_and_never_in_seconds_of_a_busy_machine(training: Training) -> None:
    training.sample(bound(0.5), bound(0.4))
    assert "The sample has 5% of the documents." in said(training)
    training.full(0.25, 0.3)
    assert "The sample has 5% of the documents." in said(training)
    assert "time" not in said(training) and "second" not in said(training)


def test_documents_whose_vectors_were_kept_count_as_cost_all_the_same(training: Training) -> None:
    training.strategy()
    kept = {"documents": 10_000, "encoded": 500, "encoded_now": 0, "fraction": 0.05}
    training.done(100, bound(0.5), corpus=kept)
    training.full(0.25)
    assert "The sample has 5% of the documents." in said(training)


def fall(training: Training, lost: float) -> str:
    """Best at step 200, and from there on each of 40 queries loses about as much."""
    training.strategy()
    reports = [
        training.done(step, within(value, 0.002)) for step, value in ((100, 0.2), (200, 0.4), (300, 0.38), (400, 0.4 - lost))
    ]
    before = [0.4 + 0.01 * (n % 5) for n in range(40)]
    training.queries(reports[1], {"mrr@10": before})
    training.queries(reports[3], {"mrr@10": [value - lost * (n % 3) for n, value in enumerate(before)]})
    return said(training)


def test_a_training_that_falls_is_said_to_overfit(training: Training) -> None:
    text = fall(training, 0.1)
    assert "The last checkpoint (step 400) is 0.100 lower: the training seems to overfit since step 200." in text
    assert "From step 200 to 400 the mean change of a query is \u22120.098" in text
    assert "more than the choice of these 40 queries and the error of the sample explain" in text


def test_a_fall_within_the_intervals_is_no_overfitting(training: Training) -> None:
    text = fall(training, 0.003)
    assert "is 0.003 lower, within the intervals." in text
    assert "overfit" not in text


def test_a_fall_that_three_digits_do_not_show_is_not_called_nothing(training: Training) -> None:
    assert "is less than 0.001 lower, within the intervals." in fall(training, 0.0004)


def test_a_fall_that_other_queries_could_turn_is_no_overfitting(training: Training) -> None:
    training.full(0.2, 0.4, 0.38, 0.3)
    reports = training.ledger.reports(FULL)
    training.queries(reports[1], {"mrr@10": [0.4] * 12})
    training.queries(reports[3], {"mrr@10": [0.9] * 4 + [0.0] * 8})
    text = said(training)
    assert "The last checkpoint (step 400) is 0.100 lower." in text
    assert "with other queries it could have gone the other way" in text


def test_a_training_that_still_gains_may_go_on(training: Training) -> None:
    training.full(0.2, 0.3, 0.4)
    text = said(training)
    assert "The last checkpoint is the best" in text
    assert "Every document was encoded: the values are exact for these queries." in text


def test_failures_are_counted_and_nothing_at_all_is_said(training: Training) -> None:
    training.strategy()
    training.ended(100, "failed", "broken")
    training.ended(200, "skipped", "gone")
    text = said(training)
    assert text == "No checkpoint is validated yet. Of the other checkpoints 1 failed and 1 skipped; the table says why."


@pytest.mark.parametrize(
    ("documents", "steps", "expected"),
    [
        (
            500,
            (100, 200),
            "Of 2 strategies with 500 documents for a checkpoint run_pool has the smallest error (RMSE 0.010 over 2 c",
        ),
        (
            510,
            (100, 200),
            "Of 2 strategies with 500 to 510 documents for a checkpoint run_pool has the smallest error (RMSE 0.010",
        ),
        (
            491,
            (100, 200),
            "Of 2 strategies with 491 to 500 documents for a checkpoint run_pool has the smallest error (RMSE 0.010",
        ),
        (511, (100, 200), None),  # more than 2% apart
        (490, (100, 200), None),
        (5_000, (100, 200), None),
        (500, (100, 300), None),  # not the same checkpoints
        (500, (100,), None),
    ],
)
def test_the_smallest_error_is_said_only_of_strategies_of_equal_cost_on_the_same_checkpoints(
    training: Training, documents: int, steps: tuple[int, ...], expected: str | None
) -> None:
    training.sample(bound(0.5), bound(0.6))
    training.strategy("b" * 16, "run_pool", documents=None)
    corpus = {"documents": 10_000, "encoded": documents, "encoded_now": documents, "fraction": documents / 10_000}
    for step in steps:
        training.done(step, bound(0.11 + step / 1000), "b" * 16, corpus=corpus)
    training.full(0.2, 0.3, 0.4)
    text = said(training)
    assert (expected in text) if expected else "smallest error" not in text


def test_an_extrapolated_value_is_called_one(training: Training) -> None:
    training.strategy()
    training.done(
        100, within(0.3, 0.1), notes={"estimate": {"outranking": {"mrr@10": 0.4}, "population": {}, "checkpoints": 1}}
    )
    assert "only 0.4, in all queries together, at the last step. Corrected values are extrapolation, not evidence." in said(
        training
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared(Section):
    """A section of which one thing is known: how its strategies compare with the full corpus."""

    found: Comparison

    def comparison(self, strategy: Strategy, metric: str) -> Comparison | None:
        return self.found


def said_of(training: Training, **known: object) -> str:
    """Of two sampled and full checkpoints, with what a comparison of them would have found."""
    section = training.section()
    found = section.comparison(section.sampled[0], "mrr@10")
    assert found
    fields = {field.name: getattr(section, field.name) for field in dataclasses.fields(Section)}
    return verdict(Compared(**fields, found=dataclasses.replace(found, **known))).text  # type: ignore[arg-type]  # any field


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"tau": 0.9, "tau_interval": (0.5, 1.0)}, "orders 2 checkpoints as the full corpus does: tau 0.90"),
        ({"tau": 0.8999, "tau_interval": (0.5, 1.0)}, "orders 2 checkpoints mostly as the full corpus does"),
        ({"tau": 0.7, "tau_interval": (0.5, 1.0)}, "orders 2 checkpoints mostly as the full corpus does: tau 0.70"),
        ({"tau": 0.6999, "tau_interval": (0.5, 1.0)}, "orders 2 checkpoints only roughly as the full corpus does"),
        ({"tau": 0.4, "tau_interval": (0.1, 1.0)}, "orders 2 checkpoints only roughly as the full corpus does: tau 0.40"),
        ({"tau": 0.3999, "tau_interval": (0.1, 1.0)}, "does not order 2 checkpoints as the full corpus does"),
        ({"tau": 0.9, "tau_interval": (0.0, 1.0)}, "is not known yet: tau 0.90"),
        ({"tau": 0.9, "tau_interval": (1e-9, 1.0)}, "orders 2 checkpoints as the full corpus does: tau 0.90"),
        ({"checkpoints": 1}, "1 checkpoint has a full-corpus value, too: for an order there must be two."),
        ({"bias": 0.0005}, "Sampled values are 0.001 too high on average"),
        ({"bias": 0.000499}, "Sampled values are right on average"),
        ({"bias": -0.000499}, "Sampled values are right on average"),
        ({"bias": -0.0005}, "Sampled values are 0.001 too low on average"),
        ({"regret": 0.0}, "Of these it picks the one that is best on the full corpus"),
        ({"regret": 0.0001}, "which on the full corpus is 0.0001 below the best"),
    ],
)
def test_what_is_said_of_the_sample_changes_at_its_threshold_and_not_before(
    training: Training, known: dict[str, object], expected: str
) -> None:
    training.sample(within(0.2, 0.01), within(0.3, 0.01))
    training.full(0.2, 0.3)
    assert expected in said_of(training, **known)


@pytest.mark.parametrize(("outranking", "extrapolated"), [(2.99, True), (3.0, False)])
def test_three_documents_above_a_relevant_one_are_evidence(training: Training, outranking: float, extrapolated: bool) -> None:
    training.strategy()
    training.done(
        100, within(0.3, 0.1), notes={"estimate": {"outranking": {"mrr@10": outranking}, "population": {}, "checkpoints": 1}}
    )
    assert ("extrapolation, not evidence" in said(training)) == extrapolated


@pytest.mark.parametrize(
    ("outranking", "words"),
    [
        (2.99, "by extrapolation alone: that is no evidence of a change."),
        (3.0, "more than the choice of these 12 queries and the error of the sample explain."),
    ],
)
def test_what_queries_lose_by_their_correction_alone_is_no_evidence(training: Training, outranking: float, words: str) -> None:
    training.strategy()
    details = {"metric": "mrr@10", "outranking": {"mrr@10": outranking}, "checkpoints": 2}
    first = training.done(100, within(0.5, 0.1), notes={"estimate": details})
    together = {
        first.checkpoint.digest: {"low": -0.11, "high": -0.09, "population": [-0.12, -0.08]}
    }  # the errors of the two are mostly the same
    second = training.done(200, within(0.4, 0.1), notes={"estimate": {**details, "differences": together}})
    for report, value in ((first, 0.5), (second, 0.4)):
        training.queries(report, {"mrr@10": [value + n / 1000 for n in range(12)]})
    assert f"From step 100 to 200 the mean change of a query is \u22120.100 [\u22120.120, \u22120.080], {words}" in said(
        training
    )


def test_without_the_estimate_of_both_together_a_change_on_a_sample_has_the_errors_of_both(training: Training) -> None:
    training.sample(within(0.5, 0.06), within(0.4, 0.08))
    for report in training.ledger.reports(SAMPLE):
        training.queries(report, {"mrr@10": [report.metrics["mrr@10"].value] * 12})
    assert "is \u22120.100 [\u22120.200, 0.000]: with other queries it could have gone the other way." in said(training)


@pytest.mark.parametrize(("reach", "overlap"), [(0.125, True), (0.1249, False)])
def test_intervals_overlap_from_a_common_end_on(training: Training, reach: float, overlap: bool) -> None:
    training.sample(within(0.25, reach), within(0.5, 0.125))  # the second from 0.375 on
    text = said(training)
    assert ("Its interval overlaps with that of step 100" in text) == overlap
    assert ("No other interval reaches into its own." in text) == (not overlap)


@pytest.mark.parametrize(("reach", "words"), [(0.125, "is 0.250 lower, within the intervals."), (0.1249, "is 0.250 lower.")])
def test_the_last_checkpoint_is_within_the_intervals_from_a_common_end_on(training: Training, reach: float, words: str) -> None:
    training.sample(within(0.5, 0.125), within(0.25, reach))
    assert f"The last checkpoint (step 200) {words}" in said(training)


@pytest.mark.parametrize(("lost", "words"), [(0.00051, "is 0.001 lower"), (0.00049, "is less than 0.001 lower")])
def test_a_fall_is_a_number_from_half_a_digit_on(training: Training, lost: float, words: str) -> None:
    training.full(0.3, 0.3 - lost)
    assert f"The last checkpoint (step 200) {words}" in said(training)


def said_with(training: Training, interval: tuple[float, float]) -> str:
    """With twelve queries, and this for the interval of their mean change."""
    for report in training.ledger.reports(FULL):
        training.queries(report, {"mrr@10": [report.metrics["mrr@10"].value] * 12})
    section = training.section()
    moved = movement(section, training.state_dir)
    assert moved
    return verdict(section, dataclasses.replace(moved, interval=interval)).text


@pytest.mark.parametrize(
    ("values", "interval", "overfits"),
    [
        ((0.5, 0.3, 0.2), (-0.2, -1e-9), True),
        ((0.5, 0.3, 0.2), (-0.2, 0.0), False),  # other queries might say otherwise
        ((0.3, 0.5, 0.2), (-0.2, -1e-9), False),  # one checkpoint after the best is not yet a course
    ],
)
def test_overfitting_takes_two_later_checkpoints_and_an_interval_below_zero(
    training: Training, values: tuple[float, ...], interval: tuple[float, float], overfits: bool
) -> None:
    training.full(*values)
    assert ("seems to overfit" in said_with(training, interval)) == overfits


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((-0.2, 0.0), "could have gone the other way"),
        ((-0.2, -1e-9), "more than the choice of these 12 queries explains"),
        ((0.0, 0.2), "could have gone the other way"),
        ((1e-9, 0.2), "more than the choice of these 12 queries explains"),
    ],
)
def test_a_mean_change_is_more_than_chance_once_its_interval_leaves_zero(
    training: Training, interval: tuple[float, float], words: str
) -> None:
    training.full(0.2, 0.3)
    assert words in said_with(training, interval)


@pytest.mark.parametrize(("values", "said_so"), [((0.2, 0.3), False), ((0.2, 0.25, 0.3), True)])
def test_a_course_takes_three_checkpoints(training: Training, values: tuple[float, ...], said_so: bool) -> None:
    training.full(*values)
    assert ("the training may still be getting better" in said(training)) == said_so


def test_a_checkpoint_with_the_weights_of_another_is_no_trouble(training: Training) -> None:
    training.sample(bound(0.5))
    training.ended(200, "skipped", "same weights as checkpoint-100")
    training.ended(300, "skipped", "stale: overtaken by checkpoint-400 at step 400")
    training.ended(400, "skipped", "deleted after it was listed")
    training.ended(500, "failed", "weights are not finite")
    told = "1 failed, 1 skipped, 1 with the same weights as another and 1 overtaken by newer ones; the table says why."
    assert f"Of the other checkpoints {told}" in said(training)


def test_a_stated_setting_that_contradicts_the_checkpoint_is_said_once(training: Training) -> None:
    warning = "encoder.pooling=cls is used, though the checkpoint says mean"
    training.strategy()
    for step in (100, 200):
        training.done(step, within(0.3, 0.01), notes={"encoder": {"warnings": [warning]}})
    assert said(training).count(f"Warning: {warning}.") == 1
