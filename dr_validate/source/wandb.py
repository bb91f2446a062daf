"""Checkpoints in Weights & Biases: committed versions of model artifacts, pinned, fetched file by file and checked."""

import dataclasses
import functools
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from dr_validate.component import component
from dr_validate.errors import CheckpointDeleted, CheckpointError, Interrupted, Outage, SetupError
from dr_validate.files import check_room
from dr_validate.source.completeness import MAX_SHOWN, shown, what_is_missing, what_it_did
from dr_validate.source.wandb_client.api import find_key
from dr_validate.source.wandb_client.http import FileOutage
from dr_validate.source.wandb_client.project import Connection, Project
from dr_validate.source.wandb_client.versions import (
    MAX_REPORTED,
    NO_CONFIG,
    Contents,
    Facts,
    Version,
    folder_of,
    scheme_of,
)
from dr_validate.values import ARTIFACT_SCHEME, Checkpoint, Incomplete, Listing

USUAL_TYPE = "model"
FOLLOWED = ("http", "https")
log = logging.getLogger(__name__)


@component
class WandbSource:
    """Every committed version of the artifacts of a `type` in a project is a checkpoint.

    `artifact` is the name of one collection or a glob of them; `run` the id of one training run: only what that logged. A
    version must have one of the `aliases` and one of the `tags` (where any are given), every value of `metadata`, and be no
    older than `since`. One with more than `max_gib` of wanted files is skipped, and so is one with files that W&B does not
    hold itself, unless `allow_references` (then they come from where they are, over http or https). `timeout_s` ends a
    download in which nothing comes, or next to nothing, `api_timeout_s` a question to W&B.
    """

    entity: str | None = None
    project: str | None = None
    artifact: str | None = None
    type: str = USUAL_TYPE
    run: str | None = None
    aliases: tuple[str, ...] = Field(default_factory=tuple)
    tags: tuple[str, ...] = Field(default_factory=tuple)
    since: datetime | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    max_gib: float = Field(default=32, gt=0)
    allow_references: bool = False
    timeout_s: float = Field(default=60, gt=0)
    api_timeout_s: float = Field(default=10, gt=0)
    needs_config: ClassVar[bool] = True  # see Source
    brings_several: ClassVar[bool] = True

    @property
    def training_run(self) -> str:
        return self.run or self.artifact or self._project_name()

    def identity(self) -> Mapping[str, Any]:
        """The project and what is asked of it; not how long to wait, or how much is fetched."""
        keys = ("entity", "project", "artifact", "type", "run", "aliases", "tags", "metadata")
        asked = {key: getattr(self, key) for key in keys} | {"since": self.since and self.since.isoformat()}
        asked["entity"] = asked["entity"] or os.environ.get("WANDB_ENTITY")
        asked["project"] = asked["project"] or os.environ.get("WANDB_PROJECT")
        return {"server": os.environ.get("WANDB_BASE_URL"), **asked}

    def list(self, state_dir: Path) -> Listing:
        """Usable versions and unusable ones, each by (step, name, version). A version's manifest is asked for once, ever.

        Raises SetupError for a wrong key, project, type or run; Outage where W&B is out of reach.
        """
        project = self._open_project()
        committed = self._versions(project)
        folder = folder_of(state_dir, project.api.server, project.entity, project.name)
        in_order = sorted(committed, key=lambda v: (v.step[0], v.collection, v.number))
        found = self._connection.each(functools.partial(self._examine, project, folder), in_order)
        if found and all(isinstance(one, Incomplete) and one.is_out_of_reach for one in found):
            raise Outage("of no version the manifest can be fetched: its files are out of reach")
        # Who logged a version that is deleted nobody can say; most likely whoever logged the others of its collection.
        logged_by = {one.name: one for one in found if isinstance(one, Checkpoint)}
        incomplete = [one for one in found if isinstance(one, Incomplete)]
        return Listing(
            checkpoints=tuple(one for one in found if isinstance(one, Checkpoint)),
            incomplete=tuple(_of_run(one, logged_by) for one in incomplete),
            missing=tuple(_of_run(one, logged_by) for one in self._missing(committed, project)),
        )

    def fetch(self, checkpoint: Checkpoint, into: Path) -> None:
        """Bring what encoding needs, every file checked against the manifest's size and digest.

        Raises CheckpointDeleted if the version or its files were deleted, CheckpointError if its bytes are never those
        of its manifest, Outage where W&B is out of reach, OSError where the disk is full.
        """
        project, collection, version = self._place(checkpoint)
        what = f"{collection}:{version} of {project.entity}/{project.name}"
        try:
            contents = self._contents(project, checkpoint, project.pinned(collection, version))
            check_room(contents.num_bytes, into)
            self._connection.bring(project, (collection, version), contents.files, into)
        except CheckpointDeleted as error:
            self._connection.note_gone(checkpoint.uri)
            raise CheckpointDeleted(f"{what}: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{what}: {error}") from error
        if missing := what_is_missing(into, False, self.needs_config):
            raise CheckpointError(f"{what}: {missing}")

    def check(self) -> None:
        """See `Source.check`: a project is named, and there is a key."""
        self._project_name()
        find_key()

    def still_has(self, checkpoint: Checkpoint) -> bool:
        """Whether the version is committed. Raises Outage."""
        project, collection, version = self._place(checkpoint)
        try:
            project.pinned(collection, version)
        except CheckpointDeleted:
            return False
        return True

    def _place(self, checkpoint: Checkpoint) -> tuple[Project, str, str]:
        """Its project, collection and `vN`."""
        entity, name, pinned = checkpoint.uri.removeprefix(ARTIFACT_SCHEME).split("/", 2)
        collection, _, version = pinned.rpartition(":")
        return Project(api=self._connection.api, entity=entity, name=name), collection, version

    @functools.cached_property
    def _connection(self) -> Connection:
        return Connection(timeout_s=self.timeout_s, api_timeout_s=self.api_timeout_s)

    def _open_project(self) -> Project:
        name, api = self._project_name(), self._connection.api
        entity = self.entity or os.environ.get("WANDB_ENTITY") or api.default_entity
        if not entity:
            raise SetupError("source.entity: required, since the key has no default entity (or set WANDB_ENTITY)")
        return Project(api=api, entity=entity, name=name)

    def _project_name(self) -> str:
        if name := self.project or os.environ.get("WANDB_PROJECT"):
            return name
        raise SetupError("source.project: required, the W&B project that the training logs to (or set WANDB_PROJECT)")

    def _versions(self, project: Project) -> "Sequence[Version]":
        if self.run is not None:
            return project.versions_of_run(self.run, self.type, self.artifact)
        try:
            return project.versions(self.type, self.artifact)
        except LookupError as error:
            if wrong := self._what_is_wrong(project):
                raise wrong from error
            return []

    def _what_is_wrong(self, project: Project) -> SetupError | None:
        """None where what is missing may come yet: a training that has not logged its first checkpoint."""
        types = project.types()
        if types is None:
            return project.missing()
        place = f"{project.entity}/{project.name}"
        if self.type not in types and self.type != USUAL_TYPE:
            return SetupError(f"source.type: got {self.type!r}, expected one of {types}, the artifact types of {place}")
        wanted = f"an artifact {self.artifact!r} of type" if self.artifact else "artifacts of type"
        _say_once(f"{place} does not have {wanted} {self.type!r} yet (types that it has: {types})")
        return None

    def _is_asked_for(self, version: Version) -> bool:
        if self.since is not None:
            since = self.since if self.since.tzinfo else self.since.replace(tzinfo=UTC)
            if datetime.fromisoformat(version.created_at) < since:
                return False
        return (
            (not self.aliases or any(alias in version.aliases for alias in self.aliases))
            and (not self.tags or any(tag in version.tags for tag in self.tags))
            and all(key in version.metadata and version.metadata[key] == value for key, value in self.metadata.items())
        )

    def _missing(self, committed: "Sequence[Version]", project: Project) -> Iterator[Incomplete]:
        """Numbers that W&B has given in a collection, and has no version for: those were deleted.

        Not where only some versions are asked for: a missing one may have been another.
        """
        if self.run is not None or self.aliases or self.tags or self.metadata or self.since is not None:
            return
        by_collection: dict[str, dict[int, Version]] = {}
        for version in committed:
            by_collection.setdefault(version.collection, {})[version.number] = version
        for collection, versions in sorted(by_collection.items()):
            for number in sorted(set(range(max(versions))) - versions.keys()):
                step = max((one.step[0] for one in versions.values() if one.number < number), default=0)
                yield _deleted(f"{collection}:v{number}", project, step, "deleted from W&B before it was ever seen")

    def _examine(self, project: Project, folder: Path, version: Version) -> Checkpoint | Incomplete | None:
        """None for what is not asked for. Raises SetupError and OSError (Outage), which are the source's."""
        refused, put_off = self._connection.refused, self._connection.put_off
        lacks, until = put_off.get(version.opaque_id, ("", 0.0))
        if version.opaque_id not in refused and time.monotonic() >= until:
            try:
                if not self._is_asked_for(version):
                    return None
                if version.unreadable:
                    raise CheckpointError(version.unreadable)
                one = self._verdict(version, self._connection.facts(project, version, folder), project)
                json.dumps(dataclasses.asdict(one), ensure_ascii=False).encode()  # what no report could hold
                return one
            except FileOutage as error:  # this version waits; the others do not
                lacks = f"its manifest cannot be fetched now ({error})"
                put_off[version.opaque_id] = lacks, time.monotonic() + error.retry_after_s
            except (SetupError, OSError, Interrupted):
                raise
            except Exception as error:  # whatever one version does, the others are listed
                refused[version.opaque_id] = what_it_did(error)[:MAX_SHOWN]
        name = shown(version.name)
        part = Incomplete(name=name, uri=project.uri(name), step=version.step[0], lacks=lacks, is_out_of_reach=True)
        if version.opaque_id in refused:
            return dataclasses.replace(part, lacks=refused[version.opaque_id], final=True, is_out_of_reach=False)
        return part

    def _verdict(self, version: Version, facts: Facts | None, project: Project) -> Checkpoint | Incomplete:
        uri = project.uri(version.name)
        step, step_from = version.step
        if facts is None:
            return _deleted(version.name, project, step, "deleted from W&B while it was being listed")
        if self._connection.is_gone(uri):
            return _deleted(version.name, project, step, "its files were deleted from W&B")
        if (logged := version.logged_step) and logged[0] != step:
            _say_once(
                f"{version.name} is of step {step:,} ({step_from}); its {logged[1]} is the last one logged, {logged[0]:,}"
            )
        if lacks := self._refused(facts):
            part = Incomplete(name=version.name, uri=uri, step=step, lacks=lacks, final=True)
            return dataclasses.replace(part, training_run=facts.training_run, group=facts.group)
        return Checkpoint(
            name=version.collection,
            version=f"v{version.number}",
            digest=facts.digest,
            step=step,
            step_from=step_from,
            created_at=version.created_at,
            uri=uri,
            training_run=facts.training_run,
            group=facts.group,
            num_bytes=facts.num_bytes,
        )

    def _refused(self, facts: Facts | Contents) -> str | None:
        if facts.lacks and (self.needs_config or facts.lacks != NO_CONFIG):
            return facts.lacks
        if facts.num_bytes > self.max_gib * 2**30:
            gib = facts.num_bytes / 2**30
            return (
                f"its files for encoding have {gib:.2f} GiB, more than source.max_gib={self.max_gib:g}: raise that if you want"
            )
        others = [one for one in facts.references if scheme_of(one) not in FOLLOWED]
        if facts.references and (others or not self.allow_references):
            held = f"W&B holds only references to some of its files ({', '.join((others or facts.references)[:MAX_REPORTED])})"
            if others:
                return f"{held}, and only http and https ones can be followed; log the files themselves (Artifact.add_dir)"
            return f"{held}; set source.allow_references=true to follow them"
        return None

    def _contents(self, project: Project, checkpoint: Checkpoint, opaque_id: str) -> Contents:
        """Read and checked again: what was remembered decides what is listed, not what is written to disk."""
        contents = self._connection.manifest(project, opaque_id).contents
        if refused := self._refused(contents):
            raise CheckpointError(refused)
        if contents.digest != checkpoint.digest:
            raise CheckpointError(f"its manifest is not the one that was listed: {contents.digest}, not {checkpoint.digest}")
        return contents


def _of_run(part: Incomplete, logged_by: Mapping[str, Checkpoint]) -> Incomplete:
    other = logged_by.get(part.name.rpartition(":")[0])
    if other is None or not part.is_deleted:
        return part
    return dataclasses.replace(part, training_run=other.training_run, group=other.group)


def _deleted(name: str, project: Project, step: int, reason: str) -> Incomplete:
    return Incomplete(name=name, uri=project.uri(name), step=step, lacks=reason, final=True, is_deleted=True)


@functools.cache
def _say_once(message: str) -> None:
    log.info(message)
