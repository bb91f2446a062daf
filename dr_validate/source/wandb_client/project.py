"""A W&B project as a source sees it: which versions it has, where their manifests and files are, which run logged them.

Queries of our own: each asks for what is used and no more, with fields that the SDK itself asks for. A source keeps one
connection while it lives, with what is known of versions, and what was found to be gone.
"""

import contextvars
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from dr_validate.errors import CheckpointDeleted, SetupError
from dr_validate.source.wandb_client.api import WandbApi
from dr_validate.source.wandb_client.http import Downloads, FileOutage
from dr_validate.source.wandb_client.versions import (
    Contents,
    Facts,
    ManifestEntry,
    Remembered,
    Version,
    has_digest,
    read_manifest,
    version_of,
)
from dr_validate.values import ARTIFACT_SCHEME

COMMITTED = "COMMITTED"
ASKED_AT_ONCE = 8  # questions about versions not seen before, a thread each
MANIFEST_TRIES = 4
T = TypeVar("T")
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

    def uri(self, version: str) -> str:
        """What a Checkpoint calls the version `collection:vN`."""
        return f"{ARTIFACT_SCHEME}{self.entity}/{self.name}/{version}"

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

    def origin(self, opaque_id: str) -> Origin:
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


def _run_names(api: WandbApi) -> Callable[[tuple[str, str, str]], tuple[str, str]]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a version holds and where it comes from; `is_verified` if it has the digest that W&B names."""

    origin: Origin
    contents: Contents
    is_verified: bool


class Connection:
    """Safe from several threads: one lists while another fetches ahead."""

    def __init__(self, *, timeout_s: float, api_timeout_s: float) -> None:
        self.api = WandbApi(api_timeout_s)
        self.refused: dict[str, str] = {}  # by opaque id: what a version did while it was listed, which is not asked for again
        self.put_off: dict[str, tuple[str, float]] = {}  # likewise: why a manifest did not come, when to ask again (monotonic)
        self._times_gone: dict[str, int] = {}
        self._downloads = Downloads(timeout_s)
        self._manifests = Downloads(min(timeout_s, api_timeout_s), total_s=timeout_s)
        self._remembered = Remembered()
        self._names_of_run = _run_names(self.api)

    def note_gone(self, uri: str) -> None:
        """The files of a version were not there."""
        self._times_gone[uri] = self._times_gone.get(uri, 0) + 1

    def is_gone(self, uri: str) -> bool:
        """Whether to list it no more, though W&B does. Once is not enough: a fetch ahead of its turn is reported to nobody."""
        return self._times_gone.get(uri, 0) > 1

    def each(self, examine: Callable[[Version], T], versions: Iterable[Version]) -> list[T]:
        """Answers of `examine`, several at a time. Raises what it raises first, and asks it of no more then.

        Not by an executor: the end of the process waits for its threads, whatever server they wait for.
        """
        answers: dict[int, T] = {}
        errors: list[BaseException] = []  # a dead server is asked no more than ASKED_AT_ONCE times
        lock, left = threading.Lock(), enumerate(versions)

        def work() -> None:
            while not errors:
                with lock:
                    place, version = next(left, (-1, None))
                if version is None:
                    return
                try:
                    answers[place] = examine(version)
                except BaseException as error:
                    errors.append(error)

        contexts = [contextvars.copy_context() for _ in range(ASKED_AT_ONCE)]
        threads = [threading.Thread(target=context.run, args=(work,), name="versions", daemon=True) for context in contexts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [answers[place] for place in sorted(answers)]

    def facts(self, project: Project, version: Version, folder: Path) -> Facts | None:
        """What is not known is asked for and remembered in `folder`; None for a version deleted meanwhile. Raises Outage."""
        if known := self._remembered.get(folder, version):
            return known
        try:
            facts, is_certain = self._ask(project, version)
        except CheckpointDeleted:
            return None
        if is_certain:
            self._remembered.put(folder, version, facts)
        return facts

    def manifest(self, project: Project, opaque_id: str) -> Manifest:
        """Where a version comes from and what is in it. Raises CheckpointDeleted, Outage."""
        origin = project.origin(opaque_id)
        unused = [origin.manifest_url]

        def fresh_url() -> str:
            return unused.pop() if unused else project.origin(opaque_id).manifest_url

        seen: list[bytes] = []
        for _ in range(MANIFEST_TRIES):
            content = self._manifests.content(fresh_url)
            document = _parsed(content)
            is_verified = has_digest(document, origin.digest)
            # The manifest of a version that several processes logged together has another digest, and always the same bytes.
            if is_verified or content in seen:
                return Manifest(origin=origin, contents=read_manifest(document), is_verified=is_verified)
            seen.append(content)
        raise FileOutage(f"the manifest of a version comes damaged, each time in another way ({len(seen)} times)")

    def bring(self, project: Project, version: tuple[str, str], files: Sequence[ManifestEntry], into: Path) -> None:
        """Files of (collection, vN) to their paths under `into`. Raises what Downloads.file raises."""
        held = [entry.path for entry in files if not entry.reference]
        urls = project.file_urls(*version, held) if held else {}
        for entry in files:
            self._downloads.file(entry, self._url_giver(project, version, entry, urls), into)

    def _url_giver(
        self, project: Project, version: tuple[str, str], entry: ManifestEntry, urls: dict[str, str]
    ) -> Callable[[], str]:
        """Each URL of `urls` once, then one asked for anew: an expired one is of no use twice."""

        def fresh_url() -> str:
            if entry.reference:
                return entry.reference
            url = urls.pop(entry.path, "") or project.file_urls(*version, [entry.path]).get(entry.path, "")
            if not url:
                raise CheckpointDeleted(f"W&B has no URL for {entry.path}: its content was deleted")
            return url

        return fresh_url

    def _ask(self, project: Project, version: Version) -> tuple[Facts, bool]:
        """And whether they may be remembered: what makes a version unusable must not be damage on the way."""
        found = self.manifest(project, version.opaque_id)
        contents, logged_by = found.contents, found.origin.logged_by
        training_run, group = self._names_of_run(logged_by) if logged_by else ("", "")
        facts = Facts(
            digest=contents.digest,
            lacks=contents.lacks,
            num_bytes=contents.num_bytes,
            references=contents.references,
            training_run=training_run,
            group=group,
        )
        return facts, found.is_verified or not contents.lacks


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
