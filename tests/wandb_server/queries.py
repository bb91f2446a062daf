"""The root of every query and mutation: field names of W&B's API, each with what answers it."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from tests.wandb_server import artifact_changes, artifact_edits, run_changes
from tests.wandb_server.artifact_nodes import artifact_node, collection_node, find_membership, membership_node, users
from tests.wandb_server.nodes import Arguments, Context, Node, connection, matches, ordered, project_info, project_key
from tests.wandb_server.records import Artifact, Collection, Project, Run, View
from tests.wandb_server.run_nodes import USER, run_field, run_key, run_node

VIEWER = {**USER, "entity": "tester", "email": "tester@localhost", "admin": False, "flags": "{}", "deletedAt": None}
NOBODY: Node = {"edges": []}


def root(ctx: Context, shared: bool) -> Node:
    """`shared`: the request comes from a run in shared mode, whose config and summary are merged."""
    return {
        "__typename": "Query",
        "viewer": {**VIEWER, "username": "tester", "teams": NOBODY, "apiKeys": NOBODY},
        "serverInfo": {"features": [], "cliVersionInfo": "{}"},
        "project": lambda a: _project(ctx, a),
        "model": lambda a: _project(ctx, a),
        "models": lambda a: _projects(ctx, a),
        "entity": lambda a: _entity(a["name"]),
        "organization": lambda a: _organization(ctx, a["name"]),
        "artifact": lambda a: _artifact(ctx, a["id"]),
        "artifactCollection": lambda a: _collection_by_id(ctx, a["id"]),
        "clientIDMapping": lambda a: _by_client_id(ctx, a["clientID"]),
        "upsertBucket": lambda a: run_changes.upsert_bucket(ctx, a, shared),
        "createRunFiles": lambda a: run_changes.create_run_files(ctx, a),
        "markRunFilesUploaded": lambda _: {"success": True},
        "notifyScriptableRunAlert": lambda a: run_changes.keep_alert(ctx, a),
        "stopRun": lambda a: run_changes.request_stop(ctx, a),
        "updateRunState": lambda a: run_changes.update_state(ctx, a),
        "deleteRun": lambda a: run_changes.delete_run(ctx, a),
        "createArtifact": lambda a: artifact_changes.create_artifact(ctx, a),
        "createArtifactManifest": lambda a: artifact_changes.create_manifest(ctx, a),
        "updateArtifactManifest": lambda a: artifact_changes.update_manifest(ctx, a),
        "createArtifactFiles": lambda a: artifact_changes.create_files(ctx, a),
        "commitArtifact": lambda a: artifact_changes.commit_artifact(ctx, a),
        "updateArtifact": lambda a: artifact_edits.update_artifact(ctx, a),
        "deleteArtifact": lambda a: artifact_edits.delete_artifact(ctx, a),
        "addAliases": lambda a: artifact_edits.add_aliases(ctx, a),
        "deleteAliases": lambda a: artifact_edits.delete_aliases(ctx, a),
        "linkArtifact": lambda a: artifact_edits.link_artifact(ctx, a),
        "unlinkArtifact": lambda a: artifact_edits.unlink_artifact(ctx, a),
        "useArtifact": lambda a: artifact_edits.use_artifact(ctx, a),
        "upsertView": lambda a: run_changes.upsert_view(ctx, a),
        "createCustomChart": lambda _: {"chart": {"id": "Y2hhcnQ="}},
    }


def _project(ctx: Context, arguments: Arguments) -> Node | None:
    entity, name = arguments.get("entityName") or run_changes.DEFAULT_ENTITY, arguments.get("name") or ""
    project = ctx.store.get(Project, project_key(entity, name))
    if project is None:
        return None
    types = sorted({collection.type for collection in _collections(ctx, project)})
    return {
        **project_info(ctx.store, entity, name),
        "run": lambda a: _run(ctx, project, a["name"]),
        "bucket": lambda a: _run(ctx, project, a["name"]),
        "runs": lambda a: connection([_with_artifacts(ctx, run) for run in _runs(ctx, project, a)], a),
        "allViews": lambda a: connection(_views(ctx, project, a), a),
        "runCount": lambda a: len(_runs(ctx, project, a)),
        "artifact": lambda a: _member(ctx, project, a["name"], "artifact"),
        "artifactCollectionMembership": lambda a: _member(ctx, project, a["name"], ""),
        "artifactCollection": lambda a: _collection(ctx, project, a["name"], None),
        "artifactCollections": lambda a: _listed(ctx, _collections(ctx, project), a),
        "artifactType": lambda a: _type(ctx, project, a["name"]) if a["name"] in types else None,
        "artifactTypes": lambda a: connection([_type(ctx, project, name) for name in types], a),
    }


def _projects(ctx: Context, arguments: Arguments) -> Node:
    found = [p for p in ctx.store.all(Project) if p.entity == arguments.get("entityName")]
    return connection([{**project_info(ctx.store, p.entity, p.name), "user": VIEWER} for p in found], arguments)


def _runs(ctx: Context, project: Project, arguments: Arguments) -> list[Run]:
    runs = [run for run in ctx.store.all(Run) if (run.entity, run.project) == (project.entity, project.name)]
    wanted = json.loads(arguments.get("filters") or "{}")
    kept = [run for run in runs if matches(wanted, partial(run_field, run))]
    order = arguments.get("order")
    return ordered(kept, order, lambda run: partial(run_field, run)) if order else kept


def _views(ctx: Context, project: Project, arguments: Arguments) -> list[Node]:
    mine = [view for view in ctx.store.all(View) if (view.entity, view.project) == (project.entity, project.name)]
    named = [view for view in mine if arguments.get("viewName") in (None, view.name)]
    return [{"id": view.id, "name": view.name, "displayName": view.display_name, "spec": view.spec} for view in named]


def _run(ctx: Context, project: Project, name: str) -> Node | None:
    run = ctx.store.get(Run, run_key(project.entity, project.name, name))
    return _with_artifacts(ctx, run) if run else None


def _with_artifacts(ctx: Context, run: Run) -> Node:
    def nodes(found: list[Artifact]) -> list[Node]:
        return [artifact_node(ctx, artifact) for artifact in found if artifact.state == "COMMITTED"]

    every = ctx.store.all
    return {
        **run_node(ctx, run),
        "outputArtifacts": lambda a: connection(nodes([x for x in every(Artifact) if x.created_by == run.key]), a),
        "inputArtifacts": lambda a: connection(nodes([x for x in every(Artifact) if run in users(ctx.store, x)]), a),
    }


def _collections(ctx: Context, project: Project) -> list[Collection]:
    return [c for c in ctx.store.all(Collection) if (c.entity, c.project) == (project.entity, project.name)]


def _listed(ctx: Context, collections: list[Collection], arguments: Arguments) -> Node:
    """The newest first, as the SDK documents it."""
    wanted = json.loads(arguments.get("filters") or "{}")
    kept = [c for c in reversed(collections) if matches(wanted, partial(_collection_field, c))]
    return connection([collection_node(ctx, collection) for collection in kept], arguments)


def _collection_field(collection: Collection, name: str) -> Any:
    return getattr(collection, name, None)


def _collection(ctx: Context, project: Project, name: str, kind: str | None) -> Node | None:
    collection = ctx.store.get(Collection, f"{project.entity}/{project.name}/{name}")
    fits = collection is not None and kind in (None, collection.type)
    return collection_node(ctx, collection) if collection and fits else None


def _type(ctx: Context, project: Project, name: str) -> Node:
    collections = [collection for collection in _collections(ctx, project) if collection.type == name]
    return {
        "__typename": "ArtifactType",
        "id": f"type-{name}",
        "name": name,
        "description": None,
        "createdAt": collections[0].created_at if collections else project.created_at,
        "artifactCollections": lambda a: _listed(ctx, collections, a),
        "artifactCollection": lambda a: _collection(ctx, project, a["name"], name),
    }


def _member(ctx: Context, project: Project, name: str, field: str) -> Any:
    """`name` is `collection:alias`; the membership, or what its `field` holds."""
    collection, _, alias = name.partition(":")
    key = f"{project.entity}/{project.name}/{collection}"
    member = find_membership(ctx.store, key, alias or "latest")
    if member is None:
        return None
    node = membership_node(ctx, member)
    return node[field]({}) if field else node


def _artifact(ctx: Context, opaque: str) -> Node | None:
    artifact = ctx.store.by_id(Artifact, opaque)
    return artifact_node(ctx, artifact) if artifact and artifact.state != "DELETED" else None


def _collection_by_id(ctx: Context, opaque: str) -> Node | None:
    collection = ctx.store.by_id(Collection, opaque)
    return collection_node(ctx, collection) if collection else None


def _by_client_id(ctx: Context, client_id: str) -> Mapping[str, str] | None:
    found = [artifact for artifact in ctx.store.all(Artifact) if artifact.client_id == client_id]
    return {"serverID": found[-1].id} if found else None


def _entity(name: str) -> Node:
    organization = {"name": f"{name}-org", "orgEntity": {"name": f"{name}-org"}, "coreWeaveOrganizationId": None}
    return {"id": "RW50aXR5OjE=", "name": name, "organization": organization, "user": None, "xxhashDigestsEnabled": False}


def _organization(ctx: Context, name: str) -> Node:
    registries = [c for c in ctx.store.all(Collection) if c.entity == name and c.project.startswith("wandb-registry-")]
    entity = {"__typename": "Entity", "id": "RW50aXR5OjE=", "name": name, "entityType": "organization"}
    return {
        "id": "T3JnOjE=",
        "name": name,
        "featureFlags": [],
        "orgEntity": {**entity, "artifactCollections": lambda a: _listed(ctx, registries, a)},
    }
