"""Artifacts as GraphQL nodes: versions, collections, memberships, files."""

import base64
import json
import mimetypes
from functools import partial
from typing import Any

from tests.wandb_server.nodes import Arguments, Context, Node, connection, matches, ordered, project_info
from tests.wandb_server.records import Artifact, Collection, Manifest, Membership, Run, Use
from tests.wandb_server.run_nodes import run_info
from tests.wandb_server.store import Store


def hex_of(digest: str) -> str:
    """W&B writes MD5 digests in base64 into manifests and in hex into URLs."""
    return base64.b64decode(digest).hex()


def file_blob(birth_id: str, hex_md5: str) -> str:
    return f"files/{base64.b64decode(birth_id).decode().replace(':', '-')}/{hex_md5}"


def manifest_blob(manifest: Manifest) -> str:
    return f"manifests/{manifest.number}.json"


def memberships(store: Store, collection: str) -> list[Membership]:
    """By version, the first one first."""
    found = [member for member in store.all(Membership) if member.collection == collection]
    return sorted(found, key=lambda member: member.version)


def find_membership(store: Store, collection: str, alias: str) -> Membership | None:
    """By alias, `v<number>` or digest."""
    for member in memberships(store, collection):
        if alias in member.aliases or alias == f"v{member.version}":
            return member
    for member in memberships(store, collection):
        artifact = store.get(Artifact, member.artifact)
        if artifact and artifact.digest == alias:
            return member
    return None


def artifact_node(ctx: Context, artifact: Artifact) -> Node:
    store = ctx.store
    home = _home(store, artifact)
    return {
        "__typename": "Artifact",
        "id": artifact.id,
        "artifactSequence": lambda _: collection_node(ctx, home),
        "artifactType": {"id": f"type-{home.type}", "name": home.type},
        "version": f"v{artifact.version}",
        "versionIndex": artifact.version,
        "description": artifact.description,
        "metadata": artifact.metadata,
        "ttlDurationSeconds": artifact.ttl_s,
        "ttlIsInherited": False,
        "tags": [_tag(name) for name in artifact.tags],
        "historyStep": None,
        "state": artifact.state,
        "size": sum(int(entry.get("size") or 0) for entry in artifact.contents.values()),
        "digest": artifact.digest,
        "digestAlgorithm": "MANIFEST_MD5",
        "commitHash": artifact.digest,
        "fileCount": len(artifact.contents),
        "createdAt": artifact.created_at,
        "updatedAt": artifact.created_at,
        "aliases": lambda _: [node for member in _members(store, artifact) for node in _aliases(ctx, member)],
        "currentManifest": lambda _: _manifest(ctx, artifact),
        "artifactMemberships": lambda a: connection([membership_node(ctx, m) for m in _members(store, artifact)], a),
        "createdBy": lambda _: _creator(ctx, artifact),
        "usedBy": lambda a: connection([run_info(ctx, run) for run in users(store, artifact)], a),
        "filesByManifestEntries": lambda a: files(ctx, artifact, {**a, "names": None}),
    }


def users(store: Store, artifact: Artifact) -> list[Run]:
    keys = [use.run for use in store.all(Use) if use.artifact == artifact.key]
    return [run for run in (store.get(Run, key) for key in keys) if run]


def artifact_field(store: Store, artifact: Artifact, name: str) -> Any:
    """What filters and orders of the public API read."""
    if name in ("alias", "aliases"):
        return [alias for member in _members(store, artifact) for alias in member.aliases]
    if name in ("createdAt", "created_at", "id"):
        return artifact.number
    if name in ("versionIndex", "version_index", "version"):
        return artifact.version
    return {"state": artifact.state, "digest": artifact.digest, "tags": artifact.tags}.get(name)


def collection_node(ctx: Context, collection: Collection) -> Node:
    members = memberships(ctx.store, collection.key)
    return {
        "__typename": collection.kind,
        "id": collection.id,
        "name": collection.name,
        "description": None,
        "state": "READY",
        "createdAt": collection.created_at,
        "updatedAt": collection.created_at,
        "digestAlgorithm": "MANIFEST_MD5",
        "project": project_info(ctx.store, collection.entity, collection.project),
        "defaultArtifactType": {"id": f"type-{collection.type}", "name": collection.type},
        "tags": {"edges": []},
        "aliases": lambda a: connection([n for m in reversed(members) for n in _aliases(ctx, m)], a),
        "latestArtifact": lambda _: _latest(ctx, members),
        "artifactMembership": lambda a: _membership(ctx, collection, a["aliasName"]),
        "artifacts": lambda a: _versions(ctx, members, a),
    }


def _versions(ctx: Context, members: list[Membership], arguments: Arguments) -> Node:
    """The newest first unless ordered otherwise (what W&B itself does by default was never observed)."""
    found = [ctx.store.get(Artifact, member.artifact) for member in reversed(members)]
    wanted = json.loads(arguments.get("filters") or "{}")
    store = ctx.store
    kept = [item for item in found if item and matches(wanted, partial(artifact_field, store, item))]
    if order := arguments.get("order"):
        kept = ordered(kept, order, lambda item: partial(artifact_field, store, item))
    versions = {member.artifact: f"v{member.version}" for member in members}
    return connection([{**artifact_node(ctx, item), "version": versions[item.key]} for item in kept], arguments)


def membership_node(ctx: Context, member: Membership) -> Node:
    artifact = ctx.store.get(Artifact, member.artifact)
    collection = ctx.store.get(Collection, member.collection)
    assert artifact is not None and collection is not None
    return {
        "__typename": "ArtifactCollectionMembership",
        "id": member.id,
        "versionIndex": member.version,
        "createdAt": member.created_at,
        "aliases": _aliases(ctx, member),
        "artifactCollection": lambda _: collection_node(ctx, collection),
        "artifact": lambda _: artifact_node(ctx, artifact),
        "files": lambda arguments: files(ctx, artifact, arguments),
    }


def files(ctx: Context, artifact: Artifact, arguments: Arguments) -> Node:
    wanted = arguments.get("names") or list(artifact.contents)
    entries = {name: entry for name, entry in artifact.contents.items() if name in wanted and not entry.get("ref")}
    return connection([_file(ctx, artifact, name, entry) for name, entry in sorted(entries.items())], arguments)


def _file(ctx: Context, artifact: Artifact, name: str, entry: dict[str, Any]) -> Node:
    blob = file_blob(entry.get("birthArtifactID") or artifact.id, hex_of(entry["digest"]))
    url = ctx.url(blob, artifact=artifact.id, file=name)
    return {
        "__typename": "File",
        "id": base64.b64encode(f"File:{artifact.number}:{name}".encode()).decode(),
        "name": name,
        "displayName": name,
        "url": url,
        "directUrl": url,
        "sizeBytes": int(entry.get("size") or 0),
        "storagePath": blob,
        "mimetype": mimetypes.guess_type(name)[0],
        "updatedAt": artifact.created_at,
        "digest": entry["digest"],
        "md5": entry["digest"],
    }


def _home(store: Store, artifact: Artifact) -> Collection:
    home = store.get(Collection, artifact.collection)
    assert home is not None
    return home


def _members(store: Store, artifact: Artifact) -> list[Membership]:
    return [member for member in store.all(Membership) if member.artifact == artifact.key]


def _aliases(ctx: Context, member: Membership) -> list[Node]:
    collection = ctx.store.get(Collection, member.collection)
    assert collection is not None

    def home(_: Arguments) -> Node:
        return collection_node(ctx, collection)

    def alias(name: str) -> Node:
        opaque = base64.b64encode(f"ArtifactAlias:{collection.number}:{name}".encode()).decode()
        return {"__typename": "ArtifactAlias", "id": opaque, "alias": name, "artifactCollection": home}

    return [alias(name) for name in member.aliases]


def _tag(name: str) -> Node:
    return {"__typename": "Tag", "id": base64.b64encode(f"Tag:{name}".encode()).decode(), "name": name}


def _latest(ctx: Context, members: list[Membership]) -> Node | None:
    artifact = ctx.store.get(Artifact, members[-1].artifact) if members else None
    return artifact_node(ctx, artifact) if artifact else None


def _membership(ctx: Context, collection: Collection, alias: str) -> Node | None:
    member = find_membership(ctx.store, collection.key, alias)
    return membership_node(ctx, member) if member else None


def _manifest(ctx: Context, artifact: Artifact) -> Node | None:
    manifest = ctx.store.get(Manifest, artifact.manifest)
    if manifest is None:
        return None
    url = ctx.url(manifest_blob(manifest), artifact=artifact.id)
    return {"id": manifest.id, "digest": manifest.digest, "file": {"id": manifest.id, "directUrl": url}}


def _creator(ctx: Context, artifact: Artifact) -> Node | None:
    run = ctx.store.get(Run, artifact.created_by)
    return run_info(ctx, run) if run else None
