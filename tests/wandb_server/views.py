"""What tests look at: runs and artifacts as the server holds them, read from its folder, running or not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.wandb_server.artifact_nodes import file_blob, hex_of, memberships, users
from tests.wandb_server.records import Artifact, Collection, Membership, Run
from tests.wandb_server.run_nodes import rows, run_blob
from tests.wandb_server.store import Store


@dataclass(frozen=True)
class RunView:
    """A run at the moment it was asked for; `record` has the rest of its fields."""

    store: Store
    record: Run

    @property
    def id(self) -> str:
        """The SDK's run id."""
        return self.record.name

    @property
    def name(self) -> str:
        return self.record.display_name

    @property
    def path(self) -> str:
        """`entity/project/id`."""
        return self.record.key

    @property
    def state(self) -> str:
        return self.record.state

    @property
    def tags(self) -> list[str]:
        return self.record.tags

    @property
    def group(self) -> str | None:
        return self.record.group

    @property
    def job_type(self) -> str | None:
        return self.record.job_type

    @property
    def config(self) -> dict[str, Any]:
        """As the user gave it, without W&B's own."""
        return {name: part.get("value") for name, part in self.record.config.items() if name != "_wandb"}

    @property
    def step_metrics(self) -> dict[str, str | None]:
        """Every metric or pattern that define_metric named, with its step metric."""
        sent = self.record.config.get("_wandb", {}).get("value", {}).get("m", [])
        # W&B numbers the fields: 1 a name, 2 a pattern, 5 the step metric as a place in this list, counted from 1.
        steps = [sent[part["5"] - 1]["1"] if "5" in part else None for part in sent]
        return {part.get("1") or part.get("2"): step for part, step in zip(sent, steps, strict=True)}

    @property
    def summary(self) -> dict[str, Any]:
        return self.record.summary

    def history(self, *names: str) -> list[dict[str, Any]]:
        """All rows in order; with names, only rows that have all of these, and only these of each."""
        found = rows(self.store, self.record.key)
        return [{n: row[n] for n in names} for row in found if all(n in row for n in names)] if names else found

    @property
    def files(self) -> list[str]:
        return [name for name in self.record.files if self.store.blob(run_blob(self.record, name)).is_file()]

    def bytes(self, name: str) -> bytes:
        return self.store.blob(run_blob(self.record, name)).read_bytes()


@dataclass(frozen=True)
class ArtifactView:
    """A committed version at the moment it was asked for."""

    store: Store
    record: Artifact
    home: Collection

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        """`collection:vN`, as the SDK's `artifact.name`."""
        return f"{self.home.name}:{self.version}"

    @property
    def path(self) -> str:
        """`entity/project/collection:vN`."""
        return f"{self.home.entity}/{self.home.project}/{self.name}"

    @property
    def collection(self) -> str:
        return self.home.name

    @property
    def type(self) -> str:
        return self.home.type

    @property
    def version(self) -> str:
        return f"v{self.record.version}"

    @property
    def digest(self) -> str:
        return self.record.digest

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(json_of(self.record.metadata))

    @property
    def aliases(self) -> list[str]:
        """In the collection where it was made; links are in `links`."""
        members = memberships(self.store, self.home.key)
        return [alias for member in members if member.artifact == self.record.key for alias in member.aliases]

    @property
    def links(self) -> dict[str, list[str]]:
        """Aliases by `entity/project/portfolio`."""
        members = [member for member in self.store.all(Membership) if member.artifact == self.record.key]
        return {member.collection: member.aliases for member in members if member.collection != self.home.key}

    @property
    def files(self) -> dict[str, int]:
        """Bytes by path."""
        return {name: int(entry.get("size") or 0) for name, entry in self.record.contents.items()}

    def bytes(self, name: str) -> bytes:
        entry = self.record.contents[name]
        birth = entry.get("birthArtifactID") or self.id
        return self.store.blob(file_blob(birth, hex_of(entry["digest"]))).read_bytes()

    @property
    def used_by(self) -> list[str]:
        """Ids of the runs that declared it as input."""
        return [run.name for run in users(self.store, self.record)]

    @property
    def logged_by(self) -> str | None:
        """Id of the run that made it."""
        return self.record.created_by.rsplit("/", 1)[1] if self.record.created_by else None


def json_of(text: str | None) -> Mapping[str, Any]:
    parsed: Mapping[str, Any] = json.loads(text) if text else {}
    return parsed
