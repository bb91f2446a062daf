"""Weights & Biases online: the real SDK in processes of their own, against the loopback server, through every trouble."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dr_validate.component import fingerprint
from dr_validate.values import Agreement, Report
from tests.processes import children, wait_for
from tests.tracker.watching import (
    REPORTS,
    RUN,
    TIMEOUT_S,
    Start,
    Watcher,
    report,
    rows,
    steps,
    table,
    undelivered,
    versions,
    wait_for_rows,
)
from tests.wandb_server.fixture import KEY, ServerHandle, start_server

SHORT_EXIT_S = 3


@pytest.fixture
def expected(tmp_path_factory: pytest.TempPathFactory) -> Sequence[dict[str, Any]]:
    """The rows of REPORTS as an undisturbed run leaves them."""
    return undisturbed(tmp_path_factory)


_UNDISTURBED: list[dict[str, Any]] = []


def undisturbed(folders: pytest.TempPathFactory) -> Sequence[dict[str, Any]]:
    if not _UNDISTURBED:
        folder = folders.mktemp("undisturbed")
        with start_server(folder / "server") as server:
            watcher = Watcher(server, folder / "state", {})
            watcher.send(*REPORTS)
            watcher.close()
            _UNDISTURBED.extend(rows(server))
    return _UNDISTURBED


def test_late_reports_land_at_their_training_step_and_the_key_nowhere(
    server: ServerHandle, start: Start, state_dir: Path, expected: Sequence[Mapping[str, Any]]
) -> None:
    server.capture()
    watcher = start()
    server.fault("hang", operation="UpsertBucket")
    assert watcher.send(*REPORTS) < TIMEOUT_S / 2  # nobody waits for the run to be opened
    wait_for(lambda: not server.faults_left())
    server.clear()
    said = watcher.close()
    run = server.run(RUN)
    assert (run.group, run.job_type, run.tags, run.state) == ("tas-b", "validate", ["vaswani", "random"], "finished")
    assert run.config["spec"] == "s1" and "state_dir" not in run.config
    assert steps(server) == [500, 1500, 1000, 2000, 500, 2500]
    assert run.history("train/global_step", "val/vaswani/mrr@10") == [
        {"train/global_step": step, "val/vaswani/mrr@10": value}
        for step, value in ((500, 0.25), (1500, 0.5), (1000, 0.375), (2500, 0.75))
    ]
    assert run.history("full/vaswani/mrr@10", "train/global_step") == [{"full/vaswani/mrr@10": 0.125, "train/global_step": 500}]
    assert run.history("lag/steps") == [{"lag/steps": lag} for lag in (0, 0, 500, 0)]
    assert run.history("status/failed", "train/global_step") == [{"status/failed": 1, "train/global_step": 2000}]
    assert {name: run.step_metrics[name] for name in ("val/*", "full/*", "fidelity/*", "cost/*", "lag/*")} == dict.fromkeys(
        ("val/*", "full/*", "fidelity/*", "cost/*", "lag/*"), "train/global_step"
    )
    assert run.summary["val/vaswani/mrr@10"] == {"max": 0.75}
    assert rows(server) == expected and undelivered(state_dir) == 0
    # The key goes out in the credentials, and nowhere else.
    assert KEY not in said and KEY.encode() not in server.captured() and b"mrr@10" in server.captured()
    written = [path for folder in (state_dir, server.folder) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_a_restart_opens_nothing_until_there_is_something_new(
    server: ServerHandle, start: Start, expected: Sequence[Mapping[str, Any]]
) -> None:
    watcher = start()
    watcher.send(*REPORTS[:4])
    watcher.close()
    before = len(server.requests())
    start().close()
    assert len(server.requests()) == before
    watcher = start()
    watcher.send(*REPORTS[4:])
    watcher.close()
    assert rows(server) == expected


def test_nothing_is_logged_before_what_is_there_has_been_read(server: ServerHandle, start: Start) -> None:
    watcher = start()
    watcher.send(*REPORTS[:2])
    wait_for_rows(server, 2)
    watcher.kill()
    server.fault("error", operation="*History*", times=None)
    watcher = start()
    watcher.send(REPORTS[2])
    wait_for(lambda: "delivered later" in watcher.said)
    watcher.close()
    assert steps(server) == [500, 1500] and server.faults_met() >= 1
    server.clear()
    start().close()
    assert steps(server) == [500, 1500, 1000]


def test_a_dead_sdk_process_is_replaced(
    server: ServerHandle, start: Start, state_dir: Path, expected: Sequence[Mapping[str, Any]]
) -> None:
    watcher = start()
    watcher.send(*REPORTS[:3])
    wait_for_rows(server, 1)
    (sdk,) = children(watcher.process.pid)
    os.kill(sdk, signal.SIGKILL)
    watcher.send(*REPORTS[3:])
    watcher.close()
    assert rows(server) == expected and undelivered(state_dir) == 0


def test_a_server_that_comes_up_late_gets_everything(
    server: ServerHandle, start: Start, state_dir: Path, expected: Sequence[Mapping[str, Any]]
) -> None:
    server.stop()
    watcher = start(environment={"WANDB_X_GRAPHQL_RETRY_MAX": "1"})  # so that the SDK gives it up soon, however fast it is
    watcher.send(*REPORTS[:3])
    wait_for(lambda: "delivered later" in watcher.said)
    server.start()
    wait_for_rows(server, 3)
    watcher.send(*REPORTS[3:])
    watcher.close()
    assert rows(server) == expected and undelivered(state_dir) == 0


def test_a_server_that_is_down_at_the_end_is_served_at_the_next_start(
    server: ServerHandle, start: Start, state_dir: Path, expected: Sequence[Mapping[str, Any]]
) -> None:
    watcher = start(exit_timeout_s=SHORT_EXIT_S)
    watcher.send(*REPORTS[:2])
    wait_for_rows(server, 2)
    server.kill()
    watcher.send(*REPORTS[2:])
    started = time.monotonic()
    said = watcher.close()
    assert time.monotonic() - started < TIMEOUT_S / 2
    assert re.search("[456] reports are not known to have arrived", said), said
    server.start()
    start().close()
    assert rows(server) == expected and undelivered(state_dir) == 0
    assert len(server.runs()) == 1


def test_a_server_that_never_answers_holds_nobody_up(
    server: ServerHandle, start: Start, state_dir: Path, expected: Sequence[Mapping[str, Any]]
) -> None:
    watcher = start(exit_timeout_s=SHORT_EXIT_S)
    watcher.send(*REPORTS[:2])
    wait_for_rows(server, 2)
    server.fault("hang", times=None)
    assert watcher.send(*REPORTS[2:]) < TIMEOUT_S / 2
    started = time.monotonic()
    watcher.close()
    assert time.monotonic() - started < TIMEOUT_S / 2
    server.clear()
    start().close()
    assert rows(server) == expected and undelivered(state_dir) == 0


def test_each_training_run_has_its_own_validation_run(server: ServerHandle, start: Start) -> None:
    watcher = start()
    watcher.send(report(500, training_run="t1"), report(500, training_run="t2", second=1), report(1000, training_run="t1"))
    watcher.close()
    ids = {name: fingerprint({"training_run": name, "spec": "s1"}) for name in ("t1", "t2")}
    assert {run.id for run in server.runs()} == set(ids.values())
    assert (steps(server, ids["t1"]), steps(server, ids["t2"])) == ([500, 1000], [500])
    assert {run.group for run in server.runs()} == {"sweep-7"}


def write_queries(state_dir: Path, of: Report, values: Sequence[float]) -> None:
    import pyarrow
    import pyarrow.parquet

    path = state_dir / "queries" / of.spec / f"{of.checkpoint.digest.replace(':', '-')}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"q{n:05}" for n in range(len(values))]
    columns = {"query_id": names, "metric": ["mrr@10"] * len(names), "value": values}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_tables_stay_readable_with_a_hundred_checkpoints_and_seven_thousand_queries(
    server: ServerHandle, start: Start, state_dir: Path
) -> None:
    agreement = Agreement(metric="mrr@10", checkpoints=2, kendall_tau=None, rmse=0.1, bias=0.2, regret=0.0)
    reports = [report(step, 0.25 + step / 1000, second=step) for step in range(1, 101)]
    reports[-1] = replace(reports[-1], agreement=agreement)
    write_queries(state_dir, reports[-2], [0.5] * 7000)
    write_queries(state_dir, reports[-1], [0.5 + (n - 3000) / 10000 for n in range(7000)])
    watcher = start()
    watcher.send(*reports)
    watcher.close()
    assert [row["step"] for row in table(server, "checkpoints")] == list(range(1, 101))
    changes = table(server, "queries")
    assert len(changes) == 100
    assert (changes[0]["query_id"], changes[-1]["query_id"]) == ("q00000", "q06999")
    assert (changes[0]["step"], changes[0]["best_step"]) == (100, 99)
    assert changes[0]["change"] == pytest.approx(-0.3) and changes[-1]["change"] == pytest.approx(0.3999)
    assert [row["rmse"] for row in table(server, "fidelity")] == [0.1]
    logged = [artifact for artifact in server.artifacts(type="run_table") if "checkpoints" in artifact.collection]
    assert len(logged) <= 11


TRAIN = """
import wandb
with wandb.init(project="retrieval", id="t1") as run:
    for n in range(3):
        version = wandb.Artifact("model-t1", "model")
        with version.new_file("weights") as stream:
            stream.write(str(n))
        run.log_artifact(version).wait()
"""


def test_lineage_leads_from_model_and_data_to_the_report_and_the_best_has_an_alias_if_asked_for(
    server: ServerHandle, start: Start, state_dir: Path
) -> None:
    server.python(TRAIN)
    sample = state_dir / "samples" / "f1.parquet"
    sample.parent.mkdir(parents=True)
    sample.write_bytes(b"ids and odds")
    watcher = start()
    watcher.send(*versions([0.5, 0.25]))
    watcher.close()
    assert all(artifact.aliases in ([], ["latest"]) for artifact in server.artifacts(type="model"))
    watcher = start(alias_best=True)
    for one in versions([0.5, 0.25, 0.75, 0.5])[2:]:  # the last one is not there: nothing leads to its report
        watcher.send(one)
    watcher.close()
    run = fingerprint({"training_run": "t1", "spec": "s1"})
    assert [artifact.used_by for artifact in server.artifacts(type="model")] == [[run]] * 3
    (dataset,), (manifest,) = server.artifacts(type="dataset"), server.artifacts(type="sample")
    assert (dataset.metadata["documents"], dataset.metadata["dataset_fingerprint"]) == (11429, "d1")
    assert manifest.bytes("sample.parquet") == b"ids and odds"
    assert dataset.used_by == manifest.used_by == [run]
    validations = server.artifacts(type="validation")
    assert [json.loads(one.bytes("validation.json"))["checkpoint"]["step"] for one in validations] == [0, 100, 200, 300]
    assert {one.logged_by for one in validations} == {run}
    assert ["best-vaswani-mrr@10" in artifact.aliases for artifact in server.artifacts(type="model")] == [False, False, True]
    assert steps(server, run) == [0, 100, 200, 300]


def test_alias_summary_and_charts_are_those_of_what_the_latest_report_sees(server: ServerHandle, start: Start) -> None:
    server.python(TRAIN)
    first, second, third = (replace(one, notes={"estimate": {"sample": "f1"}}) for one in versions([0.5, 0.375, 0.25]))
    seen = {
        one.checkpoint.digest: {"mrr@10": [value, 0.125, 0.5, 0.125, 0.5]} for one, value in ((first, 0.25), (second, 0.3125))
    }
    watcher = start(alias_best=True)
    watcher.send(first, second, replace(third, notes={"estimate": {"sample": "f1", "earlier": {"f1": seen}}}))
    watcher.close()
    assert ["best-vaswani-mrr@10" in artifact.aliases for artifact in server.artifacts(type="model")] == [False, True, False]
    run = server.run(fingerprint({"training_run": "t1", "spec": "s1"}))
    assert run.summary["val/vaswani/mrr@10"] == {"max": 0.3125}  # while the rows stay what was known when they came
    assert [row["val/vaswani/mrr@10"] for row in run.history("val/vaswani/mrr@10")] == [0.5, 0.375, 0.25]
    chart = {(row["lineKey"], row["step"]): row["lineVal"] for row in table(server, "chartsvaswanimrr")}
    assert [chart["value", step] for step in (0, 100, 200)] == [0.25, 0.3125, 0.25]
    assert [chart["high", step] for step in (0, 100, 200)] == [0.5, 0.5, 0.25]


def test_a_new_best_and_a_clear_fall_are_told_once_though_a_restart_brings_them_again(
    server: ServerHandle, start: Start, state_dir: Path
) -> None:
    def against(step: int, value: float, second: int, half: float) -> Report:
        made, best = report(step, value, second=second), report(1000)
        told = {"low": -1.0, "high": 1.0, "population": [value - 0.5 - half, value - 0.5 + half]}
        return replace(made, notes={"estimate": {"metric": "mrr@10", "differences": {best.checkpoint.digest: told}}})

    watcher = start(alert=True)
    watcher.send(report(1000, 0.5, second=1))
    wait_for_rows(server, 1)
    watcher.send(against(500, 0.1, 2, 0.05), against(1500, 0.4, 3, 0.2), against(2000, 0.3, 4, 0.1))
    wait_for_rows(server, 4)
    watcher.kill()
    with sqlite3.connect(state_dir / "ledger.db") as ledger:
        ledger.execute("DELETE FROM deliveries")  # as if nothing was known to have arrived
    watcher = start(alert=True)
    watcher.send(report(2500, 0.75, second=5))
    watcher.close()
    told = [(one["title"], one["text"].partition(" (")[0]) for one in server.run(RUN).record.alerts]
    labels = [f"checkpoint-{step}:v3" for step in (1000, 2000, 2500)]
    assert told == list(zip(("New best mrr@10", "mrr@10 has fallen", "New best mrr@10"), labels, strict=True))


def test_a_refused_key_keeps_the_reports(
    server: ServerHandle, start: Start, state_dir: Path, expected: Sequence[Mapping[str, Any]]
) -> None:
    server.reject_key()
    watcher = start()
    watcher.send(*REPORTS)
    wait_for(lambda: "delivered later" in watcher.said)
    assert server.runs() == []
    server.clear()
    wait_for_rows(server, len(REPORTS))
    said = watcher.close()
    assert "tracker wandb:" in said and "WANDB_API_KEY" in said and KEY not in said
    assert rows(server) == expected and undelivered(state_dir) == 0


def test_without_a_key_nobody_is_asked_for_one(start: Start, server: ServerHandle, state_dir: Path) -> None:
    watcher = start(environment={"WANDB_API_KEY": "", "HOME": str(state_dir), "NETRC": str(state_dir / "none")})
    watcher.send(REPORTS[0])
    assert "no W&B key" in watcher.close()
    assert undelivered(state_dir) == 1 and not server.requests()


def test_a_process_of_wandb_that_has_ended_is_named_with_the_way_out(server: ServerHandle) -> None:
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "WANDB_SERVICE": "3-1-unix-/nowhere/socket"}
    said = server.python(EXAMINE, environment)
    assert said.startswith("problem: tracker: the process of W&B cannot be reached") and "unset WANDB_SERVICE" in said


EXAMINE = """
import json
from dr_validate.errors import SetupError
from dr_validate.tracker.wandb import WandbTracker
try:
    said = WandbTracker(project="retrieval", timeout_s=600).examine()
except SetupError as error:
    said = f"problem: {error}"
print(json.dumps(said))
"""


def test_the_doctor_says_whose_key_it_is_or_that_it_is_refused(server: ServerHandle) -> None:
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert "logged in as tester" in server.python(EXAMINE, environment)
    server.reject_key()
    said = server.python(EXAMINE, environment)
    assert said.startswith("problem: ") and "wandb login" in said and KEY not in said


def test_synced_offline_runs_of_several_starts_are_one_dashboard(
    server: ServerHandle, start: Start, expected: Sequence[Mapping[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "off line"
    for part in (REPORTS[4:], REPORTS[:1], REPORTS[1:4]):  # the best one first: the last folder knows of it
        watcher = start(mode="offline", dir=str(folder))
        watcher.send(*part)
        said = watcher.close()
    assert not server.requests() and len(list(folder.glob("wandb/offline-run-*"))) == 3
    (command,) = [line.partition("before: ")[2] for line in said.splitlines() if "wandb sync" in line]
    command = f"{sys.executable} -m {command}"
    for _ in range(2):  # what is synced already stays as it is
        done = subprocess.run(["sh", "-c", command], env=server.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (run,) = server.runs()
        assert [row["_report"] for row in rows(server)] == [row["_report"] for row in expected]
        numbers = [row["_step"] for row in run.history()]
        assert numbers == sorted(set(numbers))  # of two rows with one number W&B keeps one
    assert run.summary["val/vaswani/mrr@10"] == {"max": 0.75} and run.summary["val/vaswani/mrr@10/high"] == {"max": 0.75}
    assert (run.state, len(table(server, "checkpoints"))) == ("finished", 5)
