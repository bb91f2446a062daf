"""Which training step a checkpoint folder belongs to, and where that was read."""

import re
from collections.abc import Mapping
from pathlib import Path

from dr_validate.source.completeness import Unreadable, trainer_state

STEP_IN_NAME = re.compile(r"(?:^|[^a-z])(?:checkpoint|ckpt|global[-_]?step|step|steps|iter)[-_=.]?(\d+)", re.IGNORECASE)
EPOCH_IN_NAME = re.compile(r"(?:^|[^a-z])epoch[-_=.]?(\d+)", re.IGNORECASE)
TRAILING_NUMBER = re.compile(r"(\d+)$")
MAX_STEP = 2**53  # what JSON and SQLite both keep exactly


def names_a_step(name: str) -> bool:
    """Whether a folder name such as `checkpoint-500` says which step it holds."""
    return STEP_IN_NAME.search(name) is not None


def steps(folders: Mapping[str, Path], root: Path) -> dict[str, tuple[int, str]]:
    """Step and origin by name: trainer_state.json, else the folder's name, else the place in the order of names.

    A folder without a step stands after all that have one: `final` comes after `checkpoint-1500`. `root` is where checkpoints
    lie. Where it is one itself, beside others, it is the final model, and its name says nothing of steps (`nq-lr1e-5`); where
    others state a step, a number at the end of a name is none either (`minilm-v2`).
    """
    alone = len(folders) == 1
    found = {name: _stated(folder) or _named(name, folder == root, alone) for name, folder in folders.items()}
    if not any(found.values()):
        found = {name: None if folder == root else _numbered(name) for name, folder in folders.items()}
    known = {name: step for name, step in found.items() if step is not None}
    last = max((step for step, _ in known.values()), default=0)
    placed = sorted(name for name in folders if name not in known)
    return known | {name: (last + place, "place in name order") for place, name in enumerate(placed, 1)}


def _stated(folder: Path) -> tuple[int, str] | None:
    try:
        step = trainer_state(folder / "trainer_state.json").get("global_step")
    except (Unreadable, OSError):
        return None
    return (step, "trainer_state.json") if type(step) is int and 0 <= step < MAX_STEP else None


def _named(name: str, is_root: bool, is_alone: bool) -> tuple[int, str] | None:
    if is_root and not is_alone:
        return None
    return _read(STEP_IN_NAME.search(name) or EPOCH_IN_NAME.search(name) or re.fullmatch(r"(\d+)", name))


def _numbered(name: str) -> tuple[int, str] | None:
    return _read(TRAILING_NUMBER.search(name))


def _read(match: re.Match[str] | None) -> tuple[int, str] | None:
    return (int(match[1]), "folder name") if match and len(match[1]) < 16 else None
