"""What is kept of data sets: SHA-256 of files, remembered by what the file system says about them, so that 3 GB are not hashed
at every start, and folders made once, of which one that was cut short, or changed length since, is made again, not used.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dr_validate.dataset.remote import File
from dr_validate.errors import DatasetError
from dr_validate.files import atomic_folder, locked, sha256_of_file, write_atomically

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def digests_of(files: Sequence[File], cache: Path) -> list[str]:
    """Hex SHA-256 of each file, in order; the content is read only if path, size, time or inode differ from last time.

    Raises DatasetError for a file that cannot be read or changes while it is.
    """
    memory = cache / "digests.json"
    with locked(cache / "digests.lock"):
        known = _load_digests(memory)
        changed = False
        for file in files:
            key, state = _key(file), _state(file)
            if state is not None and (known.get(key) or {}).get("state") == state:
                continue
            digest = _hash(file)
            if _state(file) != state:
                raise DatasetError(f"{file}: changed while it was read; start again when it is complete")
            known[key] = {"state": state, "sha256": digest}
            changed = True
        if changed:
            write_atomically(memory, json.dumps(known, indent=1))
    return [str(known[_key(file)]["sha256"]) for file in files]


def _load_digests(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        log.warning("%s is damaged: files are hashed again", memory)
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: entry for key, entry in known.items() if isinstance(entry, dict) and isinstance(entry.get("sha256"), str)}


def _key(file: File) -> str:
    return str(file.resolve() if isinstance(file, Path) else file)


def _state(file: File) -> list[Any] | None:
    try:
        if not isinstance(file, Path):
            return file.state()
        stat = file.stat()
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror or error}); check the path and its rights") from error
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _hash(file: File) -> str:
    try:
        return sha256_of_file(file)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror or error}); check the path and its rights") from error


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
