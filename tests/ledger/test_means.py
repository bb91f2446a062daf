"""The mean over collections: its value, its interval, and what later Reports make of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.means import SuiteMean, mean_names
from dr_validate.ledger.reports import EstimateDetails, revised
from dr_validate.values import Checkpoint, Estimate, Report

METRIC = "mrr@10"


def names(name: str, *, sampled: bool = False) -> dict[str, Any]:
    spec = f"{name}-s" if sampled else f"{name}-f"
    return {
        "dataset": name,
        "spec": spec,
        "full_spec": f"{name}-f",
        "sampler": "random" if sampled else "full",
        "dataset_fingerprint": f"data {name}",
        "sample_fingerprint": f"sample {name}",
        "device": "cpu",
        "documents": 100,
        "encoded": 10,
        "queries": 3,
    }


def report(name: str, spec: str, value: Estimate | None, step: int = 100, at: str = "03:15:00", **notes: Any) -> Report:
    checkpoint = Checkpoint(
        name=f"checkpoint-{step}",
        version="v1",
        digest=f"sha256:{step:04x}",
        step_from="folder name",
        created_at="2026-11-21T03:12:00Z",
        uri="x",
        step=step,
    )
    return Report(
        checkpoint=checkpoint,
        dataset=name,
        sampler="random",
        spec=spec,
        status="failed" if value is None else "done",
        error="NaN" if value is None else None,
        at=f"2026-11-21T{at}Z",
        metrics={} if value is None else {METRIC: value},
        corpus={"documents": 100, "encoded": 10, "encoded_now": 5, "fraction": 0.1},
        seconds={"encode": 1.5, "total": 2.0},
        notes=notes,
    )


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, naive=value)


def about(value: float, reach: float, naive: float = 1.0) -> Estimate:
    return Estimate(value=value, low=value - reach, high=value + reach, naive=naive)


class Suite:
    """Two collections in a ledger; `finish` records a Report of one, `due` the means that follow, and gives them."""

    def __init__(self, ledger: Ledger, *, sampled: bool = False) -> None:
        self.ledger, self.collections = ledger, [names(name, sampled=sampled) for name in ("a", "b")]
        self.names = mean_names(self.collections, {})
        for told in (self.names, *self.collections):
            for spec in {told["spec"], told["full_spec"]}:
                ledger.register_spec(spec, told, "2026-11-21T03:00:00Z")
        self.mean = SuiteMean(ledger, self.names, self.collections)

    def due(self, at: str = "03:16:00", *, full: bool = False) -> list[Report]:
        made = [replace(one, at=f"2026-11-21T{at}Z") for one in self.mean.due(full=full)]
        for one in made:
            self.ledger.finish(one)
        return made

    def values_per_query(self, one: Report, values: Sequence[float]) -> None:
        path = self.ledger.path.parent / "queries" / one.spec / f"{one.checkpoint.digest.replace(':', '-')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {"query_id": [f"q{n}" for n in range(len(values))], "metric": [METRIC] * len(values), "value": list(values)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def test_each_collection_counts_the_same_and_costs_are_summed(ledger: Ledger) -> None:
    suite = Suite(ledger)
    ledger.finish(report("a", "a-f", exactly(0.25)))
    assert suite.due() == []
    ledger.finish(report("b", "b-f", exactly(0.75)))
    (mean,) = suite.due()
    assert suite.due() == []
    assert (mean.dataset, mean.status, mean.spec, mean.metrics[METRIC].value) == ("mean", "done", suite.names["spec"], 0.5)
    assert mean.corpus == {"documents": 200, "encoded": 20, "encoded_now": 10, "fraction": 0.1}
    assert mean.seconds == {"encode": 3.0, "total": 4.0}
    assert mean.notes["collections"] == {"a": "a-f", "b": "b-f"}
    told = suite.names
    assert (told["documents"], told["queries"], told["members"]) == (200, 6, {"a": "a-f", "b": "b-f"})


def test_its_interval_is_that_of_queries_resampled_within_collections(ledger: Ledger) -> None:
    rng = np.random.default_rng(5)
    values = [rng.beta(0.5, 0.7, 60), rng.beta(2, 2, 300)]
    suite = Suite(ledger)
    for name, one in zip("ab", values, strict=True):
        made = report(name, f"{name}-f", exactly(float(one.mean())))
        suite.values_per_query(made, one.tolist())
        ledger.finish(made)
    (mean,) = suite.due()
    resampled = [np.mean([rng.choice(one, len(one)).mean() for one in values]) for _ in range(20_000)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    estimate = mean.metrics[METRIC]
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.002)
    assert high - low > 0.05  # so that the tolerance says something
    assert EstimateDetails.of(mean).population[METRIC] == (estimate.low, estimate.high)


def test_on_samples_the_error_of_the_estimate_counts_as_well_and_a_bound_stays_one(ledger: Ledger) -> None:
    suite = Suite(ledger, sampled=True)
    population = {"population": {METRIC: [0.1, 0.4]}}
    ledger.finish(report("a", "a-s", about(0.25, 0.05), estimate=population))
    ledger.finish(report("b", "b-s", about(0.75, 0.05), estimate={"population": {METRIC: [0.55, 0.95]}}))
    ledger.finish(report("a", "a-s", about(0.25, 0.05), step=200, estimate=population))
    ledger.finish(report("b", "b-s", Estimate(value=0.75, low=0.0, high=0.75, naive=0.75), step=200))
    (first, second) = suite.due()
    assert (first.metrics[METRIC].low, first.metrics[METRIC].high) == pytest.approx((0.375, 0.625))  # 0.15 and 0.2, over 2
    bound = second.metrics[METRIC]
    assert (bound.low, bound.value, bound.high, bound.naive) == pytest.approx((0.1, 0.5, 0.525, 0.875))


def test_a_mean_over_fewer_collections_is_none(ledger: Ledger) -> None:
    suite = Suite(ledger)
    ledger.finish(report("a", "a-f", None))
    ledger.finish(report("b", "b-f", exactly(0.75)))
    (mean,) = suite.due()
    assert (mean.status, mean.metrics) == ("failed", {})
    assert mean.error == "no mean, for 1 of its collections failed: a: NaN"


def test_what_later_reports_make_of_earlier_values_moves_the_means(ledger: Ledger) -> None:
    suite = Suite(ledger, sampled=True)
    for name, value in (("a", 0.25), ("b", 0.75)):
        ledger.finish(report(name, f"{name}-s", about(value, 0.05), estimate=notes(name, value)))
    (first,) = suite.due()
    for name, value, seen in (("a", 0.5, 0.375), ("b", 0.5, 0.75)):
        earlier = {f"sample {name}": {"sha256:0064": {METRIC: [seen, seen - 0.05, seen + 0.05, seen - 0.1, seen + 0.1]}}}
        told = {**notes(name, value), "earlier": earlier, "differences": {"sha256:0064": between(value - seen)}}
        ledger.finish(report(name, f"{name}-s", about(value, 0.05), 200, "03:17:00", estimate=told))
    (second,) = suite.due("03:18:00")
    assert [one.metrics[METRIC].value for one in (first, second)] == [0.5, 0.5]
    assert [one.metrics[METRIC].value for one in ledger.revised(suite.names["spec"])] == [0.5625, 0.5]
    moved = revised([first, second])[0].metrics[METRIC]
    assert (moved.low, moved.high) == pytest.approx((0.5625 - 0.1 / 2**0.5, 0.5625 + 0.1 / 2**0.5))
    difference = EstimateDetails.of(second).differences["sha256:0064"]
    assert difference["value"] == pytest.approx(-0.0625) and difference["population"] == pytest.approx(
        [-0.20392, 0.07892], abs=1e-5
    )


@pytest.mark.parametrize("by_another_run", [False, True])
def test_a_full_mean_is_made_of_full_ones_and_says_how_the_sampled_ones_look_by_it(
    ledger: Ledger, by_another_run: bool
) -> None:
    suite = Suite(ledger, sampled=True)
    of_full = Suite(ledger) if by_another_run else suite
    for name, value in (("a", 0.25), ("b", 0.75)):
        ledger.finish(report(name, f"{name}-s", about(value, 0.05), estimate=notes(name, value)))
    suite.due()
    ledger.finish(report("a", "a-f", exactly(0.125), at="03:17:00"))
    assert of_full.due(full=not by_another_run) == []
    seen = {"sample b": {"sha256:0064": {METRIC: [0.5, 0.45, 0.55, 0.4, 0.6]}}}
    ledger.finish(report("b", "b-f", exactly(0.5), at="03:17:00", sampled={"b-s": {"earlier": seen}}))
    (full,) = of_full.due("03:18:00", full=not by_another_run)
    assert (full.spec, full.sampler, full.metrics[METRIC].value) == (suite.names["full_spec"], "full", 0.3125)
    assert [one.metrics[METRIC].value for one in ledger.revised(suite.names["spec"])] == [0.375]


def notes(name: str, value: float) -> Mapping[str, Any]:
    """Of a sampled Report: for other queries its interval is twice as wide."""
    return {"sample": f"sample {name}", "metric": METRIC, "population": {METRIC: [value - 0.1, value + 0.1]}}


def between(value: float) -> Mapping[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "population": [value - 0.2, value + 0.2], "p": 0.5}
