"""Sweeps as a user meets them: real launchers, real jobs in their processes, one table at the end."""

import csv
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dr_validate.cli import sweep
from dr_validate.cli.status import show_outcome
from dr_validate.cli.sweep import JobRecord
from dr_validate.cli.sweep_table import JobRow, compared_at_equal_cost, rows_as_csv, show_sweep, sweep_rows, sweep_table
from dr_validate.config import build
from dr_validate.fidelity.comparison import compare
from dr_validate.watcher.loop import Outcome
from dr_validate.watcher.schedule import Target
from tests.factories import composed
from tests.processes import LIMIT_S, wait_for
from tests.report.training import FULL, SAMPLE, Training, bound, exact
from tests.wandb_server.fixture import ServerHandle, start_server

SAMPLED = "sampler=random sampler.fraction=0.1"
LAUNCHERS = ("hydra_plugins.hydra_joblib_launcher", "hydra_plugins.hydra_submitit_launcher")


class Sweeps(NamedTuple):
    """The command line, and what every sweep here is told first."""

    command: Any
    arguments: list[str]
    checkpoints: Path

    @property
    def folder(self) -> Path:
        """Of the only sweep so far."""
        (found,) = (self.command.folder / "state" / "multirun").iterdir()
        return Path(found)

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "sweep.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    def __call__(self, *overrides: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        done: subprocess.CompletedProcess[str] = self.command("-m", *self.arguments, *overrides, **options)
        assert {path.name for path in self.command.folder.iterdir()} == {"state"}, done.stderr
        return done


@pytest.fixture
def sweeps(dr_validate: Any, tmp_path: Path, wide_collection: Path, write_checkpoint: Callable[..., Path]) -> Sweeps:
    folder = tmp_path / "checkpoints"
    for number in (1, 2):
        write_checkpoint(folder / f"checkpoint-{number * 100}", seed=number, step=number * 100)
    arguments = [f"source.path={folder}", "dataset=beir", f"dataset.path={wide_collection}", "state_dir=state", "tracker=none"]
    arguments += ["watch.mode=once", "encoder.pooling=mean", "encoder.normalize=true"]
    return Sweeps(dr_validate, arguments, folder)


@pytest.fixture
def server(tmp_path: Path, dr_validate: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerHandle]:
    """For the command line, and for this process."""
    import wandb

    with start_server(tmp_path / "server") as handle:
        for environment in (handle.environment(), handle.environment()):
            dr_validate.environment.update(environment)
        for name, value in environment.items():
            if name.startswith("WANDB_") or name == "NO_PROXY":
                monkeypatch.setenv(name, value)
        wandb.teardown()  # the SDK reads its settings once in a process
        yield handle
        wandb.teardown()


def strategies(server: ServerHandle) -> list[list[dict[str, Any]]]:
    """The tables of the summary run, the oldest first."""
    found = []
    for artifact in server.artifacts(type="run_table"):
        (path,) = [path for path in artifact.files if path.endswith(".table.json")]
        content = json.loads(artifact.bytes(path))
        if "strategies" in artifact.collection:
            found.append([dict(zip(content["columns"], row, strict=True)) for row in content["data"]])
    return found


def edit_jobs(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    for path in folder.glob("job-*.json"):
        job = json.loads(path.read_text())
        change(job)
        path.write_text(json.dumps(job))


def limit_waits(folder: Path, timeout_s: float) -> None:
    edit_jobs(folder, lambda job: job["config"]["tracker"].update(timeout_s=timeout_s))


def test_a_file_of_ones_own_may_make_a_sweep_of_every_start(sweeps: Sweeps, tmp_path: Path) -> None:
    own = tmp_path / "own" / "run" / "both.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2'}}}\n")
    done = sweeps.command("--config-dir", str(tmp_path / "own"), "+run=both", *sweeps.arguments, "task=status")
    assert [f"job {number} of 2: seed={number} " in done.stderr for number in (1, 2)] == [True, True], done.stderr


def test_jobs_side_by_side_share_a_state_dir_a_spec_and_baselines_and_one_table(
    sweeps: Sweeps, server: ServerHandle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(LAUNCHERS[1], reason="Hydra's submitit launcher is not installed")
    tracker = ["tracker=wandb", "tracker.project=retrieval", "tracker.timeout_s=600", "watch.exit_timeout_s=600"]
    stated = [*tracker, "hydra/launcher=submitit_local"]
    result = sweeps(*stated, "sampler=random,full,full", "sampler.fraction=0.1", below=True)  # which the full corpus lacks
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("A sweep of 3 jobs") == 1
    assert "by training step" not in result.stdout  # one table, not one for each job
    reports = sweeps.command.reports("state")
    values = {(r["sampler"], r["checkpoint"]["step"]): r["metrics"]["mrr@10"]["value"] for r in reports}
    assert len(values) == len(reports) == 4  # two jobs of one spec validated each checkpoint once
    off = [values["random", step] - values["full", step] for step in (100, 200)]
    row, full, again = sweeps.rows
    assert [one["overrides"] for one in sweeps.rows] == [SAMPLED, "sampler=full", "sampler=full"]
    assert [one["job"] for one in sweeps.rows] == ["1", "2", "3"]
    assert float(row["bias"]) == pytest.approx(sum(off) / 2)
    assert row["checkpoints"] == "2"
    assert float(row["value"]) == max(values["random", step] for step in (100, 200))
    assert (row["status"], row["exit_code"]) == ("2 done", "0")
    assert 0 <= int(row["encoded"]) <= 40  # fewer where a job on the full corpus has kept their vectors
    assert "sampler=random" in result.stdout
    assert full["bias"] == again["bias"] == ""
    the_table_is_in_one_run_however_often_it_is_logged(sweeps, server, row)
    a_table_that_cannot_be_logged_is_kept_and_said(sweeps, server, caplog)
    an_offline_table_is_handed_over_once(sweeps, server, monkeypatch)


def the_table_is_in_one_run_however_often_it_is_logged(sweeps: Sweeps, server: ServerHandle, row: dict[str, str]) -> None:
    (run,) = [run for run in server.runs() if run.job_type == "validate-sweep"]
    (table,) = strategies(server)
    assert [one["strategy"] for one in table] == [SAMPLED, "sampler=full", "sampler=full"]
    names = {"value": "value", "low": "low", "high": "high", "naive": "naive", "rmse": "rmse", "bias": "bias"}
    for column, name in {**names, "tau": "kendall_tau", "regret": "regret"}.items():
        assert table[0][column] == (pytest.approx(float(row[name])) if row[name] else None), column
    assert [one["documents"] for one in table] == [20, 200, 200]
    assert (table[0]["covered"], table[0]["with_interval"]) == (0, 0) and table[0]["tau_low"] is None  # too few for intervals
    assert table[1]["covered"] is table[1]["with_interval"] is None
    assert table[1]["bias"] is None and {one["status"] for one in table} == {"2 done"}
    assert run.group == server.runs()[0].group == "checkpoints" and run.state == "finished"
    assert show_sweep(sweeps.folder) == 0  # as a repeated sweep does
    assert len(strategies(server)) == 1 and len(server.run(run.id).history("_table")) == 1
    edit_jobs(sweeps.folder, lambda job: job.update(error="a note"))
    assert show_sweep(sweeps.folder) == 0
    assert [one["status"] for one in strategies(server)[1]] == ["2 done, a note"] * 3
    assert [one.id for one in server.runs() if one.job_type == "validate-sweep"] == [run.id]


def a_table_that_cannot_be_logged_is_kept_and_said(
    sweeps: Sweeps, server: ServerHandle, caplog: pytest.LogCaptureFixture
) -> None:
    edit_jobs(sweeps.folder, lambda job: job.update(error="another note"))
    for hinder, timeout_s in ((server.reject_key, 600), (server.kill, 1)):
        limit_waits(sweeps.folder, timeout_s)
        hinder()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert show_sweep(sweeps.folder) == 0
        assert "the table of the sweep is not in W&B" in caplog.text and "the same command again" in caplog.text
        assert {row["status"] for row in sweeps.rows} == {"2 done, another note"}
    server.start()
    limit_waits(sweeps.folder, 600)
    assert show_sweep(sweeps.folder) == 0
    assert len(strategies(server)) == 3


def an_offline_table_is_handed_over_once(sweeps: Sweeps, server: ServerHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_DIR")
    edit_jobs(sweeps.folder, lambda job: job["config"]["tracker"].update(mode="offline"))
    before = len(server.requests())
    for _ in range(2):
        assert show_sweep(sweeps.folder) == 0
    (folder,) = (sweeps.command.folder / "state").glob("wandb/offline-run-*")
    assert len(server.requests()) == before
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    done = subprocess.run(command, env={**os.environ}, cwd=folder.parent, capture_output=True)  # it leaves logs where it is
    assert done.returncode == 0 and len([run for run in server.runs() if run.job_type == "validate-sweep"]) == 1


def test_a_mistake_in_one_job_of_many_is_shown_and_decides_the_exit_code(sweeps: Sweeps) -> None:
    pytest.importorskip(LAUNCHERS[1], reason="Hydra's submitit launcher is not installed")
    stated = ["hydra/launcher=submitit_local", "sampler=random", "sampler.fraction=0.5", "device=cpu,cuda:93"]
    result = sweeps(*stated, below=True)
    assert result.returncode == 2, result.stderr
    good, bad = sweeps.rows
    assert (good["overrides"], good["status"], good["exit_code"]) == ("device=cpu", "2 done", "0")
    assert "device: got 'cuda:93'" in bad["status"]
    assert (bad["exit_code"], bad["value"]) == ("2", "")
    assert "cuda:93" in result.stdout


def test_a_sweep_of_one_job_ends_like_a_plain_run(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (sweeps.checkpoints / "checkpoint-200" / name).unlink(missing_ok=True)
    result = sweeps()
    assert result.returncode == 1, result.stderr
    (job,) = sweep.records(sweeps.folder)
    assert job.config is not None and job.target is not None
    monkeypatch.chdir(sweeps.command.folder)
    show_outcome(build(job.config), Outcome(target=Target(**job.target), exit_code=1))  # what a plain run ends with
    assert result.stdout == capsys.readouterr().out
    assert "mrr@10 by training step" in result.stdout


def test_a_wish_to_stop_reaches_the_jobs_and_none_begins_after_it(
    sweeps: Sweeps, write_checkpoint: Callable[..., Path]
) -> None:
    pytest.importorskip(LAUNCHERS[0], reason="Hydra's joblib launcher is not installed")
    for number in range(3, 40):  # so many that the first job is not done before it hears of it
        write_checkpoint(sweeps.checkpoints / f"checkpoint-{number * 100}", seed=number, step=number * 100)
    # One job at a time, in a process of its own: with n_jobs=1 joblib would run it in the launching process.
    swept = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.pre_dispatch=1", "sampler=full,random"]
    process = sweeps.command.start("-m", *sweeps.arguments, *swept)
    try:
        locks = sweeps.command.folder / "state" / "claims"
        wait_for(lambda: process.poll() is not None or any(locks.glob("*.lock")))  # at work on the first checkpoint
        assert process.poll() is None, "no job came to its work"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, err
    first, second = sweeps.rows
    assert re.fullmatch(r"(\d+ done, )?stopped", first["status"])
    assert first["exit_code"] == second["exit_code"] == "0"
    assert second["status"] == "not run: the sweep was stopped"
    assert "Traceback" not in err
    assert "A sweep of 2 jobs" in out


def record(number: int, **fields: Any) -> JobRecord:
    overrides = ("dataset=beir", f"sampler.fraction=0.{number}")
    return JobRecord(**{"number": number, "overrides": overrides, "task": "validate", "pid": 1, "host": "there", **fields})


def test_two_sweeps_of_the_same_second_have_different_folders() -> None:
    environments: list[dict[str, str]] = [{}, {sweep.SWEEP_FOLDER: "of another sweep"}]
    for environment in environments:
        sweep.prepare(environment)
        assert sweep.sweep_folder(environment) is None
    assert environments[0][sweep.SWEEP_ID] != environments[1][sweep.SWEEP_ID]


def test_records_come_back_as_they_were_saved_in_order_of_their_numbers(tmp_path: Path) -> None:
    saved = [record(10, exit_code=0), record(9, error="gone", exit_code=2), record(2)]
    for job in saved:
        job.save(tmp_path)
    assert sweep.records(tmp_path) == sorted(saved, key=lambda job: job.number)


@pytest.mark.parametrize(
    ("codes", "worst"), [([0, 0], 0), ([0, 1], 1), ([1, 2, 0], 2), ([0, None], 1), ([None, 2], 2), ([], 0)]
)
def test_the_worst_exit_code_counts_and_a_job_that_died_is_a_failed_one(codes: list[int | None], worst: int) -> None:
    assert sweep.worst_exit_code([record(n, exit_code=code) for n, code in enumerate(codes)]) == worst


def test_a_job_that_died_is_told_from_one_that_was_not_run() -> None:
    rows = sweep_rows(
        [record(0), record(1, exit_code=0, stopped=True), record(2, exit_code=2, error="2 problems:\n  [a]\n  b")]
    )
    assert [row.overrides for row in rows] == ["sampler.fraction=0.0", "sampler.fraction=0.1", "sampler.fraction=0.2"]
    assert [row.status for row in rows] == [
        "died: its process ended before the job did",
        "not run: the sweep was stopped",
        "2 problems: [a] b",
    ]
    assert rows_as_csv(rows).count("\n") == 4


@pytest.mark.parametrize(("jobs", "said"), [("6", "4 more of the sweep never began"), ("2", ""), (None, "")])
def test_jobs_that_never_began_because_another_one_died_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, jobs: str | None, said: str
) -> None:
    monkeypatch.setenv(sweep.SWEEP_JOBS, jobs) if jobs else monkeypatch.delenv(sweep.SWEEP_JOBS, raising=False)
    for number in (1, 2):
        record(number).save(tmp_path)
    assert show_sweep(tmp_path) == 1
    out = capsys.readouterr().out
    assert said in out and ("never began" in out) is bool(said) and "died" in out


def test_only_jobs_of_equal_cost_are_compared_by_error_and_cost_is_counted_in_documents(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with training.ledger:
        training.sample(bound(0.3), bound(0.4))
        training.full(0.2, 0.3)
        sampled, full = training.ledger.reports(SAMPLE), training.ledger.reports(FULL)

    def row(number: int, error: float, share: float, metric: str = "mrr@10") -> JobRow:
        found = compare(sampled, full, "mrr@10")
        assert found
        reports = tuple(replace(each, corpus={**each.corpus, "encoded": 500 * share}) for each in sampled)
        target = {"dataset": "d", "sampler": "random", "spec": SAMPLE, "sampled_spec": SAMPLE, "full_spec": FULL}
        job = record(number, exit_code=0, target=target)
        compared = replace(found, rmse=error)
        return JobRow(job=job, overrides=f"job={number}", reports=reports, comparison=compared, metric=metric)

    reference = "Errors are differences to the full corpus, the reference; a strategy costs the documents of its sample."
    assert compared_at_equal_cost([row(1, 0.2, 1), row(2, 0.1, 1), row(3, 0.01, 4)]) == [
        reference,
        "Of 2 strategies with 500 documents for a checkpoint job=2 has the smallest error (RMSE 0.100 over 2 checkpoints).",
    ]
    for unequal in ([row(1, 0.2, 1), row(2, 0.1, 2)], [row(1, 0.2, 1), row(2, 0.1, 1, "ndcg@10"), row(3, 0.1, 2)]):
        first, second = compared_at_equal_cost(unequal)
        assert first == reference and second.endswith("none is said to have the smallest error.")
    assert compared_at_equal_cost([row(1, 0.2, 1)]) == [reference]
    rows = list(csv.DictReader(rows_as_csv([row(1, 0.2, 1)]).splitlines()))
    assert (rows[0]["documents"], rows[0]["encoded"]) == ("500", "1000")
    columns = [str(column.header) for column in sweep_table([row(1, 0.2, 1)]).columns]
    assert "documents" in columns and "seconds" not in columns


def test_each_training_has_a_row_of_its_own_in_the_job_that_brings_it(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with training.ledger:
        training.strategy(SAMPLE)
        training.strategy(FULL, "full")
        for run, off in (("a", 0.1), ("b", 0.3)):  # checkpoints of the same names
            for step, value in ((100, 0.2), (200, 0.4)):
                training.done(step, bound(value + off), run=run)
                training.done(step, exact(value), FULL, run=run)
    target = {"dataset": "d", "sampler": "random", "spec": SAMPLE, "sampled_spec": SAMPLE, "full_spec": FULL}

    def job(number: int, *overrides: str) -> JobRecord:
        stated = ["dataset=beir", "dataset.path=unused", f"state_dir={tmp_path}", "tracker=none"]
        return record(number, exit_code=0, target=target, config=composed(*stated, *overrides))

    def told(rows: list[JobRow]) -> list[tuple[int, str, int, float]]:
        known = [(row, row.agreement, row.comparison) for row in rows]
        assert all(agreement and found and agreement.bias == found.bias for _, agreement, found in known)
        return [(row.job.number, row.training, a.checkpoints, round(a.bias, 6)) for row, a, _ in known if a]

    folders = [job(n, "source.path=unused", f"source.name={name}") for n, name in enumerate("ab", 1)]
    assert told(sweep_rows(folders)) == [(1, "a", 2, 0.1), (2, "b", 2, 0.3)]
    project = [job(n, "source=wandb", "source.project=p") for n in (1, 2)]  # whose versions say which run logged them
    rows = sweep_rows(project)
    assert told(rows) == [(1, "a", 2, 0.1), (1, "b", 2, 0.3), (2, "a", 2, 0.1), (2, "b", 2, 0.3)]
    assert [row.overrides.rpartition(" ")[2] for row in rows] == ["(a)", "(b)"] * 2
    assert sweep_table(rows).title == "A sweep of 2 jobs"
    assert [one["training"] for one in csv.DictReader(rows_as_csv(rows).splitlines())] == ["a", "b"] * 2
    (empty,) = sweep_rows([job(1, "source.path=unused", "source.name=c")])
    assert (empty.training, empty.status) == ("c", "nothing to validate")


def test_a_training_without_a_name_in_another_folder_is_not_in_the_row_of_a_named_one(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with training.ledger:
        training.strategy(SAMPLE)
        training.strategy(FULL, "full")
        for run, folder, off in (("a", "/x/a", 0.1), ("", "/x/output", 0.3)):
            for step, value in ((100, 0.2), (200, 0.4)):
                training.done(step, bound(value + off), run=run, folder=folder)
                training.done(step, exact(value), FULL, run=run, folder=folder)
    target = {"dataset": "d", "sampler": "random", "spec": SAMPLE, "sampled_spec": SAMPLE, "full_spec": FULL}
    stated = ["dataset=beir", "dataset.path=unused", f"state_dir={tmp_path}", "tracker=none"]
    config = composed(*stated, "source.path=/x/a", "source.name=a")
    (row,) = sweep_rows([record(1, exit_code=0, target=target, config=config)])
    assert row.agreement and (row.training, row.agreement.checkpoints, round(row.agreement.bias, 6)) == ("a", 2, 0.1)


def test_what_looks_like_markup_is_shown_as_it_is_and_a_narrow_terminal_hides_no_digit() -> None:
    from rich.console import Console

    rows = sweep_rows([record(0, overrides=("metrics=[mrr@10]",), exit_code=0), record(1, exit_code=0)])
    for width, whole in ((140, "metrics=[mrr@10]"), (70, "metrics=")):
        console = Console(width=width)
        with console.capture() as capture:
            console.print(sweep_table(rows))
        assert whole in capture.get()
        assert "…" not in capture.get()


def test_a_secret_in_an_override_is_not_written_down(tmp_path: Path) -> None:
    sweep.begin(tmp_path, 0, ["+tracker.api_key=0123456789abcdef", "seed=1"], "validate")
    (job,) = sweep.records(tmp_path)
    assert job.overrides == ("+tracker.api_key=(not shown)", "seed=1")
    assert "0123456789abcdef" not in (tmp_path / "job-0.json").read_text()


def test_the_launchers_are_pinned_alike_everywhere() -> None:
    root = Path(__file__).resolve().parents[2]
    pins = dict(line.split("==") for line in (root / "scripts" / "constraints.txt").read_text().split())
    project = (root / "pyproject.toml").read_text()
    for name in ("hydra-joblib-launcher", "hydra-submitit-launcher"):
        assert project.count(f'"{name}=={pins[name]}"') == 2
