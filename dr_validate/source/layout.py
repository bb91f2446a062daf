"""What lies in a checkpoint folder, read from names and small JSON files alone: the files of it, and its training step."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dr_validate.source.completeness import (
    PICKLES,
    TOWER_FOLDERS,
    Unreadable,
    is_wanted_file,
    is_wanted_folder,
    matches,
    module_folders,
    trainer_state,
)

MAX_DEPTH = 4  # query_model/2_Dense is 2; a link to a folder above it must not go round for ever
STEP_IN_NAME = re.compile(r"(?:^|[^a-z])(?:checkpoint|ckpt|global[-_]?step|step|steps|iter)[-_=.]?(\d+)", re.IGNORECASE)
EPOCH_IN_NAME = re.compile(r"(?:^|[^a-z])epoch[-_=.]?(\d+)", re.IGNORECASE)
TRAILING_NUMBER = re.compile(r"(\d+)$")
MAX_STEP = 2**53  # what JSON and SQLite both keep exactly


def looks_like_one(folder: Path) -> bool:
    """Whether a folder holds anything of a checkpoint: what runs/, wandb/ or eval/ beside checkpoints do not."""
    names = [path.name for path in folder.iterdir()]
    return any(name in TOWER_FOLDERS or is_wanted_file(name) or matches(name, PICKLES) for name in names)


def wanted_files(folder: Path) -> dict[str, Path]:
    """Files that encoding needs, by their path in the folder: regular files, or links to such. Raises Unreadable."""
    entries = _entries(folder, module_folders(folder), MAX_DEPTH)
    return {path.relative_to(folder).as_posix(): path for path in entries if path.is_file() and is_wanted_file(path.name)}


def link_that_leaves(folder: Path) -> str | None:
    """Names the first symbolic link of the checkpoint that points out of it, or None if all stay inside."""
    if found := _first_leaving(folder, ()):  # before anything is read: modules.json may be such a link
        return found
    try:
        return _first_leaving(folder, module_folders(folder))
    except Unreadable:
        return None  # incomplete, which is reported elsewhere


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


def _first_leaving(folder: Path, modules: Sequence[str]) -> str | None:
    root = folder.resolve()
    for path in _entries(folder, modules, MAX_DEPTH):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return f"symbolic link {path.relative_to(folder)} -> {path.readlink()} leaves the folder"
    return None


def _entries(folder: Path, modules: Sequence[str], depth: int) -> Iterator[Path]:
    """Files that we read and folders that we enter, each folder before what is in it."""
    for path in sorted(folder.iterdir()):
        if is_wanted_file(path.name) or path.name == "trainer_state.json":
            yield path
        elif depth > 1 and is_wanted_folder(path.name, modules) and path.is_dir():
            yield path
            yield from _entries(path, modules, depth - 1)


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
