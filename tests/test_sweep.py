"""Sweeps as a user meets them: real launchers, real jobs in their processes, one table at the end."""

import csv
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dr_validate import sweep
from dr_validate.sweep import JobRecord
from dr_validate.sweep_table import rows_as_csv, sweep_rows, sweep_table

LAUNCHERS = ("hydra_plugins.hydra_joblib_launcher", "hydra_plugins.hydra_submitit_launcher")


@pytest.fixture
def checkpoints(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> Path:
    folder = tmp_path / "checkpoints"
    for number in (1, 2):
        write_checkpoint(folder / f"checkpoint-{number * 100}", seed=number, step=number * 100)
    return folder


@pytest.fixture
def arguments(checkpoints: Path, wide_collection: Path) -> list[str]:
    return [
        f"source.path={checkpoints}",
        "dataset=beir",
        f"dataset.path={wide_collection}",
        "tracker=none",
        "watch.mode=once",
        "encoder.pooling=mean",
        "encoder.normalize=true",
        "state_dir=state",
    ]


def only_sweep(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_jobs_side_by_side_share_a_state_dir_a_spec_and_baselines(dr_validate: Any, arguments: list[str]) -> None:
    pytest.importorskip(LAUNCHERS[0])
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
    result = dr_validate("-m", *arguments, *parallel, "sampler=random,full", "index=flat,torch")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("A sweep of 4 jobs") == 1
    assert "by training step" not in result.stdout  # one table, not one for each job
    reports = dr_validate.reports("state")
    values = {(r["sampler"], r["checkpoint"]["step"]): r["metrics"]["mrr@10"]["value"] for r in reports}
    assert len(values) == len(reports) == 4  # two jobs of one spec validated each checkpoint once
    off = [values["random", step] - values["full", step] for step in (100, 200)]
    rows = {row["overrides"]: row for row in rows_of(only_sweep(dr_validate.folder / "state" / "multirun"))}
    assert set(rows) == {f"sampler={s} index={i}" for s in ("random", "full") for i in ("flat", "torch")}
    for name in ("sampler=random index=flat", "sampler=random index=torch"):
        row = rows[name]
        assert float(row["bias"]) == pytest.approx(sum(off) / 2)
        assert row["checkpoints"] == "2"
        assert float(row["value"]) == max(values["random", step] for step in (100, 200))
        assert (row["encoded"], row["status"], row["exit_code"]) == ("40", "2 done", "0")
        assert name in result.stdout
    assert rows["sampler=full index=flat"]["bias"] == ""
    assert {path.name for path in dr_validate.folder.iterdir()} == {"state"}


def test_a_mistake_in_one_job_of_many_machines_is_shown_and_decides_the_exit_code(
    dr_validate: Any, arguments: list[str]
) -> None:
    pytest.importorskip(LAUNCHERS[1])
    swept = ["hydra/launcher=submitit_local", "sampler=random", "sampler.fraction=0.5,2"]
    result = dr_validate("-m", *arguments, *swept)
    assert result.returncode == 2, result.stderr
    good, bad = rows_of(only_sweep(dr_validate.folder / "state" / "multirun"))
    assert (good["overrides"], good["status"], good["exit_code"]) == ("sampler.fraction=0.5", "2 done", "0")
    assert "sampler.fraction: Input should be less than or equal to 1 (got 2)" in bad["status"]
    assert (bad["exit_code"], bad["value"]) == ("2", "")
    assert "(got 2)" in result.stdout
    assert {path.name for path in dr_validate.folder.iterdir()} == {"state"}


def test_a_sweep_of_one_job_ends_like_a_plain_run(dr_validate: Any, arguments: list[str], checkpoints: Path) -> None:
    (checkpoints / "checkpoint-200" / "tokenizer.json").unlink()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (checkpoints / "checkpoint-200" / name).unlink(missing_ok=True)
    swept = dr_validate("-m", *arguments)
    plain = dr_validate(*arguments)
    assert swept.returncode == plain.returncode == 1, swept.stderr
    assert swept.stdout == plain.stdout
    assert "mrr@10 by training step" in plain.stdout


def test_a_wish_to_stop_reaches_the_jobs_and_none_begins_after_it(dr_validate: Any, arguments: list[str]) -> None:
    pytest.importorskip(LAUNCHERS[0])
    # One job at a time, in a process of its own: with n_jobs=1 joblib would run it in the launching process.
    swept = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.pre_dispatch=1", "sampler=full,random"]
    process = dr_validate.start("-m", *arguments, *swept)
    try:
        end = time.monotonic() + 60
        while not list((dr_validate.folder / "state").glob("claims/*.lock")):  # at work on the first checkpoint
            assert time.monotonic() < end and process.poll() is None, "no job came to its work"
            threading.Event().wait(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    first, second = rows_of(only_sweep(dr_validate.folder / "state" / "multirun"))
    assert first["status"] in ("stopped", "1 done, stopped")
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
    root = Path(__file__).resolve().parents[1]
    pins = dict(line.split("==") for line in (root / "scripts" / "constraints.txt").read_text().split())
    project = (root / "pyproject.toml").read_text()
    for name in ("hydra-joblib-launcher", "hydra-submitit-launcher"):
        assert project.count(f'"{name}=={pins[name]}"') == 2
