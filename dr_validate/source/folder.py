"""Checkpoints in a folder, as the Hugging Face Trainer and sentence-transformers leave them."""

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from dr_validate.component import UserPath, component
from dr_validate.errors import CheckpointDeleted, CheckpointError, Interrupted, SetupError
from dr_validate.files import check_room, copy_with_digest, sha256_of_files
from dr_validate.source.completeness import (
    MAX_SHOWN,
    MAX_STEP,
    PICKLES,
    STEP_IN_NAME,
    TOWER_FOLDERS,
    Unreadable,
    check_json,
    is_wanted_file,
    is_wanted_folder,
    matches,
    module_folders,
    names_a_step,
    shown,
    trainer_state,
    what_is_missing,
    what_it_did,
)
from dr_validate.source.remembered import ChangedMeanwhile, Digests, is_at_rest
from dr_validate.values import Checkpoint, Incomplete, Listing

LOOK_FOR_HOLES_FROM = 1 << 30  # bytes
MAX_DEPTH = 4  # query_model/2_Dense is 2; a link to a folder above it must not go round for ever
EPOCH_IN_NAME = re.compile(r"(?:^|[^a-z])epoch[-_=.]?(\d+)", re.IGNORECASE)
TRAILING_NUMBER = re.compile(r"(\d+)$")
log = logging.getLogger(__name__)


@component
class FolderSource:
    """Sub-folders of `path` whose name has a step (`checkpoint-500`) or that hold files of a model; where `path` itself is one,
    it and its `checkpoint-*`. Hidden and temporary folders are none, nor links to others of them (`latest`).

    `name` is the training run's, by default the folder's. Checkpoints carry it where it is set: several trainings that share a
    state_dir are told apart by it. Symbolic links that lead out of a checkpoint make it unusable, unless `follow_links` (a
    snapshot in the Hugging Face cache is made of such links). One with more than `max_gib` of wanted files is skipped.
    """

    path: UserPath
    name: str | None = None
    follow_links: bool = False
    max_gib: float = Field(default=32, gt=0)
    needs_config: ClassVar[bool] = True  # see Source
    brings_several: ClassVar[bool] = False

    @property
    def training_run(self) -> str:
        return self.name or Path(os.path.normpath(self.path.absolute())).name or "training"

    def identity(self) -> Mapping[str, Any]:
        """The training by its name, wherever it writes to now; without one the folder."""
        return {"training": self.name} if self.name else {"folder": os.path.normpath(self.path.absolute())}

    def list(self, state_dir: Path) -> Listing:
        """Complete checkpoints and incomplete ones, each by (step, name). Reads weights only where they have changed."""
        folders = self.folders()
        by_name = steps(folders, self.path.absolute())
        having_state = {name for name, (_, step_from) in by_name.items() if step_from == "trainer_state.json"}
        complete: set[str] = set()  # of those
        found: list[Checkpoint | Incomplete] = []
        with Digests(state_dir, self.path) as digests:
            for name, folder in sorted(folders.items(), key=lambda item: item[0] not in having_state):
                step, step_from = by_name[name]
                place = _Place(name=name, folder=folder, step=step, step_from=step_from, training_run=self.name or "")
                is_final_model = folder == self.path.absolute()  # which no trainer_state.json need follow
                if (one := self._examine(place, digests, bool(complete) and not is_final_model)) is None:
                    continue
                found.append(one)
                if isinstance(one, Checkpoint) and name in having_state:
                    complete.add(name)
        found.sort(key=lambda one: (one.step, one.name))
        return Listing(
            checkpoints=tuple(one for one in found if isinstance(one, Checkpoint)),
            incomplete=tuple(one for one in found if isinstance(one, Incomplete)),
            save_steps=_save_steps([folders[name] for name in complete], by_name),
        )

    def fetch(self, checkpoint: Checkpoint, into: Path) -> None:
        """Copy what encoding needs. Raises CheckpointDeleted if it was deleted, OSError if it changed or the disk is full,
        CheckpointError for a link that leaves it."""
        folder = Path(checkpoint.uri)
        try:
            if leaves := self._leaving_link(folder):
                raise CheckpointError(f"{folder}: {leaves}")
            files = wanted_files(folder)
            check_room(sum(path.stat().st_size for path in files.values()), into)
            # Copies, not hard links: a trainer may write into a file that it has written before.
            digests = {name: copy_with_digest(path, into / name) for name, path in files.items()}
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointDeleted(_deleted(folder)) from error
        except Unreadable as error:
            raise OSError(f"{folder} changed while it was copied: {error}") from error
        if sha256_of_files(digests) != checkpoint.digest:
            try:
                missing = what_is_missing(folder, False, self.needs_config)
            except FileNotFoundError:
                missing = "it is gone"
            if missing:
                raise CheckpointDeleted(f"{_deleted(folder)} ({missing})")
            raise OSError(f"{folder} changed while it was copied")

    def still_has(self, checkpoint: Checkpoint) -> bool:
        """Whether its folder is there."""
        return Path(checkpoint.uri).is_dir()

    def whole(self) -> Iterator[Path]:
        """Folders of complete checkpoints that nobody writes to, the latest first, as far as shows without their weights."""
        folders = self.folders()
        by_name = steps(folders, self.path.absolute())
        for name in sorted(folders, key=by_name.__getitem__, reverse=True):
            folder = folders[name]
            with contextlib.suppress(Exception):  # said where it is listed
                lacks = self._leaving_link(folder) or what_is_missing(folder, False, self.needs_config)
                if not lacks and ((folder / "trainer_state.json").is_file() or is_at_rest(folder)):
                    yield folder

    def check(self) -> None:
        """See `Source.check`; a folder that is not there yet may come."""
        if (path := shown(str(self.path.absolute()))) != str(self.path.absolute()):
            raise SetupError(f"source.path: got {path!r}, which is not UTF-8; rename the folder")
        if self.path.exists() and not self.path.is_dir():
            raise SetupError(f"source.path: got {str(self.path)!r}, a file; expected the folder that holds the checkpoints")

    def folders(self) -> dict[str, Path]:
        """Candidates by name."""
        self.check()
        if not self.path.exists():
            _say_once(f"{self.path} does not exist yet: no checkpoints")
            return {}
        itself = looks_like_one(self.path)
        folders = {self.path.absolute().name: self.path.absolute()} if itself else {}
        for entry in sorted(self.path.iterdir()):
            if entry.name.startswith((".", "tmp-")) or entry.name.endswith(".tmp") or not entry.is_dir():
                continue
            if entry.is_symlink() and entry.resolve().parent == self.path.resolve():
                continue  # `latest -> checkpoint-500` is an alias of what is listed anyway
            # Sub-folders of a checkpoint are its parts, save those that a trainer leaves beside its final model.
            if entry.name.startswith("checkpoint-") if itself else names_a_step(entry.name) or _may_be_one(entry):
                folders[entry.name] = entry.absolute()
        return folders

    def _examine(self, place: "_Place", digests: Digests, siblings_have_state: bool) -> Checkpoint | Incomplete | None:
        folder = place.folder
        if shown(place.name) != place.name:
            return place.incomplete("its name is not UTF-8, so that no report can name it; rename it", final=True)
        try:
            lacks = self._leaving_link(folder) or what_is_missing(folder, siblings_have_state, self.needs_config)
            if lacks is None:
                return self._read(place, digests, siblings_have_state)
        except (FileNotFoundError, ChangedMeanwhile) as error:
            if not folder.is_dir():
                return None  # rotated away while we looked
            lacks = f"it is being written ({error})"
        except Unreadable as error:
            lacks = str(error)
        except OSError as error:
            lacks = f"it cannot be read ({error})"
        except Interrupted:
            raise
        except Exception as error:  # whatever one checkpoint does, the others are listed
            return place.incomplete(what_it_did(error), final=True)
        return place.incomplete(lacks)

    def _read(self, place: "_Place", digests: Digests, siblings_have_state: bool) -> Checkpoint | Incomplete:
        """Raises ChangedMeanwhile or Unreadable where a trainer wrote or deleted while we looked."""
        files = wanted_files(place.folder)
        if wrong := [name for name in files if shown(name) != name]:
            raise Unreadable(f"the name of its file {wrong[0]} is not UTF-8; rename it, or delete it")
        for path in files.values():
            if path.suffix == ".json" and not digests.knows(path):
                check_json(path)
        if (num_bytes := sum(path.stat().st_size for path in files.values())) > self.max_gib * 2**30:
            gib = f"{num_bytes / 2**30:.2f} GiB, more than source.max_gib={self.max_gib:g}"
            return place.incomplete(f"its files for encoding have {gib}: raise that if you want", final=True)
        if hollow := _hollow(files):
            raise Unreadable(hollow)
        digest, created_at = sha256_of_files(digests.of(files)), _written_at(files)
        # Complete before and after, with the same files: then it was complete in between.
        lacks = what_is_missing(place.folder, siblings_have_state, self.needs_config)
        if lacks or wanted_files(place.folder).keys() != files.keys():
            raise ChangedMeanwhile("its files come and go")
        return place.checkpoint(digest, created_at, num_bytes)

    def _leaving_link(self, folder: Path) -> str | None:
        return None if self.follow_links else link_that_leaves(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    name: str
    folder: Path
    step: int
    step_from: str
    training_run: str

    def incomplete(self, lacks: str, *, final: bool = False) -> Incomplete:
        name, uri = shown(self.name), shown(str(self.folder))
        run = self.training_run
        return Incomplete(name=name, uri=uri, step=self.step, lacks=shown(lacks)[:MAX_SHOWN], final=final, training_run=run)

    def checkpoint(self, digest: str, created_at: str, num_bytes: int) -> Checkpoint:
        return Checkpoint(
            name=self.name,
            version=self.name,
            digest=digest,
            step=self.step,
            step_from=self.step_from,
            created_at=created_at,
            uri=str(self.folder),
            training_run=self.training_run,
            num_bytes=num_bytes,
        )


def _save_steps(folders: Sequence[Path], by_name: Mapping[str, tuple[int, str]]) -> int:
    """How many steps apart the trainer says that it saves, going by its last checkpoint; 0 where it does not say."""
    try:
        state = trainer_state(max(folders, key=lambda folder: by_name[folder.name]) / "trainer_state.json")
    except (ValueError, OSError):  # there is none, or it is being written
        return 0
    found = state.get("save_steps")
    return found if type(found) is int else 0


def _hollow(files: Mapping[str, Path]) -> str | None:
    """Names a large file that is mostly holes, before hours are spent on hashing them, or None."""
    for path in files.values():
        size, on_disk = path.stat().st_size, path.stat().st_blocks * 512  # 0 where a file system does not count
        if size > LOOK_FOR_HOLES_FROM and 0 < on_disk < size // 10:
            return f"{path.name}: {on_disk:,} of {size:,} bytes are on the disk; being written, or full of holes"
    return None


def _written_at(files: Mapping[str, Path]) -> str:
    """When the weights were written."""
    written = max((path.stat().st_mtime for name, path in files.items() if name.endswith(".safetensors")), default=0.0)
    return datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _may_be_one(entry: Path) -> bool:
    """Whether to look closer; an empty folder is one to come only where its name says a step: `runs` is empty at first, too."""
    try:
        return looks_like_one(entry) or (_named_step(entry.name, False, False) is not None and not any(entry.iterdir()))
    except OSError:
        return entry.is_dir()  # unreadable, but there: the closer look says why


def _deleted(folder: Path) -> str:
    return f"{folder} was deleted before it could be copied: let the trainer keep more of them (save_total_limit)"


def looks_like_one(folder: Path) -> bool:
    """Whether a folder holds anything of a checkpoint: what runs/, wandb/ or eval/ beside checkpoints do not."""
    names = [path.name for path in folder.iterdir()]
    return any(name in TOWER_FOLDERS or is_wanted_file(name) or matches(name, PICKLES) for name in names)


def wanted_files(folder: Path) -> dict[str, Path]:
    """Files that encoding needs, by their path in the folder: regular files, or links to such. Raises Unreadable."""
    entries = _entries(folder, module_folders(folder))
    return {path.relative_to(folder).as_posix(): path for path in entries if path.is_file() and is_wanted_file(path.name)}


def link_that_leaves(folder: Path) -> str | None:
    """Names the first symbolic link of the checkpoint that points out of it, or None if all stay inside."""
    if found := _first_leaving(folder, ()):  # before anything is read: modules.json may be such a link
        return found
    try:
        return _first_leaving(folder, module_folders(folder))
    except Unreadable:
        return None  # incomplete, which is reported elsewhere


def steps(folders: Mapping[str, Path], root: Path) -> dict[str, tuple[int, str]]:
    """Step and origin by name: trainer_state.json, else the folder's name, else the place in the order of names.

    A folder without a step stands after all that have one: `final` comes after `checkpoint-1500`. `root` is where checkpoints
    lie. Where it is one itself, beside others, it is the final model, and its name says nothing of steps (`nq-lr1e-5`); where
    others state a step, a number at the end of a name is none either (`minilm-v2`).
    """
    alone = len(folders) == 1
    found = {name: _stated_step(folder) or _named_step(name, folder == root, alone) for name, folder in folders.items()}
    if not any(found.values()):
        found = {name: None if folder == root else _step_in(TRAILING_NUMBER.search(name)) for name, folder in folders.items()}
    known = {name: step for name, step in found.items() if step is not None}
    last = max((step for step, _ in known.values()), default=0)
    placed = sorted(name for name in folders if name not in known)
    return known | {name: (last + place, "place in name order") for place, name in enumerate(placed, 1)}


def _first_leaving(folder: Path, modules: Sequence[str]) -> str | None:
    root = folder.resolve()
    for path in _entries(folder, modules):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            way_out = "copy what it leads to, or set source.follow_links=true"
            return f"symbolic link {path.relative_to(folder)} -> {path.readlink()} leaves the folder; {way_out}"
    return None


def _entries(folder: Path, modules: Sequence[str], depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Files that we read and folders that we enter, each folder before what is in it."""
    for path in sorted(folder.iterdir()):
        if is_wanted_file(path.name) or path.name == "trainer_state.json":
            yield path
        elif depth > 1 and is_wanted_folder(path.name, modules) and path.is_dir():
            yield path
            yield from _entries(path, modules, depth - 1)


def _stated_step(folder: Path) -> tuple[int, str] | None:
    try:
        step = trainer_state(folder / "trainer_state.json").get("global_step")
    except (Unreadable, OSError):
        return None
    return (step, "trainer_state.json") if type(step) is int and 0 <= step < MAX_STEP else None


def _named_step(name: str, is_root: bool, is_alone: bool) -> tuple[int, str] | None:
    if is_root and not is_alone:
        return None
    return _step_in(STEP_IN_NAME.search(name) or EPOCH_IN_NAME.search(name) or re.fullmatch(r"(\d+)", name))


def _step_in(match: re.Match[str] | None) -> tuple[int, str] | None:
    return (int(match[1]), "folder name") if match and len(match[1]) < 16 else None


@functools.cache
def _say_once(message: str) -> None:
    log.info(message)
