"""Versions of artifacts: how they are listed, and what is remembered of them, since a committed version never changes."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dr_validate.files import write_atomically
from dr_validate.source.steps import MAX_STEP
from dr_validate.source.wandb_client.manifest import Contents

FORMAT = 3  # to be raised when a verdict on the same manifest changes, in words, too
STEP_KEYS = ("train/global_step", "global_step", "step")
STEP_ALIAS = re.compile(r"checkpoint_global_step_(\d{1,15})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One committed version as a listing shows it; `number` is the N of its `vN`, `unreadable` the fault of its metadata."""

    opaque_id: str
    collection: str
    number: int
    created_at: str
    aliases: Sequence[str]
    tags: Sequence[str]
    metadata: Mapping[str, Any]
    unreadable: str = ""

    @property
    def name(self) -> str:
        return f"{self.collection}:v{self.number}"

    @property
    def step(self) -> tuple[int, str]:
        """The training step, and where that was read.

        The Trainer's alias says when it saved. Its metadata say when it last logged, which may be long before; of several
        aliases (the same files logged again) they tell which is meant where they name one of them, else it is the largest.
        """
        logged, named = self.logged_step, self.named_steps
        if named:
            return (logged[0] if logged and logged[0] in named else max(named)), "alias checkpoint_global_step_N"
        return logged or (self.number, "version number")

    @property
    def named_steps(self) -> list[int]:
        """The N of its aliases `checkpoint_global_step_N`."""
        return [int(match[1]) for match in map(STEP_ALIAS.fullmatch, self.aliases) if match]

    @property
    def logged_step(self) -> tuple[int, str] | None:
        """What its metadata say, and under which key."""
        for key in STEP_KEYS:
            value = self.metadata.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_STEP and value == int(value):
                return int(value), f"metadata {key}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What had to be asked for one version: its verdict, and the run that logged it (id, and group or name)."""

    digest: str
    lacks: str
    num_bytes: int
    references: Sequence[str]
    training_run: str
    group: str

    @classmethod
    def of(cls, contents: Contents, training_run: str, group: str) -> "Facts":
        return cls(
            digest=contents.digest,
            lacks=contents.lacks,
            num_bytes=contents.num_bytes,
            references=contents.references,
            training_run=training_run,
            group=group,
        )


def version_of(node: Mapping[str, Any], collection: str, number: int) -> Version:
    """From an artifact node of the API."""
    metadata, unreadable = None, ""
    try:
        metadata = json.loads(node.get("metadata") or "{}")
    except (ValueError, RecursionError) as error:
        unreadable = f"its metadata cannot be read as JSON ({error})"
    return Version(
        opaque_id=str(node["id"]),
        collection=collection,
        number=number,
        created_at=_utc(str(node["createdAt"])),
        aliases=tuple(part["alias"] for part in node.get("aliases") or [] if _is_own(part, collection)),
        tags=tuple(tag["name"] for tag in node.get("tags") or []),
        metadata=metadata if isinstance(metadata, dict) else {},
        unreadable=unreadable,
    )


def _is_own(alias: Mapping[str, Any], collection: str) -> bool:
    """Not one that the version has in a registry that it is linked to."""
    home = alias.get("artifactCollection") or {}
    return home.get("name") in (None, collection)


def _utc(created_at: str) -> str:
    """W&B leaves the zone out at times; it is always UTC."""
    return created_at if created_at.endswith("Z") or "+" in created_at else f"{created_at}Z"


class Remembered:
    """Facts by version under `<state_dir>/wandb_versions/<project>/`, one small file each; read once in a process."""

    def __init__(self) -> None:
        self._known: dict[Path, Facts] = {}

    def get(self, folder: Path, version: Version) -> Facts | None:
        path = _place(folder, version)
        if path not in self._known:
            try:
                content = json.loads(path.read_bytes())
                if content["format"] != FORMAT:
                    return None
                self._known[path] = Facts(**content["facts"])
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                return None  # a damaged memory costs one more look at the manifest
        return self._known[path]

    def put(self, folder: Path, version: Version, facts: Facts) -> None:
        path = _place(folder, version)
        write_atomically(path, json.dumps({"format": FORMAT, "version": version.name, "facts": asdict(facts)}))
        self._known[path] = facts


def folder_of(state_dir: Path, server: str, entity: str, project: str) -> Path:
    """Where the facts of one project are kept."""
    return state_dir / "wandb_versions" / hashlib.sha256(f"{server}\0{entity}\0{project}".encode()).hexdigest()[:16]


def _place(folder: Path, version: Version) -> Path:
    # Not by its name: a collection may be deleted, and made again under the same one.
    return folder / f"{hashlib.sha256(version.opaque_id.encode()).hexdigest()[:32]}.json"
