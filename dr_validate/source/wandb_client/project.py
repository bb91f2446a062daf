"""What is asked of a W&B project: which versions it has, where their manifests and files are, which run logged them.

Queries of our own: each asks for what is used and no more, with fields that the SDK itself asks for.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from dr_validate.errors import CheckpointDeleted, SetupError
from dr_validate.source.wandb_client.api import WandbApi
from dr_validate.source.wandb_client.versions import Version, version_of

_NODE = """
    node { id state createdAt metadata versionIndex artifactType { name } artifactSequence { name }
           tags { name } aliases { alias artifactCollection { name } } }
"""
_PAGE = "pageInfo { endCursor hasNextPage }"
_OF_COLLECTION = f"""
query VersionsOfCollection($entity: String!, $project: String!, $type: String!, $collection: String!,
                           $filters: JSONString, $cursor: String, $perPage: Int) {{
  project(entityName: $entity, name: $project) {{ artifactType(name: $type) {{ artifactCollection(name: $collection) {{
    artifacts(after: $cursor, first: $perPage, filters: $filters) {{ {_PAGE} edges {{ version {_NODE} }} }} }} }} }}
}}
"""
_OF_RUN = f"""
query VersionsOfRun($entity: String!, $project: String!, $run: String!, $cursor: String, $perPage: Int) {{
  project(entityName: $entity, name: $project) {{ run(name: $run) {{
    outputArtifacts(after: $cursor, first: $perPage) {{ {_PAGE} edges {{ {_NODE} }} }} }} }}
}}
"""
_COLLECTIONS = f"""
query CollectionsOfType($entity: String!, $project: String!, $type: String!, $cursor: String, $perPage: Int) {{
  project(entityName: $entity, name: $project) {{ artifactType(name: $type) {{
    artifactCollections(after: $cursor, first: $perPage) {{ {_PAGE} edges {{ node {{ name }} }} }} }} }}
}}
"""
_TYPES = f"""
query TypesOfProject($entity: String!, $project: String!, $cursor: String, $perPage: Int) {{
  project(entityName: $entity, name: $project) {{
    artifactTypes(after: $cursor, first: $perPage) {{ {_PAGE} edges {{ node {{ name }} }} }} }}
}}
"""
_VERSION = """
query FactsOfVersion($id: ID!) {
  artifact(id: $id) {
    digest
    currentManifest { file { directUrl } }
    createdBy { __typename ... on Run { name project { name entity { name } } } } }
}
"""
_RUN = """
query NamesOfRun($entity: String!, $project: String!, $run: String!) {
  project(entityName: $entity, name: $project) { run(name: $run) { displayName group } }
}
"""
_FILES = f"""
query FilesOfVersion($entity: String!, $project: String!, $collection: String!, $alias: String!, $names: [String!],
                     $cursor: String, $perPage: Int) {{
  project(entityName: $entity, name: $project) {{ artifactCollection(name: $collection) {{
    artifactMembership(aliasName: $alias) {{
      files(names: $names, after: $cursor, first: $perPage) {{ {_PAGE} edges {{ node {{ name directUrl }} }} }} }} }} }}
}}
"""
_PINNED = """
query PinnedVersion($entity: String!, $project: String!, $collection: String!, $alias: String!) {
  project(entityName: $entity, name: $project) { artifactCollection(name: $collection) {
    artifactMembership(aliasName: $alias) { artifact { id state } } } }
}
"""
COMMITTED = "COMMITTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a version's manifest is, for some minutes, and what its digest should be; and entity, project and id of the run
    that logged the version."""

    manifest_url: str
    digest: str
    logged_by: tuple[str, str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One project through one connection. Every method raises what WandbApi raises."""

    api: WandbApi
    entity: str
    name: str

    @property
    def _names(self) -> Mapping[str, str]:
        return {"entity": self.entity, "project": self.name}

    def versions(self, kind: str, artifact: str | None) -> list[Version]:
        """Committed versions of the collections of a type that `artifact` names (a glob, or None for all of them).

        Raises LookupError where there is no such project, type or (unless a glob) collection.
        """
        exact = artifact is not None and not set(artifact) & set("*?[")
        collections = [artifact] if exact and artifact else self._collections(kind, artifact or "*")
        return [version for name in collections for version in self._of_collection(kind, name)]

    def versions_of_run(self, run: str, kind: str, artifact: str | None) -> list[Version]:
        """The same, of what one run logged. Raises SetupError where there is no such run."""
        found = []
        try:
            for edge in self.api.pages(_OF_RUN, {**self._names, "run": run}, "project", "run", "outputArtifacts"):
                node = edge["node"]
                collection, number = node["artifactSequence"]["name"], node["versionIndex"]
                fits = node["artifactType"]["name"] == kind and fnmatchcase(collection, artifact or "*")
                if fits and node["state"] == COMMITTED and number is not None:
                    found.append(version_of(node, collection, int(number)))
        except LookupError as error:
            raise self.missing() or SetupError(
                f"source.run: got {run!r}, no run of {self.entity}/{self.name}; give the id that stands last in its URL"
            ) from error
        return found

    def types(self) -> list[str] | None:
        """Types of the artifacts that the project holds; None if there is no such project."""
        try:
            return sorted(edge["node"]["name"] for edge in self.api.pages(_TYPES, self._names, "project", "artifactTypes"))
        except LookupError:
            return None

    def missing(self) -> SetupError | None:
        """What to tell the user if the project is not there."""
        if self.types() is not None:
            return None
        return SetupError(
            f"source.project: W&B has no project {self.entity}/{self.name} that this key may read; "
            "set source.entity and source.project (or WANDB_ENTITY and WANDB_PROJECT) as they stand in the project's URL"
        )

    def origin(self, opaque_id: str) -> "Origin":
        """Raises CheckpointDeleted where the version was deleted."""
        artifact = self.api.ask(_VERSION, {"id": opaque_id}).get("artifact") or {}
        manifest, run = artifact.get("currentManifest"), artifact.get("createdBy") or {}
        if not manifest:
            raise CheckpointDeleted("it was deleted before it could be looked at")
        place = run.get("project")
        logged_by = (place["entity"]["name"], place["name"], run["name"]) if place else None
        url, digest = str(manifest["file"]["directUrl"]), str(artifact.get("digest"))
        return Origin(manifest_url=url, digest=digest, logged_by=logged_by)

    def pinned(self, collection: str, version: str) -> str:
        """The opaque id of what `collection:vN` is. Raises CheckpointDeleted where it was deleted."""
        member = self._collection(self.api.ask(_PINNED, self._member(collection, version))).get("artifactMembership") or {}
        artifact = member.get("artifact") or {}
        if artifact.get("state") != COMMITTED:
            raise CheckpointDeleted("it was deleted before it could be fetched")
        return str(artifact["id"])

    def file_urls(self, collection: str, version: str, names: Sequence[str]) -> dict[str, str]:
        """URLs by path in the version, good for some minutes. Raises CheckpointDeleted where the version was deleted."""
        wanted = {**self._member(collection, version), "names": list(names)}
        place = ("project", "artifactCollection", "artifactMembership", "files")
        try:
            nodes = [edge["node"] for edge in self.api.pages(_FILES, wanted, *place)]
        except LookupError as error:
            raise CheckpointDeleted("it was deleted while it was fetched") from error
        return {node["name"]: node["directUrl"] for node in nodes if node["directUrl"]}

    def _collections(self, kind: str, pattern: str) -> list[str]:
        place = ("project", "artifactType", "artifactCollections")
        names = [edge["node"]["name"] for edge in self.api.pages(_COLLECTIONS, {**self._names, "type": kind}, *place)]
        return sorted(name for name in names if fnmatchcase(name, pattern))

    def _of_collection(self, kind: str, collection: str) -> Iterator[Version]:
        asked = {**self._names, "type": kind, "collection": collection, "filters": json.dumps({"state": COMMITTED})}
        place = ("project", "artifactType", "artifactCollection", "artifacts")
        for edge in self.api.pages(_OF_COLLECTION, asked, *place):
            node = edge["node"]
            if node and node["state"] == COMMITTED:
                yield version_of(node, collection, int(edge["version"].removeprefix("v")))

    def _member(self, collection: str, version: str) -> Mapping[str, str]:
        return {**self._names, "collection": collection, "alias": version}

    @staticmethod
    def _collection(data: Mapping[str, Any]) -> Mapping[str, Any]:
        return (data.get("project") or {}).get("artifactCollection") or {}


def run_names(api: WandbApi) -> Callable[[tuple[str, str, str]], tuple[str, str]]:
    """A function from (entity, project, id) of a run to its id and its group or name, each run asked for once."""
    known: dict[tuple[str, str, str], tuple[str, str]] = {}
    lock = threading.Lock()

    def of(run: tuple[str, str, str]) -> tuple[str, str]:
        with lock:
            if run not in known:
                entity, project, name = run
                data = api.ask(_RUN, {"entity": entity, "project": project, "run": name})
                found = (data.get("project") or {}).get("run") or {}
                known[run] = (name, str(found.get("group") or found.get("displayName") or name))
            return known[run]

    return of
