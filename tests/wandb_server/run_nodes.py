"""Runs as GraphQL nodes: fields, history, files."""

import json
import mimetypes
from collections.abc import Mapping
from typing import Any

from tests.wandb_server.nodes import Arguments, Context, Node, connection, project_info
from tests.wandb_server.records import Project, Run
from tests.wandb_server.store import Store, json_text

HISTORY, EVENTS, LOG = "wandb-history.jsonl", "wandb-events.jsonl", "output.log"
USER = {"__typename": "User", "id": "VXNlcjox", "name": "tester", "username": "tester"}


def run_key(entity: str, project: str, name: str) -> str:
    return f"{entity}/{project}/{name}"


def rows(store: Store, run: str) -> list[dict[str, Any]]:
    """The history of `run`, in order; where a client in shared mode wrote, `_step` is counted anew."""
    lines = store.lines((run, HISTORY))
    shared = any(client for _, client, _ in lines)
    parsed = [json.loads(body) for _, _, body in lines]
    return [{**row, "_step": step} for step, row in enumerate(parsed)] if shared else parsed


def run_info(ctx: Context, run: Run) -> Node:
    return {
        "__typename": "Run",
        "id": run.id,
        "name": run.name,
        "displayName": run.display_name or run.name,
        "project": project_info(ctx.store, run.entity, run.project),
    }


def run_node(ctx: Context, run: Run) -> Node:
    """Everything about a run but its artifacts."""
    project = ctx.store.get(Project, f"{run.entity}/{run.project}")
    return {
        **run_info(ctx, run),
        "projectId": str(project.number) if project else None,
        "tags": run.tags,
        "state": run.state,
        "config": json_text(run.config),
        "wandbConfig": json_text(_telemetry(run)),
        "group": run.group,
        "groupName": run.group,
        "jobType": run.job_type,
        "readOnly": False,
        "createdAt": run.created_at,
        "heartbeatAt": run.heartbeat_at,
        "notes": run.notes,
        "systemMetrics": "{}",
        "summaryMetrics": json_text(run.summary),
        "user": USER,
        "fileCount": len(run.files),
        "files": lambda arguments: _files(ctx, run, arguments),
        **_line_counts(ctx.store, run),
        **_history(ctx.store, run),
    }


def run_field(run: Run, name: str) -> Any:
    """What filters and orders of the public API read; dots lead into config and summary."""
    head, _, rest = name.partition(".")
    if head == "config":
        value = run.config.get(rest.removesuffix(".value"))
        return value.get("value") if isinstance(value, Mapping) else value
    if head in ("summary_metrics", "summaryMetrics"):
        return run.summary.get(rest)
    plain = {"jobType": run.job_type, "createdAt": run.created_at, "heartbeatAt": run.heartbeat_at, "username": "tester"}
    plain["displayName"] = plain["display_name"] = run.display_name or run.name
    return plain[name] if name in plain else getattr(run, name, None)


def _telemetry(run: Run) -> dict[str, Any]:
    sent = run.config.get("_wandb", {}).get("value", {})
    return {"t": sent["t"]} if "t" in sent else {}


def _line_counts(store: Store, run: Run) -> Node:
    def tail(stream: str) -> str:
        return json_text([body for _, _, body in store.lines((run.key, stream))[-1:]])

    return {
        "historyLineCount": store.count_lines((run.key, HISTORY)),
        "eventsLineCount": store.count_lines((run.key, EVENTS)),
        "logLineCount": store.count_lines((run.key, LOG)),
        "historyTail": lambda _: json_text([json_text(row) for row in rows(store, run.key)[-1:]]),
        "eventsTail": lambda _: tail(EVENTS),
    }


def _history(store: Store, run: Run) -> Node:
    def full(arguments: Arguments) -> list[str]:
        low, high = arguments.get("minStep"), arguments.get("maxStep")
        kept = [row for row in rows(store, run.key) if _within(row, low, high)]
        return [json_text(row) for row in _thinned(kept, arguments.get("samples") or 500)]

    def sampled(arguments: Arguments) -> list[list[dict[str, Any]]]:
        return [_sampled(rows(store, run.key), json.loads(spec)) for spec in arguments["specs"]]

    def events(arguments: Arguments) -> list[str]:
        return [body for _, _, body in store.lines((run.key, EVENTS))]

    return {
        "history": full,
        "sampledHistory": sampled,
        "events": events,
        "historyKeys": lambda _: _keys(rows(store, run.key)),
        "parquetHistory": {"parquetUrls": [], "liveData": []},
    }


def _within(row: Mapping[str, Any], low: int | None, high: int | None) -> bool:
    step = row.get("_step", 0)
    return (low is None or step >= low) and (high is None or step < high)


def _sampled(history: list[dict[str, Any]], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = spec.get("keys") or []
    low, high = spec.get("minStep"), spec.get("maxStep")
    kept = [row for row in history if _within(row, low, high) and all(name in row for name in names)]
    return [{k: v for k, v in row.items() if not names or k in names} for row in _thinned(kept, spec.get("samples") or 500)]


def _thinned(history: list[dict[str, Any]], samples: int) -> list[dict[str, Any]]:
    """At most `samples` rows, evenly spread, first and last among them; W&B samples at random, tests want the same twice."""
    if len(history) <= samples:
        return history
    last = len(history) - 1
    return [history[round(n * last / max(samples - 1, 1))] for n in range(samples)]


def _keys(history: list[dict[str, Any]]) -> Node:
    keys: Node = {}
    for row in history:
        for name, value in row.items():
            kind = "number" if isinstance(value, int | float) else "string" if isinstance(value, str) else "map"
            known = keys.setdefault(name, {"typeCounts": [{"type": kind, "count": 0}]})
            known["typeCounts"][0]["count"] += 1
    return {"lastStep": history[-1].get("_step", 0) if history else -1, "sets": [], "keys": keys}


def run_blob(run: Run, name: str) -> str:
    return f"runs/{run.key}/{name}"


def _files(ctx: Context, run: Run, arguments: Arguments) -> Node:
    wanted = arguments.get("names") or run.files
    nodes = [_file(ctx, run, name) for name in run.files if name in wanted and ctx.store.blob(run_blob(run, name)).is_file()]
    return connection(nodes, arguments)


def _file(ctx: Context, run: Run, name: str) -> Node:
    url = ctx.url(run_blob(run, name))
    size = ctx.store.blob(run_blob(run, name)).stat().st_size
    kind = mimetypes.guess_type(name)[0]
    return {
        "id": name,
        "name": name,
        "url": url,
        "directUrl": url,
        "sizeBytes": size,
        "mimetype": kind,
        "updatedAt": run.heartbeat_at,
    }
