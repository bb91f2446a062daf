"""Rows in the training run itself: beside those of a training in shared mode, and never in any other."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dr_validate.errors import SetupError
from dr_validate.tracker.wandb import WandbTracker
from tests.processes import LIMIT_S
from tests.tracker.watching import QUICK, Start, report, rows, undelivered, versions, wait_for_rows
from tests.wandb_server.fixture import ServerHandle

TRAIN = """
import os, sys, wandb
with wandb.init(project="retrieval", id=os.environ["RUN"], name="a name", group="g", tags=["mine"], config={"seed": 1}) as run:
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)
    run.define_metric("loss", summary="min")
    for n in range(3):
        run.log({"loss": 3 - n, "train/global_step": n * 100})
        version = wandb.Artifact(f"model-{run.id}", "model")
        with version.new_file("weights") as stream:
            stream.write(str(n))
        run.log_artifact(version).wait()
    print("logged", flush=True)
    for line in sys.stdin:
        run.log({"loss": 0.5, "train/global_step": int(line)})
        print("logged", flush=True)
"""


class Training:
    """A training run in a process of its own, until it is ended."""

    def __init__(self, server: ServerHandle, name: str, mode: str) -> None:
        environment = {"RUN": name, "WANDB_MODE": mode, **QUICK}
        self.process = server.start_python(TRAIN, environment)
        self._logged()

    def log(self, step: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{step}\n")
        self.process.stdin.flush()
        self._logged()

    def end(self) -> None:
        _, said = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0, said

    def _logged(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "logged\n", self.process.communicate()[1]


@pytest.fixture
def trainings(server: ServerHandle) -> Iterator[list[Training]]:
    """For those to put in that are to end with the test."""
    begun: list[Training] = []
    yield begun
    for training in begun:
        training.process.kill()
        training.process.communicate()


def losses(server: ServerHandle, run: str) -> list[dict[str, Any]]:
    return server.run(run).history("loss", "train/global_step")


def test_a_training_run_in_shared_mode_gets_the_rows_beside_its_own_each_once(
    server: ServerHandle, start: Start, state_dir: Path, trainings: list[Training]
) -> None:
    training = Training(server, "t1", "shared")
    trainings.append(training)
    reports = versions([0.25, 0.75, 0.5])
    watcher = start(attach=True)
    watcher.send(*reports[:2])
    wait_for_rows(server, 2, "t1")
    watcher.kill()  # what has arrived is not known to the ledger: it is read back
    training.log(300)
    watcher = start(attach=True, alias_best=True)
    watcher.send(*reports[2:])
    watcher.close()
    assert server.run("t1").state == "running"  # its end is the training's to say
    training.log(400)
    training.end()
    (run,) = server.runs()
    assert [row["train/global_step"] for row in losses(server, "t1")] == [0, 100, 200, 300, 400]
    values = {row["train/global_step"]: row["val/vaswani/mrr@10"] for row in rows(server, "t1")}
    assert values == {0: 0.25, 100: 0.75, 200: 0.5} and len(rows(server, "t1")) == 3 and undelivered(state_dir) == 0
    assert {row["_spec"] for row in rows(server, "t1")} == {"s1"}
    # Nothing else of it has changed.
    assert (run.name, run.group, run.tags, run.config, run.state) == ("a name", "g", ["mine"], {"seed": 1}, "finished")
    assert run.summary["train/global_step"] == 400 and run.summary["loss"] == {"min": 0.5}
    assert run.summary["val/vaswani/mrr@10"] == {"max": 0.75}
    assert run.step_metrics["*"] == "train/global_step"
    assert [one.used_by for one in server.artifacts(type="model")] == [[]] * 3  # it does not use what it makes
    assert [one.logged_by for one in server.artifacts(type="validation")] == ["t1"] * 3
    alias = "best-vaswani-mrr@10"
    assert [alias in one.aliases for one in server.artifacts(type="model")] == [False, True, False]


def test_an_ended_training_run_is_left_ended_and_keeps_one_spec(
    server: ServerHandle, start: Start, state_dir: Path, tmp_path: Path
) -> None:
    Training(server, "t1", "shared").end()
    (one,) = versions([0.25])
    watcher = start(attach=True)
    watcher.send(one)
    watcher.close()
    run = server.run("t1")
    assert run.state == "finished" and len(rows(server, "t1")) == 1
    assert run.step_metrics["val/vaswani/mrr@10"] == run.step_metrics["*"] == "train/global_step"
    watcher = start(attach=True, folder=tmp_path / "other", spec="s2")
    watcher.send(replace(one, spec="s2"))
    assert "rows of another spec (s1; this one is s2)" in watcher.close()
    assert len(rows(server, "t1")) == 1


EXAMINE = """
import json
from dr_validate.errors import SetupError
from dr_validate.tracker.wandb import WandbTracker
from tests.processes import LIMIT_S
from tests.tracker.watching import versions
found = []
for name in ("t2", "t1"):
    checkpoints = [one.checkpoint for one in versions([0.5], name)]
    try:
        found.append(WandbTracker(attach=True).examine(lambda: checkpoints))
    except SetupError as error:
        found.append(f"problem: {error}")
found.append(WandbTracker(attach=True).examine(lambda: []))
print(json.dumps(found))
"""


def test_a_training_run_that_is_not_in_shared_mode_is_refused_and_stays_untouched(
    server: ServerHandle, start: Start, state_dir: Path
) -> None:
    Training(server, "t1", "online").end()
    before, history = server.run("t1").record, server.run("t1").history()
    Training(server, "t2", "shared").end()
    watcher = start(attach=True)
    # The one that is refused, one that is not there, and one that does not wait for them.
    missing = report(900, training_run="t3")
    watcher.send(*versions([0.25, 0.5]), missing, *versions([0.5], "t2"))
    wait_for_rows(server, 1, "t2")
    said = watcher.close()
    assert said.count("the training run tester/retrieval/t1 is not known to be in shared mode") == 1, said
    assert "WANDB_MODE=shared" in said and "W&B has no run retrieval/t3" in said
    assert "3 reports are not known to have arrived" in said
    assert server.run("t1").record == before and server.run("t1").history() == history
    assert len(rows(server, "t2")) == 1 and undelivered(state_dir) == 3
    good, bad, none = server.python(EXAMINE, {"PYTHONPATH": str(Path(__file__).resolve().parents[2])})
    assert "attached to tester/retrieval/t2, in shared mode" in good
    assert bad.startswith("problem: tracker.attach: the training run tester/retrieval/t1 is not known to be in shared mode")
    assert "no checkpoint yet" in none
    watcher = start()  # without attach they go where they always do
    watcher.close()
    assert undelivered(state_dir) == 0


def test_what_cannot_go_with_it_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="attach=true needs mode=online"):
        WandbTracker(attach=True, mode="offline")
    with pytest.raises(ValidationError, match="group has no effect with attach=true"):
        WandbTracker(attach=True, group="g")
    monkeypatch.setenv("WANDB_MODE", "offline")
    names: dict[str, Any] = {"training_run": "t", "spec": "s1", "dataset": "d", "sampler": "full"}
    with pytest.raises(SetupError, match="WANDB_MODE=offline"):
        WandbTracker(attach=True).start(state_dir=tmp_path, config={}, **names)
