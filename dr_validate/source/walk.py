"""The files of a checkpoint folder, without reading any of them but modules.json."""

import errno
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from dr_validate.source.completeness import Unreadable, module_folders
from dr_validate.source.wanted import PICKLES, TOWER_FOLDERS, is_wanted_file, is_wanted_folder, matches

MAX_DEPTH = 4  # query_model/2_Dense is 2; a link to a folder above it must not go round for ever


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


def check_room(needed: int, into: Path) -> None:
    """Raises OSError(ENOSPC) where `needed` bytes do not fit beside `into`: before half of them are written."""
    free = shutil.disk_usage(into).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{into.parent}: {needed:,} bytes needed, {free:,} free")


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
