"""The public form of a Report: complete, readable by other tools, and the same Report when read back."""

import json
import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_validate.ledger.reports import latest_of, report_from_json, report_to_json
from dr_validate.values import Agreement, Checkpoint, Estimate, Report, Status
from tests.factories import report

CONTRACT = """
{"checkpoint": {"name": "checkpoint-500", "version": "v3", "weights_sha256": "ab12", "digest": "sha256:ab", "step": 500,
                "created_at": "2026-11-21T03:12:00Z"},
 "dataset": "vaswani", "sampler": "stratified", "spec": "9f2c", "status": "done", "error": null,
 "metrics": {"mrr@10": {"value": 0.312, "low": 0.301, "high": 0.322, "naive": 0.331}},
 "corpus": {"documents": 11429, "encoded": 1143, "encoded_now": 1143, "fraction": 0.1},
 "agreement": {"checkpoints": 6, "kendall_tau": 0.93, "rmse": 0.008, "bias": 0.004, "regret": 0.0},
 "seconds": {"download": 0.8, "load": 0.4, "encode": 20.1, "search": 0.6, "score": 0.1, "total": 22.0},
 "attempts": 1, "at": "2026-11-21T03:15:10Z"}
"""

names = st.text(min_size=1, max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
checkpoints = st.builds(
    Checkpoint,
    name=names,
    version=names,
    digest=names.map(lambda text: f"sha256:{text}"),
    step=st.integers(0, 2**53),
    step_from=names,
    created_at=names,
    uri=names,
    training_run=names,
    group=names,
)
estimates = st.tuples(numbers, numbers, numbers, numbers).map(
    lambda n: Estimate(low=sorted(n[:3])[0], value=sorted(n[:3])[1], high=sorted(n[:3])[2], naive=n[3])
)
agreements = st.builds(
    Agreement,
    metric=names,
    checkpoints=st.integers(2, 99),
    kendall_tau=st.none() | numbers,
    rmse=numbers,
    bias=numbers,
    regret=numbers,
)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    status: Status = draw(st.sampled_from(get_args(Status)))
    done = status == "done"
    return Report(
        checkpoint=draw(checkpoints),
        dataset=draw(names),
        sampler=draw(names),
        spec=draw(names),
        status=status,
        at=draw(names),
        attempts=draw(st.integers(1, 9)),
        error=None if done else draw(names),
        metrics=draw(st.dictionaries(names, estimates, min_size=1, max_size=3)) if done else {},
        corpus=draw(st.dictionaries(names, numbers, max_size=3)),
        agreement=draw(st.none() | agreements),
        seconds=draw(st.dictionaries(names, numbers, max_size=3)),
        notes=draw(st.dictionaries(names, json_values, max_size=3)),
    )


@settings(max_examples=60)
@given(reports())
def test_a_report_survives_being_written_and_read(report: Report) -> None:
    text = json.dumps(report_to_json(report), allow_nan=False)
    assert report_from_json(json.loads(text)) == report


def test_the_documented_line_is_read_and_written_back_with_every_field() -> None:
    line = json.loads(CONTRACT)
    written = report_to_json(report_from_json(line))
    more = {"step_from": "", "uri": "", "training_run": "", "group": "", "num_bytes": 0}
    assert written["checkpoint"] == {**more, **line["checkpoint"]}
    assert written["agreement"] == {**line["agreement"], "metric": ""}
    assert {key: written[key] for key in line if key not in ("checkpoint", "agreement")} == {
        key: line[key] for key in line if key not in ("checkpoint", "agreement")
    }
    assert set(written) - set(line) == {"notes"}


def test_fields_of_a_newer_version_are_ignored() -> None:
    line = json.loads(CONTRACT)
    newer: dict[str, Any] = {**line, "mood": "good", "checkpoint": {**line["checkpoint"], "colour": 1}}
    newer["metrics"] = {"mrr@10": {**line["metrics"]["mrr@10"], "width": 2}}
    newer["agreement"] = {**line["agreement"], "spearman": 0.9}
    assert report_from_json(newer) == report_from_json(line)


def test_numbers_that_json_cannot_say_become_null() -> None:
    line = json.loads(CONTRACT)
    line["metrics"]["mrr@10"] = {"value": 0.3, "low": -math.inf, "high": 0.4, "naive": math.nan}
    line["seconds"]["encode"] = math.nan
    line["notes"] = {"lengths": [1.0, math.inf], "count": np.int64(3), "mean": np.float32(math.nan)}
    line["agreement"]["rmse"] = math.nan
    report = report_from_json(line)
    written = report_to_json(report)
    json.dumps(written, allow_nan=False)
    assert written["metrics"]["mrr@10"] == {"value": 0.3, "low": None, "high": 0.4, "naive": None}
    assert written["seconds"]["encode"] is written["agreement"]["rmse"] is None
    assert written["notes"] == {"lengths": [1.0, None], "count": 3, "mean": None}
    again = report_from_json(written)
    assert again.metrics["mrr@10"].low == -math.inf
    assert math.isnan(again.metrics["mrr@10"].naive)
    assert math.isnan(again.seconds["encode"])


def test_a_metric_without_a_value_is_a_defect() -> None:
    line = json.loads(CONTRACT)
    line["metrics"]["mrr@10"] = {"value": math.inf, "low": 0.0, "high": math.inf, "naive": 0.3}
    with pytest.raises(AssertionError, match="mrr@10 of checkpoint-500 is inf"):
        report_to_json(report_from_json(line))


def test_of_a_checkpoint_the_later_report_counts_and_one_of_the_same_name_elsewhere_is_another() -> None:
    skipped, done = report(500, "skipped"), replace(report(500), at="2026-11-22T00:00:00Z")
    elsewhere = replace(done, checkpoint=replace(done.checkpoint, uri="another folder", digest="sha256:ffff"))
    assert latest_of([done, report(900), skipped]) == [done, report(900)]
    assert latest_of([skipped, elsewhere, done]) == [done, elsewhere]
