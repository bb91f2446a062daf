"""`store.keep_best`: the best checkpoint so far, with its Report, in a folder that no limit of the store concerns.

`FOLDER/<checkpoint>` holds hard links to the files of the verified copy (copies on another disk) and REPORT; `FOLDER/best` is
a symbolic link to it. Each step is one rename, so a kill leaves the best before or the new one, and a leftover that the next
best removes. What else is in FOLDER is left alone, another training's best too.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dr_validate.component import fingerprint
from dr_validate.errors import SetupError
from dr_validate.files import atomic_folder, beside, copy_with_digest, locked

REPORT = "dr_validate_report.json"  # a folder with it was made here
LINK = "best"
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{12}")  # as files.atomic_folder names what is not whole yet


def check_folder(folder: Path) -> None:
    """Make it. Raises SetupError where it cannot be made or written to, or where a folder or file is in the link's place."""
    way_out = "name a folder that can be written to, or leave the key out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SetupError(f"store.keep_best: got {str(folder)!r}, which cannot be used ({error}); {way_out}") from None
    if (link := folder / LINK).exists() and not link.is_symlink():
        raise SetupError(f"store.keep_best: {link} is there, and no link; it would have to be replaced: name another folder")


def keep_alone(copy: Path, name: str, report: Mapping[str, Any], digests: Collection[str], folder: Path) -> None:
    """Keep the files of `copy` with its Report, let the link lead there, and remove earlier ones of the same spec that have one
    of `digests`. Again, it changes nothing. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        for leftover in folder.glob(".*"):
            if LEFTOVER.fullmatch(leftover.name):
                _remove(leftover)
        place = _place(folder, name, report)
        if not place.is_dir():
            with atomic_folder(place) as temporary:
                for path in sorted(copy.rglob("*")):
                    if path.is_file():
                        _link(path, temporary / path.relative_to(copy))
                (temporary / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
        pointer = beside(folder / LINK)
        pointer.symlink_to(place.name)
        pointer.replace(folder / LINK)
        for other in sorted(folder.iterdir()):
            spec, digest = kept_in(other)
            if spec == report["spec"] and digest in digests and not other.is_symlink() and other != place:
                _remove(other.rename(beside(other)))  # gone in one step


def _place(folder: Path, name: str, report: Mapping[str, Any]) -> Path:
    """Under the checkpoint's name, or with something added to it where that is taken by anything else."""
    plain = re.sub(r"[/:]", "-", name)
    spec, digest = _made_of(report)
    own = fingerprint({"spec": spec, "digest": digest})[:8]
    for place in (folder / plain, folder / f"{plain}-{own}"):
        is_it = kept_in(place) == (spec, digest)
        if place.name != LINK and (is_it or not (place.exists() or place.is_symlink())):
            return place
    raise OSError(f"{folder}: {plain} and {plain}-{own} are there, and not of this checkpoint; move them away")


def kept_in(place: Path) -> tuple[Any, str]:
    """Spec and digest of the Report there; of none where there is no such."""
    try:
        return _made_of(json.loads((place / REPORT).read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None, ""


def _made_of(report: Mapping[str, Any]) -> tuple[Any, str]:
    return report["spec"], str(report["checkpoint"]["digest"])


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another disk, or one without hard links
        copy_with_digest(path, target)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # leaves a link alone
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
