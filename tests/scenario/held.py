"""What a server holds at the end that must not depend on what went wrong on the way."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tests.tracker.watching import table
from tests.wandb_server.fixture import ServerHandle
from tests.wandb_server.views import ArtifactView, RunView

STEP = "train/global_step"
# Moments, durations and what follows from the order of events; and the SDK's own notes on its surroundings.
OF_THE_MOMENT = {"_runtime", "_timestamp", "_step", "_report", "_wandb", "cost/encode_s", "cost/total_s", "lag/steps"}
OF_THE_MOMENT |= {"lag/seconds", "total_s", "attempts", "at"}
Held = dict[str, Any]


def held(server: ServerHandle, last_step: int) -> Held:
    """Everything that a dashboard shows of the training up to `last_step`, in an order of its own."""
    return {
        "validation": [validation_run(server, run, last_step) for run in server.runs() if run.job_type == "validate"],
        "training": [training_run(run, last_step) for run in server.runs() if run.job_type == "train"],
        "models": [model(view) for view in server.artifacts(type="model") if view.metadata[STEP] <= last_step],
        "inputs": {view.name: (view.digest, view.used_by, view.logged_by) for view in inputs(server)},
        "reports": sorted((report(v) for v in server.artifacts(type="validation") if v.metadata["step"] <= last_step), key=str),
    }


def inputs(server: ServerHandle) -> list[ArtifactView]:
    """Data set and sample."""
    return server.artifacts(type="dataset") + server.artifacts(type="sample")


def validation_run(server: ServerHandle, run: RunView, last_step: int) -> Held:
    """One run that the watcher wrote: its rows by training step, its best values, its newest table of checkpoints."""
    rows = sorted((plain(row) for row in run.history() if "_report" in row), key=lambda row: (row[STEP], str(row)))
    best = {key: value for key, value in run.summary.items() if key.startswith("val/")}
    named = {"id": run.id, "name": run.name, "group": run.group, "tags": run.tags, "config": run.config, "state": run.state}
    tables = table(server, "checkpoints") if run.state == "finished" else []
    return {
        **named,
        "axes": run.step_metrics,
        "rows": [row for row in rows if row[STEP] <= last_step],
        "best": best,
        "table": [plain(row) for row in tables if row["step"] <= last_step],
    }


def training_run(run: RunView, last_step: int) -> Held:
    """All of a run that the watcher must leave alone."""
    left_out = ("created_at", "heartbeat_at", "number", "summary")
    record = {key: value for key, value in asdict(run.record).items() if key not in left_out}
    config = {key: value for key, value in record["config"].items() if key != "_wandb"}
    history = [plain(row) for row in run.history() if row[STEP] <= last_step]
    files, summary = sorted(record["files"]), sorted(plain(run.summary))
    return {**record, "config": config, "files": files, "history": history, "summary": summary}


def model(view: ArtifactView) -> tuple[str, list[str], Mapping[str, Any], list[str]]:
    """A version that was validated: its name, aliases and metadata, and who used it."""
    return view.name, sorted(alias for alias in view.aliases if alias != "latest"), view.metadata, view.used_by


def report(view: ArtifactView) -> tuple[list[str], Mapping[str, Any]]:
    """A logged Report: under which aliases, and what it says that is not of the moment."""
    content = json.loads(view.bytes("validation.json"))
    kept = {key: content[key] for key in ("checkpoint", "status", "spec", "metrics", "error")}
    kept["checkpoint"] = {key: value for key, value in kept["checkpoint"].items() if key != "created_at"}
    return sorted(alias for alias in view.aliases if alias != "latest"), kept


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in OF_THE_MOMENT}
