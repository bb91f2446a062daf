"""Several collections for each checkpoint, as a user meets them: the command line, real kills, W&B's server on this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories import CommandLine, write_collection
from tests.processes import wait_for
from tests.tracker.watching import QUICK, rows, table
from tests.wandb_server.fixture import ServerHandle, start_server

STEPS, NAMES = (100, 200, 300), ("a", "b", "c")
STATED = ["watch.mode=once", "encoder.pooling=mean", "encoder.normalize=true", "metrics=[mrr@10]", "device=cpu"]
Values = dict[tuple[int, str], float]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerHandle]:
    with start_server(tmp_path / "server") as handle:
        yield handle


@pytest.fixture
def arguments(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> list[str]:
    """Three checkpoints on three collections."""
    for step in STEPS:
        write_checkpoint(tmp_path / "run" / f"checkpoint-{step}", seed=step, step=step)
    for number, name in enumerate(NAMES):
        write_collection(tmp_path / name, 48 + 12 * number)
    members = [f"dataset.members.{name}={tmp_path / name}" for name in NAMES]
    return [f"source.path={tmp_path / 'run'}", "dataset=suite", *members, *STATED]


def done(command_line: CommandLine, state_dir: str = ".dr_validate") -> Values:
    found = [one for one in command_line.reports(state_dir) if one["status"] == "done"]
    values = {(one["checkpoint"]["step"], one["dataset"]): one["metrics"]["mrr@10"]["value"] for one in found}
    assert len(values) == len(found), "something was reported done twice"
    return values


def test_killed_three_times_every_report_and_row_is_there_once_with_the_values_of_separate_runs(
    dr_validate: Any, arguments: list[str], server: ServerHandle, tmp_path: Path
) -> None:
    dr_validate.environment.update({**server.environment(**QUICK), "OMP_NUM_THREADS": "1"})
    online = [*arguments, "tracker=wandb", "tracker.project=retrieval", "tracker.timeout_s=600", "watch.exit_timeout_s=600"]
    for number in (1, 4, 9):
        kill_at(number, dr_validate, online)
    last = dr_validate(*online)
    assert last.returncode == 0, last.stderr
    for name in NAMES:
        single = [f"source.path={tmp_path / 'run'}", "dataset=beir", f"dataset.path={tmp_path / name}", "tracker=none", *STATED]
        assert dr_validate(*single, "state_dir=alone").returncode == 0
    alone = done(dr_validate, "alone")
    means = {(step, "mean"): sum(alone[step, name] for name in NAMES) / 3 for step in STEPS}
    assert done(dr_validate) == pytest.approx({**alone, **means}) and len(alone) == 9
    assert {part: value for part, value in done(dr_validate).items() if part[1] != "mean"} == alone

    (run,) = [view for view in server.runs() if view.job_type == "validate"]
    held = rows(server, run.id)
    assert len(held) == 12 and run.tags == ["mean", "full"]
    logged = {
        (row["train/global_step"], name): row[f"val/{name}/mrr@10"]
        for row in held
        for name in (*NAMES, "mean")
        if f"val/{name}/mrr@10" in row
    }
    assert logged == done(dr_validate)
    of_mean = [row for row in held if "val/mean/mrr@10" in row]
    for row in of_mean:
        assert row["val/mean/mrr@10/low"] < row["val/mean/mrr@10"] < row["val/mean/mrr@10/high"]
        assert row["cost/documents"] == 48 + 60 + 72 and "lag/seconds" in row
    (of_a,) = [row for row in held if "val/a/mrr@10" in row and row["train/global_step"] == 100]
    assert of_a["cost/a/documents"] == 48 and not {"cost/documents", "lag/seconds"} & of_a.keys()
    assert run.config["members"].keys() == set(NAMES)
    assert run.summary["val/mean/mrr@10"]["max"] == pytest.approx(max(means.values()))
    assert sorted((row["dataset"], row["step"]) for row in table(server, "checkpoints")) == sorted(
        (name, step) for name in (*NAMES, "mean") for step in STEPS
    )
    assert {one.collection for one in server.artifacts(type="dataset")} == {f"dataset-{name}" for name in NAMES}
    assert {row["step"] for name in NAMES for row in table(server, f"queries{name}")} == {300}
    assert "mean of collections, mrr@10 by training step" in last.stdout
    assert "mrr@10 by collection and training step" in last.stdout
    assert dr_validate("task=report").returncode == 0
    page = (dr_validate.folder / ".dr_validate" / "report.html").read_text()
    assert "mean of 3 collections" in page and "Its collections (a, b and c) count the same" in page


def kill_at(num_reports: int, command_line: CommandLine, arguments: list[str]) -> None:
    """Start it, and end it as the kernel would when it has this many Reports."""
    process = command_line.start(*arguments)
    wait_for(lambda: len(done(command_line)) >= num_reports or process.poll() is not None)
    process.kill()
    process.communicate()
