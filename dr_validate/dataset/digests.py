"""SHA-256 of files, remembered by what the file system says about them, so that 3 GB are not hashed at every start."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dr_validate.dataset.remote import File
from dr_validate.errors import DatasetError
from dr_validate.files import locked, sha256_of_file, write_atomically

log = logging.getLogger(__name__)


def digests_of(files: Sequence[File], cache: Path) -> list[str]:
    """Hex SHA-256 of each file, in order; the content is read only if path, size, time or inode differ from last time.

    Raises DatasetError for a file that cannot be read or changes while it is.
    """
    memory = cache / "digests.json"
    with locked(cache / "digests.lock"):
        known = _load(memory)
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


def _load(memory: Path) -> dict[str, Any]:
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
