"""scripts/gpu_check.py, on a CPU and small: what it would say of a GPU it says in the same form."""

import json
import sys
from pathlib import Path

import pytest

from tests import warm

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.py"
pytestmark = pytest.mark.slow


def said(*steps: str) -> list[dict[str, object]]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--steps", *steps]
    done = warm.run(command, below=True, stderr=None)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, lines
    return lines


def test_every_architecture_and_index_is_right_and_no_table_is_written() -> None:
    before = SCRIPT.with_name("GPU.md").exists()
    lines = said("architectures", "ranking", "memory")
    ways = {str(line["model"]): line["way"] for line in lines if line["step"] == "architectures"}
    assert ways["Bert"] == ways["Qwen3"] == "packed" and ways["MPNet"] == "padded" and len(ways) == 6
    assert {line["index"] for line in lines if line["step"] == "ranking"} == {"torch", "flat", "factory"}
    assert all(line["right"] is True for line in lines if line["step"] != "memory")
    assert SCRIPT.with_name("GPU.md").exists() == before


def test_a_killed_command_goes_on_to_the_same_ranking() -> None:
    one, first, last, needs, two, killed = said("whole")
    assert isinstance(one["seconds_a_checkpoint"], float)
    assert isinstance(first["first_checkpoint"], dict) and first["first_checkpoint"]["encode"] > 0
    assert isinstance(last["last_checkpoint"], dict) and last["last_checkpoint"]["encode"] > 0
    assert isinstance(needs["device_needs"], dict) and needs["device_needs"]["encode"] > 0
    assert two["right"] is True and two["at_once"] == 2
    assert killed["right"] is True


def test_a_step_that_fails_does_not_stop_the_next() -> None:
    command = [sys.executable, str(SCRIPT), "--device", "nowhere", "--tiny", "--steps", "ranking", "memory"]
    done = warm.run(command, below=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert any("error" in line for line in lines) and lines[-1]["step"] == "memory"
