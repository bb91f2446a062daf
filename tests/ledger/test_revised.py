"""A full-corpus baseline changes what was said of the others before it, in the ledger's view and on the page."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import revised
from dr_validate.values import Report
from tests.factories import report as made_report
from tests.small_run import blur, open_pipeline, validated, write_collection

STRATIFIED = ["sampler=stratified", "sampler.fraction=0.3"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, write_checkpoint: Callable[..., Path]) -> Sequence[Report]:
    """Three sampled ones, each a second after the other, then the baseline of the second."""
    root = tmp_path_factory.mktemp("taught")
    collection = write_collection(root / "collection")
    folders = [blur(write_checkpoint(root / f"c{step}", seed=3), share) for step, share in enumerate([0.6, 0.5, 0.3])]
    pipeline = open_pipeline(collection, root / "state", *STRATIFIED)
    made = [validated(pipeline, folder, step) for step, folder in enumerate(folders)]
    best = max(range(len(made)), key=lambda place: made[place].metrics["mrr@10"].naive)  # it may teach all others
    made.append(validated(pipeline, folders[best], best, full=True))
    return [replace(report, at=f"2026-11-21T03:12:0{second}Z") for second, report in enumerate(made)]


def test_a_baseline_tells_how_the_sampled_values_look_by_it(reports: Sequence[Report]) -> None:
    *sampled, baseline = reports
    told = baseline.notes["sampled"]
    assert set(told) == {sampled[0].spec} != {baseline.spec}
    assert set(told[sampled[0].spec]["earlier"]) == {sampled[0].notes["estimate"]["sample"]}
    assert "sampled" not in sampled[2].notes
    before, after = revised(sampled), revised(sampled, [baseline])
    own = [report.checkpoint.digest for report in sampled].index(baseline.checkpoint.digest)
    for place in {0, 1, 2} - {own}:
        assert after[place].metrics["mrr@10"].value != before[place].metrics["mrr@10"].value
        assert after[place].metrics["mrr@10"].naive == sampled[place].metrics["mrr@10"].naive
    # Its own is corrected by what the samples say, as before.
    assert after[own].metrics["mrr@10"].value == pytest.approx(before[own].metrics["mrr@10"].value, abs=1e-9)
    assert after[own].checkpoint.digest == baseline.checkpoint.digest


def test_the_ledger_reads_them_so(reports: Sequence[Report], tmp_path: Path) -> None:
    *sampled, baseline = reports
    with Ledger(tmp_path / "ledger.db") as ledger:
        for spec in (sampled[0].spec, baseline.spec):
            described = {"spec": spec, "full_spec": baseline.spec}
            ledger.register_spec(spec, described, "2026-11-21T03:00:00Z")
        for report in reports:
            ledger.begin(report.checkpoint, report.spec, report.at)
            ledger.finish(report)
        assert [one.metrics for one in ledger.revised(sampled[0].spec)] == [one.metrics for one in revised(sampled, [baseline])]
        assert [state.metrics for state in ledger.states(sampled[0].spec)] == [
            one.metrics for one in revised(sampled, [baseline])
        ]
        assert [one.metrics for one in ledger.reports(sampled[0].spec)] == [one.metrics for one in sampled]
        assert ledger.revised(baseline.spec)[0].metrics == baseline.metrics


def test_values_do_not_depend_on_whether_the_full_corpus_or_a_sample_was_validated_first(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    collection = write_collection(tmp_path / "collection")
    folders = [blur(write_checkpoint(tmp_path / f"c{step}", seed=3), share) for step, share in enumerate([0.6, 0.3])]
    first, now = [], []
    for number, order in enumerate([(["sampler=full"], STRATIFIED), (STRATIFIED, ["sampler=full"])]):
        made = {}
        for overrides in order:  # a run of its own, on the same state_dir
            pipeline = open_pipeline(collection, tmp_path / f"state{number}", *overrides)
            made[overrides[0]] = [validated(pipeline, folder, step) for step, folder in enumerate(folders)]
        sampled, full = made[STRATIFIED[0]], made["sampler=full"]
        first.append([report.metrics["mrr@10"].value for report in sampled])
        now.append([report.metrics["mrr@10"].value for report in revised(sampled, full)])
    assert first[0] != pytest.approx(first[1], abs=1e-6), "nothing to revise: the case shows nothing"
    assert now[0] == pytest.approx(now[1], abs=1e-12)


def test_of_jobs_side_by_side_the_one_that_has_seen_the_most_tells_not_the_one_that_ends_last() -> None:
    def seen(value: float) -> dict[str, dict[str, dict[str, list[float]]]]:
        return {"drawn": {mine.checkpoint.digest: {"mrr@10": [value, value - 0.1, value + 0.1]}}}

    mine = made_report(100)
    mine = replace(mine, notes={"estimate": {"sample": "drawn", "as_of": 2.0}}, at="2026-11-21T03:00:09Z")
    told = {"knows more": (3.0, 0.1, "03:00:05"), "knows less": (1.0, 0.2, "03:00:10")}
    full = [
        replace(made_report(100, spec="full"), notes={"sampled": {mine.spec: {"as_of": as_of, "earlier": seen(value)}}}, at=at)
        for as_of, value, at in ((as_of, value, f"2026-11-21T{time}Z") for as_of, value, time in told.values())
    ]
    for order in (full, full[::-1]):
        assert revised([mine], order)[0].metrics["mrr@10"].value == 0.1
    assert revised([mine], full[1:]) == [mine], "its own Report has seen more"
