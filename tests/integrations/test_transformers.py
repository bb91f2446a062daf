"""A transformers Trainer with a watcher beside it: real processes, tiny models."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from dr_validate.integrations.transformers import AsyncValidation
from tests import warm
from tests.factories import write_collection
from tests.integrations.tiny import STATED, Hold, learner, loaded, offline, same_weights, saved_steps, told
from tests.processes import LIMIT_S, is_alive, wait_for

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A training of 60 steps without validation: its losses, its checkpoints, and what the whole collection says of each."""

    losses: list[float]
    folder: Path
    values: dict[int, float]


@pytest.fixture(scope="module")
def alone(harder: Path, tmp_path_factory: pytest.TempPathFactory, write_checkpoint: Callable[..., Path]) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    bert = loaded(write_checkpoint(folder / "base", seed=1))
    plain = {"eval_strategy": "no", "load_best_model_at_end": False, "metric_for_best_model": None, "greater_is_better": None}
    trainer = learner(bert, harder, folder / "out", **plain)
    trainer.train()
    steps = saved_steps(folder / "out")
    values = {step: offline(*loaded(folder / "out" / f"checkpoint-{step}"), harder) for step in steps}
    return Alone(losses=trainer.losses, folder=folder / "out", values=values)


def best_of(values: dict[int, float]) -> int:
    return max(values, key=lambda step: (values[step], -step))


@pytest.mark.usefixtures("warm_watcher")
def test_the_best_of_the_whole_collection_is_loaded_and_the_losses_are_those_of_a_training_without(
    alone: Alone, bert: Any, harder: Path, tmp_path: Path
) -> None:
    trainer = learner(bert, harder, tmp_path / "out")
    command = f'watch.on_best="cat > {tmp_path}/told"'
    AsyncValidation([*STATED, f"dataset.path={harder}", command], backpressure="all").attach(trainer)
    trainer.train()
    assert trainer.losses == alone.losses  # to the bit
    assert told(trainer.state) == pytest.approx(alone.values, abs=1e-6)
    best = best_of(alone.values)
    assert 10 < best < 60, "the last one is the best of this training: it shows nothing"
    assert trainer.state.best_global_step == best
    assert trainer.state.best_metric == pytest.approx(alone.values[best])
    assert same_weights(trainer.model, str(alone.folder / f"checkpoint-{best}"))
    assert json.loads((tmp_path / "told").read_text())["checkpoint"]["step"] == best


@pytest.mark.usefixtures("warm_watcher")
def test_a_slow_watcher_costs_no_checkpoint_and_early_stopping_stops_where_a_replay_does(
    alone: Alone, bert: Any, harder: Path, tmp_path: Path
) -> None:
    trainer = learner(bert, harder, tmp_path / "out", save_total_limit=1, max_steps=90)
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    seen: dict[str, Any] = {}

    def before(step: int) -> None:
        """The watcher stands still for 50 steps; at the next one all its results are there."""
        assert validation.watcher_pid is not None
        if step == 1:
            os.kill(validation.watcher_pid, signal.SIGSTOP)
        if step == 51:
            seen["at 50"] = saved_steps(tmp_path / "out")
            os.kill(validation.watcher_pid, signal.SIGCONT)
            wait_for(lambda: len(validation.results) == 5)

    trainer.add_callback(Hold(before))
    validation = AsyncValidation([*STATED, f"dataset.path={harder}"], backpressure="all").attach(trainer)
    trainer.train()
    assert seen["at 50"] == [10, 20, 30, 40, 50]  # though the limit is 1: none has a result
    assert trainer.state.global_step == 51
    assert replay(alone.values, 2) <= 50
    best = best_of({step: value for step, value in alone.values.items() if step <= 50})
    assert trainer.state.best_global_step == best
    assert saved_steps(tmp_path / "out") == [best]
    assert same_weights(trainer.model, trainer.state.best_model_checkpoint)


@pytest.mark.usefixtures("warm_watcher")  # of the resumed training; the killed one, a process of its own, starts real ones
def test_killed_watchers_and_a_killed_trainer_lose_nothing_and_the_best_is_right_after_a_resume(
    alone: Alone, bert: Any, harder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    bert[0].save_pretrained(str(tmp_path / "start"))
    bert[1].save_pretrained(str(tmp_path / "start"))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "start"), str(harder), str(out)]
    with warm.popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        watchers = [int(line.split()[1]) for line in process.stdout if line.startswith("watcher ")]
        process.kill()  # which has waited for it since step 45
    assert len(set(watchers)) == 2  # the first was killed at step 25
    wait_for(lambda: not any(is_alive(pid) for pid in watchers))
    trainer = learner(bert, harder, out)
    AsyncValidation([*STATED, f"dataset.path={harder}"], backpressure="all").attach(trainer)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.losses == alone.losses[40:]
    assert told(trainer.state) == pytest.approx(alone.values, abs=1e-6)
    assert trainer.state.best_global_step == best_of(alone.values)
    assert same_weights(trainer.model, trainer.state.best_model_checkpoint)
    lines = (out / ".dr_validate" / "reports.jsonl").read_text().splitlines()
    assert len(lines) == 6  # nothing was validated twice


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from dr_validate.integrations.transformers import AsyncValidation
from tests.integrations.tiny import STATED, Hold, learner, loaded
from tests.processes import LIMIT_S, wait_for
torch.set_num_threads(1)
start, collection, out = map(Path, sys.argv[1:])
trainer = learner(loaded(start), collection, out)
def before(step):
    if step == 25:
        wait_for(lambda: len(validation.results) >= 1)
        first = validation.watcher_pid
        print("watcher", first, flush=True)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: validation.watcher_pid is None)
    if step == 45:
        print("watcher", validation.watcher_pid, flush=True)
        os.close(1)
        time.sleep(3600)
trainer.add_callback(Hold(before))
validation = AsyncValidation([*STATED, f"dataset.path={collection}"], backpressure="all").attach(trainer)
trainer.train()
"""


def replay(values: dict[int, float], times: int) -> int:
    """The step after which EarlyStoppingCallback stops."""
    best, worse = -1.0, 0
    for step, value in values.items():
        best, worse = (value, 0) if value > best else (best, worse + 1)
        if worse == times:
            return step
    raise AssertionError("it does not stop")


@pytest.mark.usefixtures("warm_watcher")
def test_of_several_collections_each_is_told_and_the_mean_chooses_and_steps_a_plateau_scheduler(
    bert: Any, harder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_collection(tmp_path / "other", 60)
    given = {"metric_for_best_model": "mean_mrr@10", "max_steps": 30, "lr_scheduler_type": "reduce_lr_on_plateau"}
    trainer = learner(bert, harder, tmp_path / "out", **given)
    stepped: list[float] = []

    def step(self: Any, metrics: float, epoch: int | None = None) -> None:
        stepped.append(metrics)

    def wait(step: int) -> None:
        """Each result comes before the next save."""
        if step in (15, 25):
            wait_for(lambda: len(validation.results) == step // 10)

    monkeypatch.setattr(torch.optim.lr_scheduler.ReduceLROnPlateau, "step", step)
    trainer.add_callback(Hold(wait))
    members = [f"dataset.members.harder={harder}", f"dataset.members.other={other}"]
    validation = AsyncValidation(["dataset=suite", *members, *STATED[1:]], backpressure="all").attach(trainer)
    trainer.train()
    means, of_harder, of_other = (told(trainer.state, f"eval_{name}_mrr@10") for name in ("mean", "harder", "other"))
    assert sorted(means) == sorted(of_harder) == sorted(of_other) == [10, 20, 30]
    assert means == pytest.approx({step: (of_harder[step] + of_other[step]) / 2 for step in means})
    assert stepped == [means[step] for step in (10, 20, 30)]
    assert trainer.state.best_global_step == best_of(means)
    assert trainer.state.best_metric == pytest.approx(means[best_of(means)])
    (row,) = [row for row in trainer.state.log_history if row["step"] == 20 and "eval_mean_mrr@10" in row]
    assert row["eval_mean_mrr@10_low"] < row["eval_mean_mrr@10"] < row["eval_mean_mrr@10_high"]


@pytest.mark.usefixtures("warm_watcher")
def test_a_watcher_that_runs_already_is_used_and_not_stopped(bert: Any, harder: Path, tmp_path: Path, dr_validate: Any) -> None:
    out = tmp_path / "out"
    given = [*STATED, f"dataset.path={harder}", f"state_dir={tmp_path / 'state'}"]
    with dr_validate.start(*given, f"source.path={out}", "watch.poll_s=0.3", stderr=subprocess.DEVNULL) as running:
        wait_for(lambda: any((tmp_path / "state" / "claims").glob("*.lock")))
        trainer = learner(bert, harder, out, max_steps=20)
        AsyncValidation(given, backpressure="all").attach(trainer)
        trainer.train()
        assert sorted(told(trainer.state)) == [10, 20]
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=LIMIT_S)


class AtTheEnd(TrainerCallback):
    """Calls `then()` when the last step is done, before callbacks that were added later."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def on_log(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if "train_runtime" in parts["logs"]:
            self.then()


@pytest.mark.usefixtures("warm_watcher")
def test_why_results_are_missing_at_the_end_is_said(
    bert: Any, harder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    nowhere = [*(one for one in STATED if not one.startswith("device=")), "device=cuda:99"]

    def stand_still(step: int) -> None:
        if step == 1:
            os.kill(running(), signal.SIGSTOP)

    def go_on() -> None:
        os.kill(pid := running(), signal.SIGCONT)
        wait_for(lambda: validation.watcher_pid != pid)

    def running() -> int:
        assert validation.watcher_pid is not None
        return validation.watcher_pid

    for given, limit, then, why in (
        (STATED, 0, lambda: None, "within exit_timeout_s=0;"),
        (nowhere, 600, go_on, "any more: the watcher has ended;"),
    ):
        trainer = learner(bert, harder, tmp_path / f"out-{limit}", max_steps=10)
        trainer.add_callback(Hold(stand_still if limit else lambda step: None))
        trainer.add_callback(AtTheEnd(then))
        validation = AsyncValidation([*given, f"dataset.path={harder}"], exit_timeout_s=limit).attach(trainer)
        trainer.train()
        assert f"no result of steps 10 {why}" in caplog.text
