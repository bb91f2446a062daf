"""A full-corpus baseline changes what was said of the others before it, in the ledger's view and on the page."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.revised import refined
from dr_validate.values import Report
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
    assert told["spec"] == sampled[0].spec != baseline.spec
    assert set(told["earlier"]) == {sampled[0].notes["estimate"]["sample"]}
    assert "sampled" not in sampled[2].notes
    before, after = refined(sampled), refined(sampled, [baseline])
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
        assert [one.metrics for one in ledger.refined(sampled[0].spec)] == [one.metrics for one in refined(sampled, [baseline])]
        assert [state.metrics for state in ledger.states(sampled[0].spec)] == [
            one.metrics for one in refined(sampled, [baseline])
        ]
        assert [one.metrics for one in ledger.reports(sampled[0].spec)] == [one.metrics for one in sampled]
        assert ledger.refined(baseline.spec)[0].metrics == baseline.metrics
