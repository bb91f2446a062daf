"""Cache folders that are made once: one that was cut short, or changed length since, is made again instead of used."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from dr_validate.errors import DatasetError
from dr_validate.files import atomic_folder, locked

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def made_once(folder: Path, is_usable: Callable[[Path], bool], make: Callable[[Path], None]) -> None:
    """Have `make` fill `folder` unless it is there and usable; processes that want the same one wait for each other.

    What `make` raises passes through, but an OSError (disk full) becomes a DatasetError; nothing is left behind then.
    """
    with locked(folder.with_name(f"{folder.name}.lock")):
        if is_usable(folder):
            return
        if folder.exists():
            log.warning("%s is incomplete or damaged: making it again", folder)
            shutil.rmtree(folder)
        for left_over in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: we hold the lock
            shutil.rmtree(left_over, ignore_errors=True)
        try:
            with atomic_folder(folder) as fresh:
                make(fresh)
        except OSError as error:
            raise DatasetError(
                f"{folder}: could not be made ({error}); free some space or set state_dir to another disk"
            ) from error


def seal(folder: Path, version: int) -> None:
    """Write down the format and the size of every file of a folder that is complete."""
    (folder / MANIFEST).write_text(json.dumps({"version": version, "sizes": _sizes(folder)}), encoding="utf-8")


def is_sealed(folder: Path, version: int) -> bool:
    """Whether `folder` is there, of this format, with the same files of the same sizes as when it was sealed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return isinstance(manifest, dict) and manifest == {"version": version, "sizes": _sizes(folder)}
    except (OSError, ValueError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.name != MANIFEST}
