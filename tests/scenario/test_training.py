"""A training logs checkpoints, a watcher follows: two processes, the real SDK, and what the server has in the end.

Undisturbed; then with everything that can go wrong with the server while the watcher looks, downloads, logs and finishes, all
of it met by one watcher; then with a watcher that dies ten times along the way, each time at a moment that the server chooses.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.scenario.held import held
from tests.scenario.training import NUM_CHECKPOINTS, STEPS, TRAINER_FILES, TRAINER_KEY, WANTED, Training, Undisturbed, Watcher
from tests.wandb_server.fixture import KEY, ServerHandle

Trouble = dict[str, Any]
LOOK: Trouble = {"operation": "VersionsOfCollection"}
MANIFEST: Trouble = {"route": "manifest"}
FILE: Trouble = {"route": "file"}
ROWS: Trouble = {"route": "file_stream", "key": KEY}
REPORT: Trouble = {"operation": "CreateArtifact", "contains": "validation"}
REPORT_FILE: Trouble = {"route": "upload", "contains": "validation.json"}
COMMIT: Trouble = {"operation": "CommitArtifact", "key": KEY}
LAST_WORDS: Trouble = {"route": "file_stream", "key": KEY, "contains": '"complete":true'}
SUMMARY: Trouble = {"route": "upload", "contains": "wandb-summary.json"}
READ_BACK: Trouble = {"operation": "HistoryPage"}


def each(action: str, *places: Trouble, **settings: Any) -> list[Trouble]:
    return [{"action": action, **settings, **place} for place in places]


LOST: Trouble = {"action": "drop", "carry_out": True}  # it was heard, but nobody knows
PER_VERSION: Sequence[Sequence[Trouble]] = [
    each("status", LOOK, FILE, {"operation": "UpsertBucket", "key": KEY}, ROWS, REPORT, REPORT_FILE, status=503),
    each("status", LOOK, FILE, ROWS, COMMIT, status=429, retry_after_s=1),
    [*each("drop", LOOK, {"operation": "FilesOfVersion"}), *each("cut", FILE)]
    + [LOST | place for place in (ROWS, {"operation": "UseArtifact"}, COMMIT)],
    each("slow", LOOK, {**FILE, "contains": "model.safetensors", "bytes_per_s": 30_000}, ROWS, REPORT)
    + each("status", MANIFEST, FILE, REPORT_FILE, status=403),  # expired URLs
    each("truncate", LOOK, MANIFEST, {**MANIFEST, "skip": 2}, FILE, ROWS, REPORT)
    # In an answer of the API only a byte that makes it unreadable can be noticed: nothing there has a digest.
    + each("flip", MANIFEST, {**MANIFEST, "skip": 1}, FILE)
    + each("flip", {**LOOK, "skip": 1}, {**ROWS, "skip": 1}, REPORT, share=0),
]
AT_THE_END = [
    *each("status", LAST_WORDS, SUMMARY, READ_BACK, status=503),
    *each("status", LAST_WORDS, status=429, retry_after_s=1),
    LOST | LAST_WORDS,
    *each("drop", {"operation": "CreateRunFiles", "key": KEY}),
    *each("truncate", READ_BACK),
    *each("flip", READ_BACK, share=0),
    *each("slow", READ_BACK, bytes_per_s=10_000),
]
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


def test_every_version_is_validated_once_and_stands_at_its_step(undisturbed: Undisturbed) -> None:
    reports = undisturbed.watcher.reports
    found = [(r["status"], r["checkpoint"]["version"], r["checkpoint"]["step"], r["attempts"]) for r in reports]
    assert found == [("done", f"v{n}", step, 1) for n, step in enumerate(STEPS)]
    (run,) = undisturbed.held["validation"]
    values = {r["checkpoint"]["step"]: r["metrics"]["mrr@10"]["value"] for r in reports}
    assert {row["train/global_step"]: row["val/collection/mrr@10"] for row in run["rows"]} == values
    assert len(run["rows"]) == len(STEPS) and len(set(values.values())) > 3
    assert run["best"]["val/collection/mrr@10"] == {"max": max(values.values())}
    assert (run["group"], run["state"], run["axes"]["val/*"]) == ("tas-b", "finished", "train/global_step")
    assert [row["step"] for row in run["table"]] == STEPS


def test_only_what_encoding_needs_is_downloaded_and_once(undisturbed: Undisturbed) -> None:
    for version in undisturbed.server.artifacts(type="model"):
        sizes = version.files
        assert set(sizes) >= {*TRAINER_FILES, *WANTED}
        asked = [entry.file for entry in undisturbed.server.downloads(version)]
        assert sorted(asked) == sorted(WANTED)
        needed = sum(sizes[name] for name in WANTED)
        assert undisturbed.server.bytes_downloaded(version) == needed < sum(sizes.values()) / 2


def test_lineage_leads_from_model_data_and_sample_to_each_report(undisturbed: Undisturbed) -> None:
    (run,) = undisturbed.held["validation"]
    assert [used_by for *_, used_by in undisturbed.held["models"]] == [[run["id"]]] * len(STEPS)
    assert {name.rpartition(":")[0] for name in undisturbed.held["inputs"]} == {
        "dataset-collection",
        "sample-collection-random",
    }
    assert all(used_by == [run["id"]] for _, used_by, _ in undisturbed.held["inputs"].values())
    logged = [(aliases, content["checkpoint"]["step"]) for aliases, content in undisturbed.held["reports"]]
    assert sorted(logged) == sorted(([f"step-{step}"], step) for step in STEPS)
    assert {view.logged_by for view in undisturbed.server.artifacts(type="validation")} == {run["id"]}


def test_the_training_run_keeps_what_it_wrote_and_gets_nothing(undisturbed: Undisturbed) -> None:
    (run,) = undisturbed.held["training"]
    assert undisturbed.held["training"] == undisturbed.trained
    assert run["history"] == [{"train/loss": 1 / step, "train/global_step": step} for step in STEPS]
    assert undisturbed.server.run("t1").summary["train/loss"] == 1 / STEPS[-1]
    assert (run["config"], run["summary"]) == ({"lr": {"value": 0.1}}, ["train/global_step", "train/loss"])
    assert (run["name"], run["tags"], run["state"]) == ("t1", ["a"], "finished")
    aliases = [(name, given) for name, given, *_ in undisturbed.held["models"]]
    assert aliases == [(f"model-t1:v{n}", [f"checkpoint_global_step_{step}"]) for n, step in enumerate(STEPS)]


def test_no_key_is_in_any_file_or_in_any_byte_but_the_credentials(undisturbed: Undisturbed) -> None:
    server, watcher = undisturbed.server, undisturbed.watcher
    written = [path for root in (watcher.folder, server.folder) for path in root.rglob("*") if path.is_file()]
    assert {"ledger.db", "watcher.log", "capture.bin", "requests.jsonl"} <= {path.name for path in written}
    for key in (KEY.encode(), TRAINER_KEY.encode()):
        assert not [path for path in written if key in path.read_bytes()]
    assert b"mrr@10" in server.captured()  # every byte of every request, but the values of Authorization headers
    assert not [entry for entry in server.requests() if entry.route in ("file", "manifest", "upload") and entry.authorized]
    assert "Traceback" not in watcher.said
    warnings = [line for line in watcher.said.splitlines() if " WARNING " in line]
    assert len(warnings) == 1 and " sampler.fraction=0.5 leaves 12 documents " in warnings[0]  # the collection is small


def test_whatever_goes_wrong_the_server_has_the_same_in_the_end(
    undisturbed: Undisturbed, server: ServerHandle, training: Training, watcher: Watcher, trained: list[Path]
) -> None:
    watcher.start()
    for num_reports, troubles in enumerate(PER_VERSION, start=1):
        for trouble in troubles:
            server.fault(**trouble)
        training.log()
        watcher.wait_for_reports(num_reports)
        watcher.wait_for(lambda: not server.faults_left())
    take_the_server_down(server, training, watcher, trained[5])
    delete_and_damage(server, training, watcher)
    training.end()
    for trouble in AT_THE_END:
        server.fault(**trouble)
    assert watcher.stop() == 0, watcher.said
    assert server.faults_left() == []
    assert held(server, STEPS[-1]) == undisturbed.held
    assert_extras(server, watcher)
    assert_log(watcher)


def take_the_server_down(server: ServerHandle, training: Training, watcher: Watcher, folder: Path) -> None:
    """Within the download of the sixth version: the seventh has been fetched by then, and is validated meanwhile."""
    server.fault("hang", operation="CollectionsOfType")  # so that the next look finds three versions
    watcher.wait_for(lambda: not server.faults_left())
    training.log(3)
    server.clear()
    md5 = hashlib.md5((folder / "model.safetensors").read_bytes(), usedforsecurity=False).hexdigest()
    server.fault("hang", route="file", contains=md5)
    copies = watcher.folder / ".dr_validate" / "checkpoints"
    watcher.wait_for(lambda: not server.faults_left() and len(list(copies.glob("manifest-*"))) >= 6)
    server.kill()
    watcher.wait_for_reports(6)
    watcher.wait_for(lambda: "cannot be reached" in watcher.said)
    server.start()
    watcher.wait_for_reports(8)
    first, *others = [report["checkpoint"]["version"] for report in watcher.reports][5:]
    assert first == "v6" and sorted(others) == ["v5", "v7"]  # v5 has a pause of its own, which may end after v7 has come


def delete_and_damage(server: ServerHandle, training: Training, watcher: Watcher) -> None:
    """Versions that the undisturbed run does not have: what became of them is said."""
    server.fault("delete", operation="FactsOfVersion", artifact="model-t1:v8")  # listed, and gone before the first look at it
    training.log()
    watcher.wait_for_reports(len(STEPS) + 1)
    watcher.wait_for(lambda: not server.faults_left())
    troubles: list[Trouble] = [
        {"action": "delete", "operation": "PinnedVersion", "contains": "v9", "artifact": "model-t1:v9"},
        {"action": "flip", "route": "file", "contains": "model.safetensors", "times": 3},
        {"action": "delete", "operation": "ArtifactMembershipByName", "contains": "model-t1:v11", "artifact": "model-t1:v11"},
    ]
    for num_reports, trouble in enumerate(troubles, start=len(STEPS) + 2):
        server.fault(**trouble)
        training.log()
        watcher.wait_for_reports(num_reports)
        watcher.wait_for(lambda: not server.faults_left())


def assert_extras(server: ServerHandle, watcher: Watcher) -> None:
    brief, deleted, damaged, unlinked = watcher.reports[len(STEPS) :]
    assert (brief["status"], brief["checkpoint"]["version"]) == ("skipped", "model-t1:v8") and "deleted" in brief["error"]
    assert (deleted["status"], deleted["checkpoint"]["version"]) == ("skipped", "v9") and "deleted" in deleted["error"]
    assert (damaged["status"], damaged["checkpoint"]["version"]) == ("failed", "v10")
    assert "model.safetensors: bytes differ from the manifest, 3 times" in damaged["error"]
    copies = (watcher.folder / ".dr_validate" / "checkpoints").glob("*")
    assert not [path for path in copies if damaged["checkpoint"]["digest"].partition(":")[2] in path.name]  # never loaded
    assert (unlinked["status"], unlinked["checkpoint"]["version"]) == ("done", "v11")
    (run,) = [run for run in server.runs() if run.job_type == "validate"]
    rows = run.history("train/global_step", "status/skipped") + run.history("train/global_step", "status/failed")
    assert [row["train/global_step"] for row in rows] == [900, 1000, 1100]
    reported = [view.metadata["step"] for view in server.artifacts(type="validation")]
    assert sorted(reported) == [*STEPS, 900, 1000, 1100, 1200]


def assert_log(watcher: Watcher) -> None:
    """A line per outage, with what it is and that it costs nothing; no key, no traceback."""
    said = watcher.said
    assert KEY not in said and "Traceback" not in said
    lines = [line.split(maxsplit=3) for line in said.splitlines() if " WARNING " in line or " ERROR " in line]
    told = [text for *_, text in lines if not text.startswith("sampler.fraction=")]  # the collection is small
    assert len([text for text in told if text.startswith("source:") and "trying again in" in text]) == 1, said
    assert said.count("source: in reach again") == 1
    trackers = [text for text in told if text.startswith("tracker wandb:")]
    assert all(text.endswith("the reports are kept and delivered later") for text in trackers)
    assert 3 <= len(trackers) <= 8, trackers
    again = [text for text in told if text.endswith("fetching it again")]
    assert len(again) == 2 + 3
    failed = [text for text in told if text.startswith("failed model-t1:v10")]
    assert len(failed) == 1 and len(told) == 1 + len(trackers) + len(again) + len(failed), told


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
