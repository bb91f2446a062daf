"""`scripts/research/ray_speed.py`, on a collection that takes no time."""

import json
import os
import sys
from pathlib import Path

from tests import ray_python, warm

ROOT = Path(__file__).resolve().parents[2]


def test_the_two_engines_take_turns_and_their_rankings_are_compared(minilm: Path, collection: Path, tmp_path: Path) -> None:
    command = [sys.executable, "scripts/research/ray_speed.py", "--collection", str(collection), "--fraction", "1"]
    result = warm.run([*command, "--rounds", "1", "--slice", "8"], cwd=ROOT, env={**os.environ, **ray_python.environment()})
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [(one["round"], one["engine"]) for one in found[:-1]] == [(0, "local"), (0, "ray"), (1, "local"), (1, "ray")]
    assert all(one["cpu_s"] > 0 and one["documents"] == 48 for one in found[:-1])
    assert found[-1] == {"rankings_equal": True, "different_rankings": 1}
