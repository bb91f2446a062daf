"""What clients change about runs: UpsertBucket, the file stream, files, alerts, stops."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from tests.wandb_server.graphql_parse import GraphQLError
from tests.wandb_server.nodes import Arguments, Context, Node, ensure_project
from tests.wandb_server.records import Run, View, now
from tests.wandb_server.run_nodes import EVENTS, HISTORY, LOG, run_blob, run_key, run_node
from tests.wandb_server.store import Store

DEFAULT_ENTITY = "tester"
STREAMS = (HISTORY, EVENTS, LOG)
SUMMARY = "wandb-summary.json"
PLAIN_FIELDS = {"displayName": "display_name", "groupName": "group", "jobType": "job_type", "notes": "notes", "tags": "tags"}


def upsert_bucket(ctx: Context, arguments: Arguments, shared: bool) -> Node:
    """Make or change a run; what is not given stays, and in shared mode config and summary are merged."""
    given = arguments["input"]
    run, inserted = _find_or_make(ctx.store, given)
    for name, attribute in PLAIN_FIELDS.items():
        if given.get(name) is not None:
            setattr(run, attribute, given[name])
    if given.get("config") is not None:
        config = json.loads(given["config"])
        run.config = _merged(run.config, config) if shared else config
    if given.get("summaryMetrics") is not None:
        summary = json.loads(given["summaryMetrics"])
        run.summary = {**run.summary, **summary} if shared else summary
    if given.get("state"):
        run.state = given["state"]
    ctx.store.put(run)
    return {"bucket": run_node(ctx, run), "inserted": inserted}


def upsert_view(ctx: Context, arguments: Arguments) -> Node:
    """Make a saved view, or change the one with this id."""
    given = arguments["input"]
    ensure_project(ctx.store, given["entityName"], given["projectName"])
    known = ctx.store.by_id(View, given.get("id"))
    if known is None and given.get("id"):
        raise GraphQLError(f"view {given['id']} not found")
    place = (given["entityName"], given["projectName"], given["name"])
    view = known or View(key="/".join(place), entity=place[0], project=place[1], name=place[2])
    view.display_name, view.type, view.spec = given["displayName"], given["type"], given["spec"]
    ctx.store.put(view)
    return {"view": {"id": view.id, "name": view.name}, "inserted": known is None}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    internal = {**old.get("_wandb", {}).get("value", {}), **new.get("_wandb", {}).get("value", {})}
    return {**old, **new, "_wandb": {"value": internal}}


def _find_or_make(store: Store, given: Mapping[str, Any]) -> tuple[Run, bool]:
    if given.get("id"):
        run = store.by_id(Run, given["id"])
        if run is None:
            raise GraphQLError(f"run {given['id']} not found")
        return run, False
    entity = given.get("entityName") or DEFAULT_ENTITY
    project = given.get("modelName") or "uncategorized"
    name = given.get("name") or secrets.token_hex(4)
    ensure_project(store, entity, project)
    key = run_key(entity, project, name)
    run = store.get(Run, key)
    if run is None:
        return store.put(Run(key=key, entity=entity, project=project, name=name)), True
    run.state, run.exitcode, run.heartbeat_at = "running", None, now()
    return run, False


def receive_stream(store: Store, run: Run, body: Mapping[str, Any], client: str) -> Node:
    """One file_stream request; `client` is who sent it in shared mode, else empty."""
    for name, part in (body.get("files") or {}).items():
        content = [str(line) for line in part.get("content") or []]
        if name in STREAMS:
            store.write_lines((run.key, name), int(part.get("offset") or 0), content, client)
        elif name == SUMMARY and content:
            summary = json.loads(content[-1])
            run.summary = {**run.summary, **summary} if client else summary
    run.files += [name for name in body.get("uploaded") or [] if name not in run.files]
    run.heartbeat_at = now()
    if body.get("complete"):
        run.exitcode = int(body.get("exitcode") or 0)
        run.state = "finished" if run.exitcode == 0 else "failed"
    store.put(run)
    return {"stopped": True} if run.stop_requested else {}


def create_run_files(ctx: Context, arguments: Arguments) -> Node:
    given = arguments["input"]
    run = _named(ctx.store, given)
    files = given.get("files") or []
    run.files += [name for name in files if name not in run.files]
    ctx.store.put(run)
    uploads = [{"name": name, "uploadUrl": ctx.url(run_blob(run, name))} for name in files]
    return {"runID": run.id, "uploadHeaders": [], "files": uploads}


def keep_alert(ctx: Context, arguments: Arguments) -> Node:
    given = arguments["input"]
    run = _named(ctx.store, given)
    run.alerts.append({name: given.get(name) for name in ("title", "text", "severity")})
    ctx.store.put(run)
    return {"success": True}


def request_stop(ctx: Context, arguments: Arguments) -> Node:
    run = _known(ctx.store, arguments)
    run.stop_requested = True
    ctx.store.put(run)
    return {"success": True}


def update_state(ctx: Context, arguments: Arguments) -> Node:
    run = _known(ctx.store, arguments)
    run.state = arguments["input"]["state"]
    ctx.store.put(run)
    return {"success": True}


def delete_run(ctx: Context, arguments: Arguments) -> Node:
    run = _known(ctx.store, arguments)
    ctx.store.delete_lines(run.key)
    ctx.store.delete(run)
    return {"clientMutationId": None}


def _named(store: Store, given: Mapping[str, Any]) -> Run:
    run = store.get(Run, run_key(given["entityName"], given["projectName"], given["runName"]))
    if run is None:
        raise GraphQLError(f"run {given['runName']} not found in {given['entityName']}/{given['projectName']}")
    return run


def _known(store: Store, arguments: Arguments) -> Run:
    run = store.by_id(Run, arguments["input"]["id"])
    if run is None:
        raise GraphQLError(f"run {arguments['input']['id']} not found")
    return run
