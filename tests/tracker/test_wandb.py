"""Weights & Biases without a server: what an offline run of the real SDK holds."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dr_validate.stages import Tracked
from dr_validate.tracker.none import NoTracker
from dr_validate.tracker.wandb import WandbRuns, WandbTracker
from dr_validate.values import Agreement, Checkpoint, Estimate, Report

BLOCK = 32768
SECRET = "0123456789abcdef0123456789abcdef01234567"


def report(step: int, value: float, low: float = 0.0) -> Report:
    return Report(
        checkpoint=Checkpoint(
            name=f"checkpoint-{step}",
            version="v3",
            digest=f"sha256:{step:04x}",
            step=step,
            step_from="folder name",
            created_at="2026-11-21T03:12:00Z",
            uri="somewhere",
        ),
        dataset="vaswani",
        sampler="random",
        spec="s1",
        status="done",
        at="2026-11-21T03:15:10Z",
        metrics={"mrr@10": Estimate(value=value, low=low, high=value, naive=0.9)},
        corpus={"documents": 11429, "encoded": 1143, "encoded_now": 1143, "fraction": 0.1},
        seconds={"load": 1.0, "encode": 20.5, "total": 22.0},
    )


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_DIR", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return tmp_path / "state"


def start(state_dir: Path, spec: str = "s1", folder: str = "", **options: Any) -> WandbRuns:
    tracker = WandbTracker(mode="offline", project="retrieval", **options)
    config = {"dataset": "vaswani", "top_k": 100, "metrics": ["mrr@10"], "api_key": SECRET, "source": {"path": "/home"}}
    names: dict[str, Any] = {"training_run": "tas-b", "spec": spec, "dataset": "vaswani", "sampler": "random"}
    return tracker.start(Tracked(state_dir=state_dir, config=config, folder=folder, **names))


def test_checkpoints_without_a_name_from_another_folder_are_no_rows_of_a_training_that_was_given_a_name(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str, int]] = []

    class Rows:
        def __init__(self, plan: Any, training_run: str, group: str) -> None:
            self.training_run = training_run

        def deliver(self, report: Report, known: Sequence[Report]) -> None:
            told.append(("row", self.training_run, len(known)))

        def settle(self, report: Report) -> bool:
            told.append(("settled", self.training_run, 0))
            return True

    monkeypatch.setattr("dr_validate.tracker.wandb.ValidationRun", Rows)
    monkeypatch.setattr("dr_validate.tracker.wandb.has_died", lambda: False)
    places = {"/x/named": 100, "/x/other": 200}
    reports = [report(step, 0.5) for step in places.values()]
    reports = [
        replace(one, checkpoint=replace(one.checkpoint, uri=f"{folder}/checkpoint"))
        for folder, one in zip(places, reports, strict=True)
    ]
    runs = start(state_dir, folder="/x/named")
    for one in reports:
        runs.deliver(one, reports)
        assert runs.settle(one)
    assert told == [("row", "tas-b", 1), ("settled", "tas-b", 0), ("row", "other", 1), ("settled", "other", 0)]


def close(run: WandbRuns) -> None:
    import wandb

    run.close(60)
    wandb.teardown()  # the SDK's own process writes its file behind our back, until it has ended


def records(folder: Path) -> Iterator[Any]:
    """The records of the one offline run in `folder`: LevelDB's log format, a protobuf message each."""
    import wandb.proto.wandb_internal_pb2 as messages

    # Made at import time, so unknown to the type checker.
    new_record: Any = vars(messages)["Record"]
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, position, message = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := BLOCK - position % BLOCK) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole message, or the last part of one
            record = new_record()
            record.ParseFromString(message)
            yield record
            message = b""


def history(folder: Path) -> list[Mapping[str, Any]]:
    """What was logged, row by row, without what the SDK adds and without the charts, which repeat it."""
    rows: list[Mapping[str, Any]] = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith(("_", "charts/"))})
    return [row for row in rows if row]


def test_rows_carry_the_documented_keys_at_the_training_step(state_dir: Path) -> None:
    agreement = Agreement(metric="mrr@10", checkpoints=2, kendall_tau=None, rmse=0.1, bias=0.2, regret=0.0)
    new = replace(report(1000, 0.5), at="2026-11-21T03:15:09Z")
    old = replace(report(500, 0.25), agreement=agreement)
    baseline = replace(report(500, 0.125, low=0.125), spec="full", sampler="full")
    failed = replace(report(750, 0.3), status="failed", metrics={}, error="NaN in the weights")
    run = start(state_dir)
    run.deliver(new, [new])
    run.deliver(old, [old, new])
    run.deliver(baseline, [baseline])
    run.deliver(failed, [old, failed, new])
    close(run)
    first, second, third, fourth, table = history(state_dir)
    assert first == {
        "train/global_step": 1000,
        "val/vaswani/mrr@10": 0.5,
        "val/vaswani/mrr@10/low": 0,
        "val/vaswani/mrr@10/high": 0.5,
        "val/vaswani/mrr@10/naive": 0.9,
        "cost/encode_s": 20.5,
        "cost/total_s": 22,
        "cost/documents": 1143,
        "lag/steps": 0,
        "lag/seconds": 189,
    }
    assert (second["train/global_step"], second["lag/steps"]) == (500, 500)
    fidelity = {key.rpartition("/")[2]: value for key, value in second.items() if key.startswith("fidelity/vaswani/")}
    assert fidelity == {"checkpoints": 2, "rmse": 0.1, "bias": 0.2, "regret": 0}
    assert (third["train/global_step"], third["full/vaswani/mrr@10"], third["cost/full_encode_s"]) == (500, 0.125, 20.5)
    assert not any(key.startswith(("val/", "lag/", "cost/encode")) for key in third)
    assert fourth == {"train/global_step": 750, "status/failed": 1}
    assert table["tables/checkpoints/size"] > 0


def test_the_table_has_a_row_per_checkpoint(state_dir: Path) -> None:
    skipped = replace(report(750, 0.3), status="skipped", metrics={}, error="stale")
    run = start(state_dir)
    run.deliver(report(500, 0.25), [report(500, 0.25), skipped])
    close(run)
    (path,) = state_dir.glob("wandb/offline-run-*/files/media/table/tables/*.json")
    table = json.loads(path.read_text())
    cells = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["step"], row["status"], row["error"], row["mrr@10"]) for row in cells] == [
        (500, "done", None, 0.25),
        (750, "skipped", "stale", None),
    ]


def test_the_axis_is_the_training_step_and_the_summary_the_best(state_dir: Path) -> None:
    run = start(state_dir)
    for step, value in ((1000, 0.25), (500, 0.5), (750, 0.125)):
        run.deliver(report(step, value), [])
    close(run)
    metrics = {r.metric.glob_name: r.metric for r in records(state_dir) if r.WhichOneof("record_type") == "metric"}
    assert {name for name in metrics if name} == {"val/*", "full/*", "fidelity/*", "cost/*", "lag/*", "status/*"}
    assert {metric.step_metric for name, metric in metrics.items() if name} == {"train/global_step"}
    assert metrics["val/*"].summary.max
    updates = [u for r in records(state_dir) if r.WhichOneof("record_type") == "summary" for u in r.summary.update]
    best = [json.loads(u.value_json) for u in updates if "/".join(u.nested_key) == "val/vaswani/mrr@10"]
    assert best[-1] == {"max": 0.5}
    assert [row["train/global_step"] for row in history(state_dir)] == [1000, 500, 750]


def test_the_run_says_what_it_belongs_to_and_holds_only_what_is_allowed(state_dir: Path) -> None:
    run = start(state_dir)
    run.deliver(report(500, 0.25), [])
    close(run)
    (said,) = [record.run for record in records(state_dir) if record.WhichOneof("record_type") == "run"]
    assert (said.project, said.run_group, said.job_type, list(said.tags)) == (
        "retrieval",
        "tas-b",
        "validate",
        ["vaswani", "random"],
    )
    assert said.run_id == run.run_id()
    config = {update.key: json.loads(update.value_json) for update in said.config.update}
    config.pop("_wandb")
    assert config == {"dataset": "vaswani", "top_k": 100, "metrics": ["mrr@10"]}
    assert not [path for path in state_dir.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_run_is_the_same_after_a_restart_and_another_for_another_spec(state_dir: Path) -> None:
    assert start(state_dir).run_id() == start(state_dir, group="other").run_id()
    assert start(state_dir).run_id() != start(state_dir, spec="s2").run_id()


def test_nothing_is_opened_before_the_first_delivery(state_dir: Path) -> None:
    start(state_dir).close(1)
    assert not state_dir.exists()


def test_group_and_folder_can_be_chosen(state_dir: Path, tmp_path: Path) -> None:
    run = start(state_dir, group="sweep", dir=tmp_path / "elsewhere")
    run.deliver(report(500, 0.25), [])
    close(run)
    (said,) = [record.run for record in records(tmp_path / "elsewhere") if record.WhichOneof("record_type") == "run"]
    assert said.run_group == "sweep"
    assert not (state_dir / "wandb").exists()


def test_no_tracker_takes_everything(tmp_path: Path) -> None:
    names: dict[str, Any] = {"training_run": "t", "spec": "s1", "dataset": "d", "sampler": "full"}
    live = NoTracker().start(Tracked(state_dir=tmp_path, config={}, **names))
    live.deliver(report(500, 0.25), [])
    live.close(1)
    assert not list(tmp_path.iterdir())
    assert "reports.jsonl" in NoTracker().examine()
