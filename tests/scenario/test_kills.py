"""The watcher dies ten times along the way, each time at a moment that the server chooses: within a request."""

from typing import Any

from tests.scenario.held import held
from tests.scenario.training import NUM_CHECKPOINTS, STEPS, Training, Undisturbed, Watcher
from tests.wandb_server.fixture import KEY, ServerHandle

# Each within the named request: not heard by the server, or (`carry_out`) heard, and its answer not.
MOMENTS: list[dict[str, Any]] = [
    {"operation": "CollectionsOfType"},  # the first look
    {"route": "file", "contains": "model.safetensors"},  # a download
    {"operation": "UpsertBucket", "key": KEY, "carry_out": True},  # the run is there, and nobody knows
    {"route": "file_stream", "key": KEY, "contains": "wandb-history.jsonl", "carry_out": True},  # rows are there
    {"route": "file_stream", "key": KEY, "contains": "wandb-history.jsonl"},  # rows are not there
    {"operation": "CommitArtifact", "key": KEY, "carry_out": True},  # a Report is logged
    {"operation": "UseArtifact", "key": KEY},  # no edge yet
    {"operation": "HistoryPage"},  # within the look at what has arrived
    {"route": "upload", "contains": "validation.json"},
    {"route": "file_stream", "key": KEY, "contains": '"complete":true', "carry_out": True},  # the last words
]


def test_killed_ten_times_no_version_is_lost_and_none_doubled(
    undisturbed: Undisturbed, server: ServerHandle, training: Training, watcher: Watcher
) -> None:
    for number, moment in enumerate(MOMENTS):
        if number < NUM_CHECKPOINTS:
            training.log()
        else:
            training.end()
            watcher.stop_file.touch()
        server.fault("hang", **moment)
        watcher.start()
        watcher.wait_for(lambda: not server.faults_left())
        watcher.kill()
        server.clear()
    end_for_want_of_a_key(server, watcher)
    watcher.start()
    assert watcher.wait() == 0, watcher.said
    assert held(server, STEPS[-1]) == undisturbed.held
    assert [run.job_type for run in server.runs()] == ["train", "validate"]
    reports = watcher.reports
    assert sorted((r["checkpoint"]["step"], r["status"]) for r in reports) == [(step, "done") for step in STEPS]
    values = {r["checkpoint"]["step"]: r["metrics"] for r in reports}
    assert values == {r["checkpoint"]["step"]: r["metrics"] for r in undisturbed.watcher.reports}
    assert "Traceback" not in watcher.said and KEY not in watcher.said


def end_for_want_of_a_key(server: ServerHandle, watcher: Watcher) -> None:
    """A watcher whose key is refused when it looks ends by itself, and says the way out."""
    server.fault("status", status=401, operation="CollectionsOfType")
    watcher.start()
    assert watcher.wait() == 2
    assert "rejects the key; run `wandb login`, or set WANDB_API_KEY" in watcher.said
