"""Values per query that follow the value of a revised Report."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dr_validate.estimator.estimate import moved
from dr_validate.ledger.per_query import read_query_values
from dr_validate.ledger.reports import EstimateDetails, revised
from dr_validate.values import Checkpoint, Estimate, Float64, Report

NAIVE = np.array([1.0, 0.5, 0.5, 0.0])
VALUE = np.array([0.75, 0.25, 0.5, 0.0])  # mean 0.375


def report(number: int, value: float, earlier: dict[str, dict[str, list[float]]]) -> Report:
    at = f"2026-01-01T00:0{number}:00+00:00"
    one = Checkpoint(
        name=f"step-{number}",
        version="v0",
        digest=f"sha256:{number}",
        step=number,
        step_from="name",
        created_at=at,
        uri="",
    )
    notes = {"estimate": {"sample": "s", "earlier": {"s": earlier}, "population": {"mrr@10": [0.1, 0.5]}}}
    return Report(
        checkpoint=one,
        dataset="made",
        sampler="stratified",
        spec="spec",
        status="done",
        at=at,
        metrics={"mrr@10": Estimate(value=value, low=0.2, high=0.5, naive=0.5)},
        notes=notes,
    )


def written(state_dir: Path, values: Float64) -> None:
    path = state_dir / "queries" / "spec" / "sha256-1.parquet"
    path.parent.mkdir(parents=True)
    ids = [f"q{n}" for n in range(len(values))]
    columns = {"query_id": ids, "metric": ["mrr@10"] * len(ids), "value": values, "naive": NAIVE}
    pyarrow.parquet.write_table(pyarrow.table({k: pyarrow.array(v, from_pandas=True) for k, v in columns.items()}), path)


@pytest.mark.parametrize("now", [0.25, 0.375, 0.4375])
def test_queries_follow_what_a_later_report_says(tmp_path: Path, now: float) -> None:
    written(tmp_path, VALUE)
    first = report(1, 0.375, {})
    later = report(2, 0.4, {"sha256:1": {"mrr@10": [now, 0.2, 0.5, 0.05, 0.6]}})
    (seen, same) = revised([first, later])
    assert same == later
    assert (seen.metrics["mrr@10"].value, seen.metrics["mrr@10"].naive) == (now, 0.5)
    assert EstimateDetails.of(seen).population["mrr@10"] == (0.05, 0.6)
    assert (EstimateDetails.of(seen).as_reported.get("mrr@10"), EstimateDetails.of(first).as_reported.get("mrr@10")) == (
        0.375,
        None,
    )
    values = np.array(list(read_query_values(tmp_path, seen, "mrr@10").values()))
    assert values.mean() == pytest.approx(now)
    assert ((values >= 0) & (values <= NAIVE)).all()
    assert list(read_query_values(tmp_path, first, "mrr@10").values()) == VALUE.tolist()
    assert read_query_values(tmp_path, seen, "ndcg@10") == {}
    assert read_query_values(tmp_path, later, "mrr@10") == {}


def test_the_last_report_counts_and_none_looks_ahead() -> None:
    first = report(1, 0.375, {})
    second = report(2, 0.4, {"sha256:1": {"mrr@10": [0.3, 0.2, 0.5, 0.1, 0.5]}})
    third = report(3, 0.4, {"sha256:1": {"mrr@10": [0.35, 0.2, 0.5, 0.1, 0.5]}})
    assert revised([third, first, second])[1].metrics["mrr@10"].value == 0.35
    assert revised([first, second])[0].metrics["mrr@10"].value == 0.3
    again = dataclasses.replace(first, at="2026-01-01T00:09:00+00:00")  # validated anew, after what is said of it
    assert revised([again, second])[0] == again
    skipped = dataclasses.replace(first, status="skipped", error="gone", metrics={})
    assert revised([skipped, first, second])[0] == skipped


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    written(tmp_path, VALUE)
    path = tmp_path / "queries" / "spec" / "sha256-1.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(OSError, match=r"sha256-1.parquet: cannot be read"):
        read_query_values(tmp_path, report(1, 0.375, {}), "mrr@10")


def test_moving_keeps_what_is_nothing_at_nothing() -> None:
    assert moved(VALUE, NAIVE, 0.375, 0.1875, 0.5).tolist() == (VALUE / 2).tolist()
    assert moved(VALUE, NAIVE, 0.375, 0.5, 0.5).tolist() == NAIVE.tolist()
    assert moved(NAIVE, NAIVE, 0.5, 0.5000000001, 0.5).tolist() == NAIVE.tolist()  # nothing was corrected: only rounding


def test_notes_of_another_form_are_no_news() -> None:
    first = report(1, 0.375, {})
    others: list[object] = [[], {"s": []}, {"s": {"sha256:1": {}}}, {"t": {"sha256:1": {"mrr@10": [0.1, 0.1, 0.1]}}}]
    for odd in others:
        later = report(2, 0.4, {})
        later.notes["estimate"]["earlier"] = odd
        assert revised([first, later])[0].metrics == first.metrics
    plain = dataclasses.replace(first, notes={"estimate": None})
    later = dataclasses.replace(
        report(2, 0.4, {"sha256:1": {"mrr@10": [0.6, 0.2, 0.7, 0.1, 0.8]}}), notes=report(2, 0.4, {}).notes
    )
    assert revised([plain, later])[0] == plain


def test_a_refined_value_is_never_above_the_sampled_one() -> None:
    later = report(2, 0.4, {"sha256:1": {"mrr@10": [0.6, 0.2, 0.7, 0.1, 0.8]}})
    assert revised([report(1, 0.375, {}), later])[0].metrics["mrr@10"] == Estimate(value=0.5, low=0.2, high=0.5, naive=0.5)
