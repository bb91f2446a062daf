"""What runs when a checkpoint is the best so far."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from dr_validate.config import Watch
from dr_validate.values import Checkpoint, Estimate, Report
from dr_validate.watcher.delivery import OnBest

pytestmark = pytest.mark.slow  # the commands are processes


def report(step: int, value: float, **changes: Any) -> Report:
    name = f"checkpoint-{step}"
    made = Checkpoint(
        name=name, version=name, digest=f"sha256:{step}", step=step, step_from="folder name", created_at="", uri=""
    )
    estimate = Estimate(value=value, low=value, high=value, naive=value)
    given: dict[str, Any] = {"dataset": "d", "sampler": "full", "spec": "s", "status": "done", "at": "2026-11-21T03:12:00Z"}
    return Report(checkpoint=made, metrics={"mrr@10": estimate}, **given | changes)


def told_to(command: str, timeout_s: float = 3600) -> OnBest:
    return OnBest("s", Watch(on_best=command, on_best_timeout_s=timeout_s))


def test_each_new_best_is_given_to_the_command_and_nothing_else_is(tmp_path: Path) -> None:
    hook = told_to(f"cat >> '{tmp_path}/told'; echo >> '{tmp_path}/told'")
    history = [report(10, 0.2), report(20, 0.1), report(30, 0.3)]
    for number, one in enumerate(history, 1):
        hook.deliver(one, history[:number])
    hook.deliver(report(40, 0.9, spec="another"), [report(40, 0.9, spec="another")])
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [one["checkpoint"]["step"] for one in told] == [10, 30]


def test_one_that_was_overtaken_before_its_turn_is_not_told(tmp_path: Path) -> None:
    hook = told_to(f"cat > '{tmp_path}/told'")
    hook.deliver(report(10, 0.2), [report(10, 0.2), report(20, 0.3)])
    assert not (tmp_path / "told").exists()


def test_a_command_that_hangs_or_fails_is_said_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        told_to("sleep 3600 & sleep 3600", 0.1).deliver(report(10, 0.2), [report(10, 0.2)])
        told_to("echo no room >&2; exit 3").deliver(report(10, 0.2), [report(10, 0.2)])
    hung, failed = (record.getMessage() for record in caplog.records)
    assert "watch.on_best_timeout_s=0.1" in hung
    assert "exit code 3" in failed
    assert failed.endswith("no room")
