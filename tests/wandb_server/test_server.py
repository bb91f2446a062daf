"""The loopback W&B backend against the real SDK in processes of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import LIMIT_S, wait_for
from tests.wandb_server.fixture import KEY, ServerHandle, start_server
from tests.wandb_server.scripts import DAMAGED, EDIT, LOG, OUTAGE, READ, REJECTED, RESUME, SHARED, SYNC, TRAIN

QUICK = {
    f"WANDB_X_{part}_RETRY_WAIT_{end}_SECONDS": "1"
    for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
    for end in ("MIN", "MAX")
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerHandle]:
    with start_server(tmp_path / "server") as handle:
        yield handle


def test_a_reader_in_another_process_gets_what_a_trainer_logged(server: ServerHandle) -> None:
    server.capture()
    server.python(TRAIN)
    read = server.python(READ)
    assert read["names"] == ["model-t1:v2", "model-t1:v1", "model-t1:v0"] and read["steps"] == [20, 10, 0]
    assert read["files"] == {"model.safetensors": (bytes([2]) * 5000).hex(), "config.json": b"{}".hex()}
    assert read["queries"] == [["q1", 1.0], ["q2", 0.5]]
    assert read["types"] == ["model", "run_table"] and read["collections"] == ["model-t1"]
    assert read["used_by"] == ["e1"] and read["author"] == "t1"
    assert read["rows"] == [1, 1 / 2, 1 / 3] and read["runs"] == ["t1"]
    assert read["state"] == "finished" and read["best"] == 3
    assert read["missing"] == ["CommError", "ValueError"]

    run = server.run("t1")
    assert (run.name, run.group, run.job_type, run.tags) == ("trainer", "g", "train", ["a", "b"])
    assert run.config == {"lr": 0.1} and run.step_metrics["val/*"] == "train/global_step"
    assert run.history("val/mrr", "train/global_step") == [{"val/mrr": n, "train/global_step": n * 10} for n in range(3)]
    assert run.summary["best"] == 3 and run.record.alerts[0]["title"] == "title"
    versions = server.artifacts(type="model")
    assert [view.aliases for view in versions][:2] == [["checkpoint_global_step_0"], ["checkpoint_global_step_10"]]
    assert sorted(versions[2].aliases) == ["checkpoint_global_step_20", "latest"]
    assert [view.metadata for view in versions] == [{"train/global_step": n * 10} for n in range(3)]
    assert versions[1].bytes("model.safetensors") == bytes([1]) * 5000
    assert [view.used_by for view in versions] == [[], ["e1"], []] and versions[1].logged_by == "t1"
    assert server.bytes_downloaded(versions[2]) == 5002 and server.bytes_downloaded(versions[1]) == 0


def test_every_byte_but_the_credentials_is_captured(server: ServerHandle) -> None:
    server.capture()
    server.python(LOG.replace('"lr": 1', '"note": "needle-in-config"'))
    captured = server.captured()
    assert b"needle-in-config" in captured and bytes(range(200)) in captured
    assert KEY.encode() not in captured
    authorized = {entry.route: entry.authorized for entry in server.requests()}
    assert authorized == {"graphql": True, "file_stream": True, "upload": False}
    assert all("authorization" not in entry.headers for entry in server.requests())


def test_a_resumed_run_keeps_its_rows_and_appends(server: ServerHandle) -> None:
    assert server.python(RESUME, {"PART": "1"}) == [0, ["UsageError", "UsageError"]]
    assert server.python(RESUME, {"PART": "2"}) == [3, ["UsageError", "UsageError"]]
    run = server.run("r")
    assert run.history("_step", "loss") == [{"_step": n, "loss": n % 3} for n in range(6)]
    assert run.config == {"part": 2} and run.tags == ["x"] and run.state == "finished"


def test_versions_are_edited_linked_and_recognised_by_content(server: ServerHandle) -> None:
    version, aliases, metadata, source, problem = server.python(EDIT)
    assert version == "v0" and {"again", "latest"} <= set(aliases) and metadata == {"n": "one"}
    assert source == "model:v1" and "aliases" in problem
    assert [view.name for view in server.artifacts()] == ["model:v0", "model:v1"]
    second = server.artifact("model:best")
    assert second.aliases == ["best"] and second.metadata == {"n": "two", "score": 1}
    assert set(second.links["tester/p/shelf"]) == {"prod", "latest"}
    code = "import wandb; wandb.Api().artifact('tester/p/model:best').delete(delete_aliases=True)"
    server.python(code)
    assert [view.name for view in server.artifacts()] == ["model:v0"]


def test_the_sdk_recovers_from_passing_failures(server: ServerHandle) -> None:
    server.fault("drop", operation="UpsertBucket", carry_out=True)
    server.fault("status", status=429, retry_after_s=1, operation="CreateArtifact")
    server.fault("status", status=503, route="file_stream")
    server.fault("status", status=503, route="file")
    server.fault("slow", route="file", bytes_per_s=100_000)
    code = """
import json, wandb
path = wandb.Api().artifact("tester/p/model:v0").download(root="x", skip_cache=True)
print(json.dumps(open(path + "/weights", "rb").read().hex()))
"""
    content = server.python(LOG + code, QUICK)
    assert content == (bytes(range(200)) * 100).hex()
    assert server.run("t").history("_step", "loss") == [{"_step": n, "loss": n} for n in range(4)]
    assert len(server.artifacts()) == 1 and server.faults_met() == 5


def test_downloads_are_damaged_as_asked(server: ServerHandle) -> None:
    server.python(LOG)
    artifact = server.artifact("model:v0")
    for action in ("truncate", "flip", "cut"):
        server.fault(action, route="file")
    server.fault("status", route="file", status=403)
    server.fault("status", route="manifest", status=403, skip=4)
    truncated, flipped, cut, expired, manifest = server.python(DAMAGED)
    good = bytes(range(200)) * 100
    assert bytes.fromhex(truncated) == good[:10000]
    spoilt = bytes.fromhex(flipped)
    assert len(spoilt) == len(good) and [n for n in range(len(good)) if spoilt[n] != good[n]] == [10000]
    assert (cut, manifest) == ("ChunkedEncodingError", "HTTPError")
    assert bytes.fromhex(expired) == good and [e.route for e in server.downloads(artifact)][-1] == "artifacts_v2"

    server.purge(artifact, "weights")
    gone = "import json, wandb; api = wandb.Api(); version = api.artifact('tester/p/model:v0')\ntry:\n    version.download()\n"
    gone += "except Exception as problem:\n    print(json.dumps(type(problem).__name__))"
    assert server.python(gone) == "HTTPError"
    server.delete_version(artifact)
    assert server.artifacts() == []


def test_a_rejected_key_is_refused_at_once(server: ServerHandle) -> None:
    server.reject_key(KEY)
    assert server.python(REJECTED) == ["AuthenticationError", "CommError"]
    assert {entry.status for entry in server.requests()} == {401} and server.runs() == []


def test_a_server_killed_and_started_again_loses_nothing(server: ServerHandle) -> None:
    process = server.start_python(OUTAGE, QUICK)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "logged\n"
    wait_for(lambda: len(server.artifacts()) == 1 and len(server.run("t").history()) == 3)
    assert process.stdout.readline() == "uploaded\n"  # before that the client waits for the server, and nobody would start it
    server.kill()
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "logged\n"
    server.start()
    _, problems = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, problems
    run = server.run("t")
    assert run.history("_step", "loss") == [{"_step": n, "loss": n} for n in range(6)] and run.state == "finished"
    assert [view.bytes("weights") for view in server.artifacts()] == [b"0", b"1"]


def test_an_offline_run_that_is_synced_has_the_history_of_an_online_one(server: ServerHandle) -> None:
    server.python(LOG, {"RUN_NAME": "online"})
    before = len(server.requests())
    offline = {"RUN_NAME": "offline", "WANDB_MODE": "offline"}
    server.python(LOG + "del os.environ['WANDB_MODE']\n" + SYNC, offline)
    assert len(server.requests()) > before
    runs = [server.run(name) for name in ("online", "offline")]
    times = ("_timestamp", "_runtime")
    rows = [[{k: v for k, v in row.items() if k not in times} for row in run.history()] for run in runs]
    assert rows[0] == rows[1] == [{"_step": n, "loss": n} for n in range(4)]
    assert runs[0].config == runs[1].config == {"lr": 1}


def test_writers_in_shared_mode_do_not_overwrite_each_other(server: ServerHandle) -> None:
    process = server.start_python(SHARED, {"PART": "first"})
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    server.python(SHARED, {"PART": "second"})
    assert server.run("s").state == "running"
    process.communicate("go on\n", timeout=LIMIT_S)
    run = server.run("s")
    assert [row["_step"] for row in run.history()] == list(range(6)) and run.state == "finished"
    assert run.history("first") == [{"first": n} for n in range(3)] and run.history("second") == [
        {"second": n} for n in range(3)
    ]
    assert run.config == {"first": 1, "second": 1} and run.summary["first"] == run.summary["second"] == 2
