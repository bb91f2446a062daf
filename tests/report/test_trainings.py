"""Several trainings of one state_dir: one over the other, and their difference query by query."""

import csv
import math
import re
import statistics
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from dr_validate.config import ReportSettings
from dr_validate.report.page import write_report
from dr_validate.report.trainings import overlays
from dr_validate.values import Report
from tests.report.training import FULL, SAMPLE, Training, bound, exact, within

SVG = "{http://www.w3.org/2000/svg}"
QUERIES = {  # values of twelve queries by training and step: the second gains 0.2 on most of them
    ("first", 100): [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    ("second", 100): [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.3, 0.4, 0.5, 0.6, 0.5, 0.7],
    ("first", 200): [0.5] * 12,
    ("second", 200): [0.9, 0.1] * 6,
}


def on_full_corpus(training: Training) -> None:
    training.strategy(FULL, "full")
    for (run, step), values in QUERIES.items():
        report = training.done(step, exact(statistics.fmean(values)), FULL, run, name=f"{run}-{step}")
        training.queries(report, {"mrr@10": values})


def sampled(training: Training, run: str, step: int, value: float, other: Report | None = None) -> Report:
    """With the estimate of its difference from `other`, if any: 0.1 wide on each side."""
    told = {other.checkpoint.digest: {"low": 0.25, "high": 0.35, "population": [0.2, 0.4]}} if other else {}
    notes = {"estimate": {"metric": "mrr@10", "differences": told}}
    return training.done(step, within(value, 0.2), SAMPLE, run, name=f"{run}-{step}", notes=notes)


def shown(training: Training) -> ElementTree.Element:
    page = write_report(training.state_dir, ReportSettings()).read_text(encoding="utf-8")
    return ElementTree.fromstring(page)


def test_on_the_full_corpus_a_difference_is_paired_by_query(training: Training) -> None:
    on_full_corpus(training)
    ((overlay,),) = overlays(training.sections(), training.state_dir)
    assert (overlay.strategy, list(overlay.trainings)) == ("full corpus", ["first", "second"])
    clear, unclear = overlay.differences
    changes = [b - a for a, b in zip(QUERIES["first", 100], QUERIES["second", 100], strict=True)]
    reach = 1.96 * statistics.stdev(changes) / math.sqrt(12)
    assert clear.step == 100 and clear.value == pytest.approx(statistics.fmean(changes))
    assert clear.interval == pytest.approx((clear.value - reach, clear.value + reach)) and clear.sign == 1
    assert unclear.value == pytest.approx(0) and unclear.interval is not None and unclear.sign == 0
    assert overlay.sentences == [
        "second against first, mrr@10: of 2 steps in common 1 higher, 1 not told apart; at the last, step 200, "
        f"0.000 [\u2212{unclear.interval[1]:.3f}, {unclear.interval[1]:.3f}]."
    ]


def test_the_means_of_a_suite_are_paired_by_query_within_each_collection(training: Training) -> None:
    training.strategy(FULL, "full", members={"a": "a-f", "b": "b-f"})
    for run in ("first", "second"):
        estimate, notes = within(0.4, 0.1), {"collections": {"a": "a-f", "b": "b-f"}}
        report = training.done(100, estimate, FULL, run, name=f"{run}-100", notes=notes)
        training.queries(replace(report, spec="a-f"), {"mrr@10": QUERIES[run, 100]})
        training.queries(replace(report, spec="b-f"), {"mrr@10": QUERIES[run, 200]})
    ((overlay,),) = overlays(training.sections(), training.state_dir)
    (one,) = overlay.differences
    pairs = [zip(QUERIES["first", step], QUERIES["second", step], strict=True) for step in (100, 200)]
    spread = sum(statistics.variance([after - before for before, after in pair]) / 12 for pair in pairs)
    reach = 1.96 * math.sqrt(spread) / 2
    assert one.interval == pytest.approx((one.value - reach, one.value + reach))


def test_on_a_sample_the_interval_is_that_of_the_estimate_of_both_together_whichever_came_later(training: Training) -> None:
    training.strategy()
    first = sampled(training, "first", 100, 0.3)
    sampled(training, "second", 100, 0.55, first)
    later = sampled(training, "second", 200, 0.5)
    sampled(training, "first", 200, 0.4, later)
    ((overlay,),) = overlays(training.sections(), training.state_dir)
    assert [one.value for one in overlay.differences] == pytest.approx([0.25, 0.1])  # of the values that the page shows
    assert [one.interval for one in overlay.differences] == [pytest.approx((0.15, 0.35)), pytest.approx((0.0, 0.2), abs=1e-9)]


def test_without_that_estimate_both_errors_and_the_choice_of_queries_count(training: Training) -> None:
    training.strategy()
    for run, value in (("first", 0.3), ("second", 0.5)):
        report = sampled(training, run, 100, value)
        training.queries(report, {"mrr@10": QUERIES[run, 100]})
    ((overlay,),) = overlays(training.sections(), training.state_dir)
    (one,) = overlay.differences
    changes = [b - a for a, b in zip(QUERIES["first", 100], QUERIES["second", 100], strict=True)]
    reach = math.sqrt(2 * 0.2**2 + 1.96**2 * statistics.variance(changes) / 12)
    assert one.interval == pytest.approx((0.2 - reach, 0.2 + reach))


def test_each_metric_has_its_differences_a_chart_and_a_table(training: Training) -> None:
    training.strategy(FULL, "full")
    recalls = {"first": [0.5, 0.75] * 6, "second": [0.75, 0.75] * 6}
    for run, recall in recalls.items():
        estimates = {"mrr@10": exact(statistics.fmean(QUERIES[run, 100])), "recall@100": exact(statistics.fmean(recall))}
        report = training.done(100, estimates, FULL, run, name=f"{run}-100")
        training.queries(report, {"mrr@10": QUERIES[run, 100], "recall@100": recall})
    ((overlay,),) = overlays(training.sections(), training.state_dir)
    (one,) = overlay.of("recall@100")
    reach = 1.96 * statistics.stdev([0.25, 0.0] * 6) / math.sqrt(12)
    assert one.value == pytest.approx(0.125) and one.interval == pytest.approx((0.125 - reach, 0.125 + reach))
    assert len(overlay.sentences) == 1 and "mrr@10" in overlay.sentences[0]
    section = next(section for section in shown(training).iter("section") if section.get("id") == "trainings-1")
    assert [svg.get("aria-label") for svg in section.iter(f"{SVG}svg") if svg.get("role")] == [
        label
        for metric in ("mrr@10", "recall@100")
        for label in (f"{metric}: {metric} by training step", f"{metric}, difference from first: difference by training step")
    ]
    assert [summary.text for summary in section.iter("summary")] == ["Differences in recall@100"]
    rows = list(csv.DictReader((training.state_dir / "report.differences.csv").read_text().splitlines()))
    assert [row["metric"] for row in rows] == ["mrr@10", "recall@100"]
    assert float(rows[1]["difference"]) == pytest.approx(0.125)


def test_nothing_is_said_of_the_difference_of_two_upper_bounds_nor_of_steps_that_one_lacks(training: Training) -> None:
    training.strategy()
    for run, step in (("first", 100), ("second", 100), ("second", 200)):
        training.done(step, bound(0.3), SAMPLE, run, name=f"{run}-{step}")
    ((overlay,),) = overlays(training.sections(), training.state_dir)
    assert not overlay.differences
    assert overlay.sentences == ["second and first have no step in common whose mrr@10 is known on both sides."]
    assert "Differences from" not in " ".join(shown(training).itertext())


def test_each_of_three_trainings_is_held_against_the_first(training: Training) -> None:
    training.strategy(FULL, "full")
    for run, value in (("a", 0.1), ("b", 0.2), ("c", 0.4)):
        training.done(100, exact(value), FULL, run, name=f"{run}-100")
    ((overlay,),) = overlays(training.sections(), training.state_dir)
    assert [(one.training, one.interval) for one in overlay.differences] == [("b", None), ("c", None)]  # no values of queries
    assert [one.value for one in overlay.differences] == pytest.approx([0.1, 0.3])
    assert "with no interval known" in overlay.sentences[0]


def test_trainings_under_other_specs_or_alone_are_not_compared(training: Training) -> None:
    on_full_corpus(training)
    training.strategy("c" * 16, dataset="nq", full_spec="e" * 16)
    training.done(100, within(0.4, 0.1), "c" * 16, "third")
    (same,) = overlays(training.sections(), training.state_dir)
    assert [overlay.spec for overlay in same] == [FULL]


def test_the_page_begins_with_the_trainings_and_draws_the_numbers_of_its_table(training: Training) -> None:
    on_full_corpus(training)
    training.strategy()
    first = sampled(training, "first", 100, 0.3)
    sampled(training, "second", 100, 0.55, first)
    tree = shown(training)
    headings = [heading.text for heading in tree.iter("h2")]
    assert headings == ["vaswani, 2 trainings", "vaswani, first", "vaswani, second"]
    links = [(a.text, a.get("href")) for nav in tree.iter("nav") for a in nav.iter("a")]
    section = next(section for section in tree.iter("section") if section.get("id") == "trainings-1")
    assert links[0] == ("vaswani, 2 trainings", "#trainings-1")
    charts = [svg for svg in section.iter(f"{SVG}svg") if svg.get("role")]
    assert [svg.get("aria-label") for svg in charts] == [
        *("mrr@10: mrr@10 by training step", "mrr@10, difference from first: difference by training step") * 2
    ]
    told = [title.text or "" for svg in charts for title in svg.iter(f"{SVG}title")]
    rows = list(csv.DictReader((training.state_dir / "report.differences.csv").read_text().splitlines()))
    assert [(row["strategy"], row["step"]) for row in rows] == [
        ("full corpus", "100"),
        ("full corpus", "200"),
        ("random 5%", "100"),
    ]
    text = re.sub(r"\s+", " ", " ".join(section.itertext()))
    for row in rows:
        assert row["training_run"] == "second" and row["first_checkpoint"] == f"first-{row['step']}"
        value, low, high = (f"{float(row[key]):+.4f}".replace("-", "\u2212") for key in ("difference", "low", "high"))
        value = "0.0000" if value in ("+0.0000", "\u22120.0000") else value
        reach = f"[{low.removeprefix('+')}, {high.removeprefix('+')}]"
        assert f"second minus first, step {row['step']}: {value} {reach}" in told
        assert f"{value} {reach}" in text
        assert float(row["difference"]) == pytest.approx(float(row["value"]) - float(row["first_value"]))


def test_a_page_of_one_training_has_a_file_of_differences_with_its_head_alone(training: Training) -> None:
    training.sample(within(0.2, 0.1))
    assert [heading.text for heading in shown(training).iter("h2")] == ["vaswani"]
    (head,) = (training.state_dir / "report.differences.csv").read_text().splitlines()
    assert "training_run" in head.split(",")
