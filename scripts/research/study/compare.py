"""The same study by the code of another commit, and both side by side."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dr_validate.errors import SetupError

ROOT = Path(__file__).resolve().parents[3]
Rows = Mapping[tuple[str, str, str, str], str]  # metric, budget, strategy, column
COLUMNS = (
    "bias",
    "RMSE",
    "difference RMSE",
    "tau",
    "regret",
    "levels covered",
    "worst checkpoint",
    "half width of levels",
    "differences covered",
    "worst pair",
    "half width of differences",
)


def study_at(commit: str, arguments: Sequence[str]) -> str:
    """What the study with these arguments prints there, in a worktree that is removed again. Raises SetupError."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "worktree"
        _run(["git", "worktree", "add", "--detach", "--quiet", str(place), commit], ROOT, {})
        try:
            (script,) = (place / "scripts").glob("**/fidelity_study.py")  # it has not always been here
            command = [sys.executable, str(script), *arguments]
            return _run(command, Path.cwd(), {"PYTHONPATH": str(place)})
        finally:
            _run(["git", "worktree", "remove", "--force", str(place)], ROOT, {})


def side_by_side(old: str, new: str) -> str:
    """A table of every figure that both give for corrected strategies: old / new."""
    before, after = _rows(old), _rows(new)
    lines = [f"| {' | '.join(['metric', 'budget', 'strategy', *COLUMNS])} |", f"| {' | '.join(['---'] * (3 + len(COLUMNS)))} |"]
    for where in dict.fromkeys(key[:3] for key in after if key[3] == "levels covered"):
        cells = [f"{before.get((*where, column), '-')} / {after.get((*where, column), '-')}" for column in COLUMNS]
        lines.append(f"| {' | '.join([*where, *cells])} |")
    return "\n".join(lines) + "\n"


def _rows(text: str) -> Rows:
    """Of all tables; those of intervals have two columns of half widths, and one that tables of levels have, too."""
    found: dict[tuple[str, str, str, str], str] = {}
    metric, head = "", [""]
    for line in text.splitlines():
        metric = line.removeprefix("## ") if line.startswith("## ") else metric
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "budget":
            widths = iter(["half width of levels", "half width of differences"])
            head = [next(widths) if cell == "half width" else cell for cell in cells]
            head = ["bias of the worst" if cell == "worst checkpoint" and "bias" in cells else cell for cell in head]
        elif len(cells) == len(head) and len(cells) > 2 and cells[0] != "---":
            found.update({(metric, cells[0], cells[1], column): cell for column, cell in zip(head, cells, strict=True)})
    return found


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"--against: {' '.join(command[:3])} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout
