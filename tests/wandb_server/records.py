"""What the server remembers: plain records, each with a key that is unique among its kind."""

import base64
import datetime
from dataclasses import dataclass, field
from typing import Any


def now() -> str:
    """The time in the form that W&B answers with."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(kw_only=True)
class Record:
    """`number` is given by the store and counts all records; `id` is the opaque name that clients see."""

    key: str
    number: int = 0

    @property
    def id(self) -> str:
        return base64.b64encode(f"{type(self).__name__}:{self.number}".encode()).decode()


@dataclass(kw_only=True)
class Project(Record):
    entity: str
    name: str
    created_at: str = field(default_factory=now)


@dataclass(kw_only=True)
class Run(Record):
    """A run; `name` is what the SDK calls the run's id, `config` holds `{key: {"value": ...}}` as sent."""

    entity: str
    project: str
    name: str
    display_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    state: str = "running"
    exitcode: int | None = None
    stop_requested: bool = False
    files: list[str] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    created_at: str = field(default_factory=now)
    heartbeat_at: str = field(default_factory=now)


@dataclass(kw_only=True)
class View(Record):
    """A saved view of a project; `name` is what its address holds, `spec` the JSON text that says what it shows."""

    entity: str
    project: str
    name: str
    display_name: str = ""
    type: str = ""
    spec: str = "{}"


@dataclass(kw_only=True)
class Collection(Record):
    """A sequence (where versions are made) or a portfolio (where versions are linked)."""

    entity: str
    project: str
    name: str
    type: str
    kind: str = "ArtifactSequence"
    next_version: int = 0
    created_at: str = field(default_factory=now)


@dataclass(kw_only=True)
class Artifact(Record):
    """A version; `contents` is its manifest's `{path: {digest, size, ...}}`, known from the commit on."""

    collection: str
    digest: str
    state: str = "PENDING"
    version: int | None = None
    metadata: str | None = None
    description: str | None = None
    wanted_aliases: list[list[str]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    ttl_s: int = -1
    created_by: str | None = None
    client_id: str | None = None
    contents: dict[str, dict[str, Any]] = field(default_factory=dict)
    manifest: str | None = None
    base: str | None = None
    created_at: str = field(default_factory=now)


@dataclass(kw_only=True)
class Manifest(Record):
    artifact: str
    type: str
    name: str
    digest: str = ""
    base: str | None = None


@dataclass(kw_only=True)
class Membership(Record):
    """That an artifact is version `version` of a collection, under these aliases."""

    collection: str
    artifact: str
    version: int
    aliases: list[str] = field(default_factory=list)
    created_at: str = field(default_factory=now)


@dataclass(kw_only=True)
class Stored(Record):
    """Who first uploaded the content with this MD5 to this collection: its birth artifact."""

    collection: str
    md5: str
    artifact: str


@dataclass(kw_only=True)
class Use(Record):
    artifact: str
    run: str
    used_as: str | None = None
