"""A training logs checkpoints, a watcher follows: two processes, the real SDK, and what the server has in the end."""

from tests.scenario.training import STEPS, TRAINER_FILES, TRAINER_KEY, WANTED, Undisturbed
from tests.wandb_server.fixture import KEY


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
