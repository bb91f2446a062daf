"""How a version comes to be: CreateArtifact, its manifest and files, CommitArtifact."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from tests.wandb_server.artifact_nodes import artifact_node, file_blob, hex_of, manifest_blob, memberships
from tests.wandb_server.graphql_parse import GraphQLError
from tests.wandb_server.nodes import Arguments, Context, Node, ensure_project
from tests.wandb_server.records import Artifact, Collection, Manifest, Membership, Stored
from tests.wandb_server.run_nodes import run_key
from tests.wandb_server.store import Store

COMMITTED = "COMMITTED"


def create_artifact(ctx: Context, arguments: Arguments) -> Node:
    """A pending version, or the committed one with the same digest, to which the aliases then move."""
    given, store = arguments["input"], ctx.store
    home = _home(store, given)
    aliases = [[part["artifactCollectionName"], part["alias"]] for part in given.get("aliases") or []]
    same = _same_content(store, home, given)
    if same:
        for name, alias in [*aliases, [home.name, "latest"]]:
            move_alias(store, f"{home.entity}/{home.project}/{name}", same, alias)
        return {"artifact": artifact_node(ctx, same)}
    run = given.get("runName")
    artifact = Artifact(
        key=secrets.token_hex(8),
        collection=home.key,
        digest=given["digest"],
        metadata=given.get("metadata"),
        description=given.get("description"),
        wanted_aliases=aliases,
        tags=[tag["tagName"] for tag in given.get("tags") or []],
        ttl_s=given.get("ttlDurationSeconds") or -1,
        created_by=run_key(home.entity, home.project, run) if run else None,
        client_id=given.get("clientID"),
    )
    return {"artifact": artifact_node(ctx, store.put(artifact))}


def _home(store: Store, given: Mapping[str, Any]) -> Collection:
    entity, project, kind = given["entityName"], given["projectName"], given["artifactTypeName"]
    name = (given.get("artifactCollectionNames") or [given.get("artifactCollectionName")])[0]
    ensure_project(store, entity, project)
    key = f"{entity}/{project}/{name}"
    home = store.get(Collection, key) or store.put(Collection(key=key, entity=entity, project=project, name=name, type=kind))
    if home.type != kind:
        raise GraphQLError(f"artifact {name!r} has type {home.type!r}, not {kind!r}")
    return home


def _same_content(store: Store, home: Collection, given: Mapping[str, Any]) -> Artifact | None:
    if not given.get("enableDigestDeduplication"):
        return None
    committed = [a for a in store.all(Artifact) if a.collection == home.key and a.state == COMMITTED]
    return next((a for a in reversed(committed) if a.digest == given["digest"]), None)


def move_alias(store: Store, collection: str, artifact: Artifact, alias: str) -> None:
    """In `collection`, `alias` comes to mean `artifact` and no other version."""
    for member in memberships(store, collection):
        ours = member.artifact == artifact.key
        if ours != (alias in member.aliases):
            member.aliases = [*member.aliases, alias] if ours else [name for name in member.aliases if name != alias]
            store.put(member)


def create_manifest(ctx: Context, arguments: Arguments) -> Node:
    """W&B is told of a manifest twice: before its digest is known, and then; the second time it hands out the URL."""
    given, store = arguments["input"], ctx.store
    artifact = known_artifact(store, given["artifactID"])
    key = f"{artifact.key}/{given['type']}/{given['name']}"
    manifest = store.get(Manifest, key) or Manifest(
        key=key, artifact=artifact.key, type=given["type"], name=given["name"], base=given.get("baseArtifactID")
    )
    manifest.digest = given.get("digest") or manifest.digest
    store.put(manifest)
    if given["type"] != "PATCH":
        artifact.manifest, artifact.base = manifest.key, manifest.base
        store.put(artifact)
    return _manifest_answer(ctx, manifest)


def update_manifest(ctx: Context, arguments: Arguments) -> Node:
    given = arguments["input"]
    manifest = ctx.store.by_id(Manifest, given["artifactManifestID"])
    if manifest is None:
        raise GraphQLError(f"manifest {given['artifactManifestID']} not found")
    manifest.digest = given.get("digest") or manifest.digest
    manifest.base = given.get("baseArtifactID") or manifest.base
    ctx.store.put(manifest)
    return _manifest_answer(ctx, manifest)


def _manifest_answer(ctx: Context, manifest: Manifest) -> Node:
    url = ctx.url(manifest_blob(manifest))
    return {"artifactManifest": {"id": manifest.id, "file": {"id": manifest.id, "uploadUrl": url, "uploadHeaders": []}}}


def create_files(ctx: Context, arguments: Arguments) -> Node:
    """Where to put each file, in the order asked; null for content that the collection has already."""
    nodes = [_file_slot(ctx, spec) for spec in arguments["input"]["artifactFiles"]]
    return {"files": {"edges": [{"node": node} for node in nodes]}}


def _file_slot(ctx: Context, spec: Mapping[str, Any]) -> Node:
    artifact = known_artifact(ctx.store, spec["artifactID"])
    key = f"{artifact.collection}/{spec['md5']}"
    stored = ctx.store.get(Stored, key)
    birth = ctx.store.get(Artifact, stored.artifact) if stored else None
    if birth is None:
        birth = artifact
        ctx.store.put(Stored(key=key, collection=artifact.collection, md5=spec["md5"], artifact=artifact.key))
    blob = file_blob(birth.id, hex_of(spec["md5"]))
    missing = not ctx.store.blob(blob).is_file()
    return {
        "storagePath": blob,
        "uploadUrl": ctx.url(blob, file=spec["name"]) if missing else None,
        "uploadHeaders": [],
        "uploadMultipartUrls": None,
        "artifact": {"id": birth.id},
    }


def commit_artifact(ctx: Context, arguments: Arguments) -> Node:
    """The version gets its number, its aliases and its files; `latest` always moves to it."""
    store = ctx.store
    artifact = known_artifact(store, arguments["input"]["artifactID"])
    if artifact.state == COMMITTED:
        return {"artifact": artifact_node(ctx, artifact)}
    home = store.get(Collection, artifact.collection)
    assert home is not None
    artifact.contents = _contents(store, artifact)
    artifact.state, artifact.version = COMMITTED, home.next_version
    home.next_version += 1
    store.put(home)
    store.put(artifact)
    key = f"{home.key}:v{artifact.version}"
    store.put(Membership(key=key, collection=home.key, artifact=artifact.key, version=artifact.version))
    for name, alias in [*artifact.wanted_aliases, [home.name, "latest"]]:
        move_alias(store, f"{home.entity}/{home.project}/{name}", artifact, alias)
    return {"artifact": artifact_node(ctx, artifact)}


def _contents(store: Store, artifact: Artifact) -> dict[str, dict[str, Any]]:
    """The union of the manifests, over those of the base where the version is incremental; written back where it is one."""
    manifests = [manifest for manifest in store.all(Manifest) if manifest.artifact == artifact.key]
    if not manifests:
        raise GraphQLError(f"artifact {artifact.id} has no manifest")
    base = store.by_id(Artifact, artifact.base) if any(m.type == "INCREMENTAL" for m in manifests) else None
    contents = dict(base.contents) if base else {}
    document: dict[str, Any] = {}
    for manifest in manifests:
        path = store.blob(manifest_blob(manifest))
        if not path.is_file():
            raise GraphQLError(f"the manifest of artifact {artifact.id} was never uploaded")
        document = json.loads(path.read_bytes())
        contents |= document["contents"]
    if base or len(manifests) > 1:
        whole = store.get(Manifest, artifact.manifest) or manifests[-1]
        artifact.manifest = whole.key
        store.write_blob(manifest_blob(whole), json.dumps({**document, "contents": contents}).encode())
    return contents


def known_artifact(store: Store, opaque: str | None) -> Artifact:
    artifact = store.by_id(Artifact, opaque)
    if artifact is None or artifact.state == "DELETED":
        raise GraphQLError(f"artifact {opaque} not found")
    return artifact
