"""Everything that can go wrong with the server, while the watcher looks, downloads, logs and finishes; then what it has.

One watcher meets all of it, each version of the model another part.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.scenario.held import held
from tests.scenario.training import STEPS, Training, Undisturbed, Watcher
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
