"""Checkpoints in W&B: the real SDK logs them through the loopback server, the source lists and fetches them."""

import errno
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from safetensors.numpy import save_file

from dr_validate.errors import CheckpointDeleted, CheckpointError, Outage, SetupError, Stopped
from dr_validate.files import check_interrupt, interruptible
from dr_validate.source.wandb import WandbSource
from dr_validate.source.wandb_client import api as wandb_api
from dr_validate.source.wandb_client import http as wandb_http
from dr_validate.source.wandb_client.project import Connection, Project
from dr_validate.source.wandb_client.versions import Version, version_of
from dr_validate.values import Checkpoint, Incomplete, Listing
from tests.factories import built
from tests.wandb_server.fixture import KEY, NO_PROXY, ServerHandle, start_server
from tests.watcher.polled import polled

LOG = """
import json, os, wandb
for name, plan in json.loads(os.environ["PLAN"]).items():
    with wandb.init(project="p", id=name, name=f"name of {name}", group=plan["group"]) as run:
        for part in plan["versions"]:
            version = wandb.Artifact(part["collection"], part.get("type", "model"), metadata=part.get("metadata"))
            if "folder" in part:
                version.add_dir(part["folder"])
            if "reference" in part:
                version.add_reference(part["reference"], name=part["name"])
            run.log_artifact(version, aliases=part.get("aliases"), tags=part.get("tags")).wait()
"""
TRAINER_FILES = {name: "a pickle of the trainer" * 500 for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")}
WANTED = {"config.json", "tokenizer.json", "model.safetensors"}


class Logged(NamedTuple):
    """The server that holds what the trainings logged, and the folders that they logged."""

    server: ServerHandle
    root: Path


def write(folder: Path, seed: int = 0, files: Mapping[str, str] | None = None) -> str:
    """A folder as the Hugging Face Trainer leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer.json").write_text("{}")
    save_file({"w": np.full(1000, seed, np.float32)}, folder / "model.safetensors")
    for name, text in {**TRAINER_FILES, "training_args.bin": "x", "trainer_state.json": "{}", **(files or {})}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


def odd_folders(root: Path) -> dict[str, str]:
    """What real trainers upload besides checkpoints."""
    plain = {name: write(root / name, 9) for name in ("final", "pooling", "pickled", "tevatron", "escaping")}
    (root / "final" / "config.json").unlink()
    (root / "pooling" / "modules.json").write_text("[]")
    (root / "pickled" / "model.safetensors").rename(root / "pickled" / "pytorch_model.bin")
    (root / "tevatron" / "tokenizer.json").unlink()
    return plain


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    root = tmp_path_factory.mktemp("trainings")
    step = "train/global_step"
    t1: list[dict[str, Any]] = [
        {"metadata": {step: 20.0, "global_step": 7}, "aliases": ["checkpoint_global_step_20", "best"]},
        {"metadata": {"global_step": 10}, "tags": ["kept"]},
        {"aliases": ["checkpoint_global_step_30"]},
        {"metadata": {step: None, "step": True}},
    ]
    plan: dict[str, Any] = {"t1": {"group": "g", "versions": []}, "t2": {"group": None, "versions": []}}
    for n, part in enumerate(t1):
        plan["t1"]["versions"].append({"collection": "model-t1", "folder": write(root / f"t1-{n}", n), **part})
    for n, note in enumerate(("one", "another")):
        folder = write(root / f"t2-{n}", 1, {"README.md": note, "optimizer.pt": note})
        plan["t2"]["versions"].append({"collection": "model-t2", "folder": folder, "metadata": {"step": n, "lr": 0.1 * n}})
    odd = [{"collection": f"odd-{name}", "folder": folder} for name, folder in odd_folders(root).items()]
    reference = {"collection": "odd-reference", "reference": (root / "t1-0" / "model.safetensors").as_uri()}
    odd.append({**reference, "name": "model.safetensors", "folder": odd[0]["folder"]})
    odd[-1]["folder"] = str(shutil.copytree(root / "t1-0", root / "reference", ignore=shutil.ignore_patterns("*.safetensors")))
    plan["odd"] = {"group": None, "versions": odd}
    plan["data"] = {"group": None, "versions": [{"collection": "data", "type": "dataset", "folder": odd[0]["folder"]}]}
    with start_server(root / "server") as server:
        server.python(LOG, {"PLAN": json.dumps(plan)})
        yield Logged(server, root)


@pytest.fixture(scope="module", autouse=True)
def sdk() -> Iterator[None]:
    """The SDK reads its settings once in a process: other tests must not meet ours."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerHandle]:
    for name, value in logged.server.environment().items():
        if name.startswith("WANDB_") or name == "NO_PROXY":
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setattr(wandb_http, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(wandb_api, "RETRY_WAIT_S", 0.0)
    yield logged.server
    logged.server.clear()


class Watched:
    """A source and its state_dir; folders to fetch into."""

    def __init__(self, root: Path, **options: Any) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.state_dir = root, root / "state"
        patient = {"timeout_s": 600, "api_timeout_s": 600}  # a busy machine is no outage
        self.source = WandbSource(**{"project": "p", "artifact": "model-*", **patient, **options})

    def list(self) -> Listing:
        return self.source.list(self.state_dir)

    def names(self) -> "tuple[str, ...]":
        return tuple(f"{one.name}:{one.version}" for one in self.list().checkpoints)

    def checkpoint(self, name: str) -> Checkpoint:
        return next(one for one in self.list().checkpoints if f"{one.name}:{one.version}" == name)

    def incomplete(self) -> "dict[str, Incomplete]":
        return {one.name: one for one in self.list().incomplete}

    def fetch(self, checkpoint: Checkpoint) -> Path:
        into = self.root / f"fetched-{len(list(self.root.glob('fetched-*')))}"
        into.mkdir()
        self.source.fetch(checkpoint, into)
        return into


@pytest.fixture
def watched(server: ServerHandle, tmp_path: Path) -> Callable[..., Watched]:
    return lambda **options: Watched(tmp_path, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one(watched: Callable[..., Watched], **options: Any) -> tuple[Watched, Checkpoint]:
    """A source, and one of its checkpoints."""
    made = watched(artifact="model-t1", **options)
    return made, made.checkpoint("model-t1:v0")


def test_versions_are_pinned_and_ordered_by_the_training_step(watched: Callable[..., Watched]) -> None:
    found = watched(artifact="model-t1").list().checkpoints
    assert [(c.name, c.version, c.step, c.step_from) for c in found] == [
        ("model-t1", "v3", 3, "version number"),
        ("model-t1", "v1", 10, "metadata global_step"),
        ("model-t1", "v0", 20, "alias checkpoint_global_step_N"),
        ("model-t1", "v2", 30, "alias checkpoint_global_step_N"),
    ]
    assert {(c.training_run, c.group) for c in found} == {("t1", "g")}
    assert found[1].uri == "wandb-artifact://tester/p/model-t1:v1"
    assert all(c.digest.startswith("manifest:") and len(c.digest) == 73 and c.created_at.endswith("Z") for c in found)


def version(metadata: Mapping[str, Any], *aliases: str) -> Version:
    node = {"id": "x", "createdAt": "2026-11-21T03:12:00", "metadata": json.dumps(metadata)}
    return version_of({**node, "aliases": [{"alias": alias} for alias in aliases]}, "model", 7)


@pytest.mark.parametrize(
    ("metadata", "named", "expected"),
    [
        ({"train/global_step": 500}, [600], (600, "alias checkpoint_global_step_N")),
        ({"train/global_step": 500}, [100, 2000, 900], (2000, "alias checkpoint_global_step_N")),
        ({}, [9, 80], (80, "alias checkpoint_global_step_N")),
        ({"train/global_step": 600}, [600, 900], (600, "alias checkpoint_global_step_N")),
        ({"train/global_step": 500}, [], (500, "metadata train/global_step")),
        ({"global_step": 1.5}, [], (7, "version number")),
    ],
    ids=["alias-first", "largest", "largest-alone", "told-by-metadata", "metadata", "number"],
)
def test_the_alias_of_the_trainer_comes_before_the_step_that_was_logged_last(
    metadata: Mapping[str, Any], named: list[int], expected: tuple[int, str]
) -> None:
    aliases = ["latest", *(f"checkpoint_global_step_{step}" for step in named), "checkpoint_global_step_x", "epoch_0.5"]
    assert version(metadata, *aliases).step == expected


TRAINER = """
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
model = BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=8))
rows = [{"input_ids": torch.tensor([1, 2, n % 9]), "labels": n % 2} for n in range(64)]
often = dict(save_steps=2, logging_steps=5, max_steps=8, per_device_train_batch_size=1)
plain = dict(report_to="wandb", use_cpu=True, disable_tqdm=True, run_name="real")
Trainer(model=model, args=TrainingArguments("out", **often, **plain), train_dataset=rows).train()
print(0)
"""


@pytest.mark.slow
def test_checkpoints_of_the_real_trainer_have_the_steps_at_which_it_saved(
    watched: Callable[..., Watched], server: ServerHandle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.python(TRAINER, {"WANDB_PROJECT": "real", "WANDB_LOG_MODEL": "checkpoint", "OMP_NUM_THREADS": "1"})
    made = watched(project="real", artifact=None)
    found = {label(one): one for one in made.list().checkpoints}
    views = {name: server.artifact(name) for name in found}
    saved = {one.step: name for name, one in found.items() if "final_model" not in views[name].aliases}
    assert sorted(saved) == [2, 4, 6, 8]
    assert {found[name].step_from for name in saved.values()} == {"alias checkpoint_global_step_N"}
    logged = {step: views[name].metadata.get("train/global_step") for step, name in saved.items()}
    assert logged == {2: None, 4: None, 6: 5, 8: 5}
    made.list()
    assert sorted(line for line in caplog.messages if "is of step" in line) == [
        f"{saved[step]} is of step {step} (alias checkpoint_global_step_N); its metadata train/global_step is the last one "
        "logged, 5"
        for step in (6, 8)
    ]


def label(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.name}:{checkpoint.version}"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"artifact": "*t2"}, {"model-t2:v0", "model-t2:v1"}),
        ({"artifact": None, "run": "t2"}, {"model-t2:v0", "model-t2:v1"}),
        ({"run": "t1", "artifact": "model-t2"}, set()),
        ({"aliases": ["best", "latest"]}, {"model-t1:v0", "model-t1:v3", "model-t2:v1"}),
        ({"tags": ["kept", "other"]}, {"model-t1:v1"}),
        ({"metadata": {"step": 1, "lr": 0.1}}, {"model-t2:v1"}),
        ({"metadata": {"train/global_step": None}}, {"model-t1:v3"}),
        ({"since": "2999-01-01T00:00:00Z"}, set()),
        ({"since": "2020-01-01", "artifact": "model-t2"}, {"model-t2:v0", "model-t2:v1"}),
        ({"artifact": "not-yet"}, set()),
    ],
    ids=["glob", "run", "run-and-artifact", "aliases", "tags", "metadata", "null-metadata", "future", "past", "not-yet"],
)
def test_filters_leave_what_was_asked_for(
    watched: Callable[..., Watched], options: Mapping[str, Any], expected: set[str]
) -> None:
    assert set(watched(**options).names()) == expected


def test_a_run_without_a_group_lends_its_name(watched: Callable[..., Watched]) -> None:
    assert {(c.training_run, c.group) for c in watched(run="t2").list().checkpoints} == {("t2", "name of t2")}
    names = [watched(run="t2"), watched(artifact="model-t1"), watched(artifact=None)]
    assert [made.source.training_run for made in names] == ["t2", "model-t1", "p"]


def test_equal_weights_have_equal_digests_whatever_lies_beside_them(watched: Callable[..., Watched]) -> None:
    found = watched(artifact="model-*").list().checkpoints
    digests = {f"{c.name}:{c.version}": c.digest for c in found}
    assert digests["model-t2:v0"] == digests["model-t2:v1"] == digests["model-t1:v1"]
    assert len(set(digests.values())) == 4


def test_odd_versions_are_named_with_what_to_use_instead(watched: Callable[..., Watched]) -> None:
    made = watched(artifact="odd-*")
    found = made.incomplete()
    assert all(part.final for part in found.values())
    said = {name: part.lacks for name, part in found.items()}
    assert "bare state dict" in said["odd-final:v0"] and "checkpoint_global_step_N" in said["odd-final:v0"]
    assert "1_Pooling/" in said["odd-pooling:v0"] and "checkpoint_global_step_N" in said["odd-pooling:v0"]
    assert "pytorch_model.bin" in said["odd-pickled:v0"] and "pickle" in said["odd-pickled:v0"]
    assert "only http and https" in said["odd-reference:v0"] and "log the files themselves" in said["odd-reference:v0"]
    assert set(made.names()) == {"odd-tevatron:v0", "odd-escaping:v0"}
    assert found["odd-final:v0"].uri == "wandb-artifact://tester/p/odd-final:v0"
    assert "only http and https" in watched(artifact="odd-*", allow_references=True).incomplete()["odd-reference:v0"].lacks


def test_a_bare_state_dict_is_a_checkpoint_where_the_encoder_is_given_a_config(
    watched: Callable[..., Watched], logged: Logged
) -> None:
    made = watched(artifact="odd-final")
    assert "encoder.config, encoder.tokenizer and encoder.weights_prefix" in made.incomplete()["odd-final:v0"].lacks
    stated = ["source=wandb", "source.project=p", "source.artifact=odd-final", "dataset=pydoc"]
    stated += [f"encoder.config={logged.root / 't1-0'}"]
    made.source = cast(WandbSource, built(*stated).source)  # on what was remembered of the version before
    assert set(contents(made.fetch(made.checkpoint("odd-final:v0")))) == WANTED - {"config.json"}


def test_a_version_that_is_too_big_is_skipped_unless_the_limit_is_raised(watched: Callable[..., Watched]) -> None:
    assert "more than source.max_gib=1e-06" in watched(artifact="model-t2", max_gib=1e-6).incomplete()["model-t2:v0"].lacks
    assert len(watched(artifact="model-t2").names()) == 2


@pytest.mark.parametrize("path", ["/etc/config.json", "../config.json", "a/../../config.json", "C:/config.json", "a\\b.json"])
def test_a_path_that_leaves_the_folder_makes_a_version_unusable(
    watched: Callable[..., Watched], server: ServerHandle, path: str
) -> None:
    made = watched(artifact="odd-escaping")
    checkpoint = made.checkpoint("odd-escaping:v0")
    manifest = manifest_of(server, "odd-escaping:v0")
    before = manifest.read_text()
    document = json.loads(before)
    document["contents"][path] = document["contents"]["config.json"]
    manifest.write_text(json.dumps(document))
    try:
        with pytest.raises(CheckpointError, match="no path inside a folder"):
            made.fetch(checkpoint)
        assert list(made.root.glob("fetched-*/*")) == []
        shutil.rmtree(made.state_dir)
        assert "no path inside a folder" in watched(artifact="odd-escaping").incomplete()["odd-escaping:v0"].lacks
    finally:
        manifest.write_text(before)


def manifest_of(server: ServerHandle, name: str) -> Path:
    from tests.wandb_server.artifact_nodes import manifest_blob
    from tests.wandb_server.records import Artifact, Manifest

    store = server.store()
    record = store.by_id(Artifact, server.artifact(name).id)
    assert record is not None
    manifest = store.get(Manifest, record.manifest)
    assert manifest is not None
    return store.blob(manifest_blob(manifest))


def test_only_what_encoding_needs_is_downloaded(watched: Callable[..., Watched], server: ServerHandle, logged: Logged) -> None:
    made = watched(artifact="model-t1")
    before = len(server.requests())
    into = made.fetch(made.checkpoint("model-t1:v2"))
    assert contents(into) == {name: (logged.root / "t1-2" / name).read_bytes() for name in WANTED}
    assert {e.file for e in server.requests()[before:] if e.route == "file"} == WANTED
    assert server.bytes_downloaded(server.artifact("model-t1:v2")) == sum(map(len, contents(into).values()))


def test_the_cache_of_the_sdk_does_not_grow(watched: Callable[..., Watched]) -> None:
    folders = [Path(os.environ[f"WANDB_{name}DIR"]) for name in ("CACHE_", "DATA_", "")]
    made, checkpoint = one(watched)
    made.fetch(checkpoint)
    big = (made.root / "fetched-0" / "model.safetensors").stat().st_size
    assert not [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= big]
    assert big > 4000


def test_a_second_look_asks_for_no_manifest_in_a_new_process_either(
    watched: Callable[..., Watched], server: ServerHandle
) -> None:
    first = watched().list()
    before = len(server.requests())
    made = watched()
    assert made.list() == first and made.list() == first
    asked = server.requests()[before:]
    assert not [e for e in asked if e.route == "manifest" or e.operation in ("FactsOfVersion", "NamesOfRun")]
    assert len([e for e in asked if e.operation == "VersionsOfCollection"]) == 4  # two collections, two looks


def test_a_damaged_memory_is_made_again(watched: Callable[..., Watched]) -> None:
    first = watched(artifact="model-t2").list()
    files = list((watched().state_dir / "wandb_versions").rglob("*.json"))
    assert len(files) == 2
    files[0].write_text('{"half')
    files[1].write_text('{"format": 0, "facts": {}}')
    assert watched(artifact="model-t2").list() == first


@pytest.mark.parametrize("action", ["flip", "truncate", "cut"])
def test_a_manifest_that_came_damaged_is_asked_for_again(
    watched: Callable[..., Watched], server: ServerHandle, action: Any
) -> None:
    made = watched(artifact="model-t2")
    server.fault(action, route="manifest")
    checkpoint = made.checkpoint("model-t2:v0")
    server.fault(action, route="manifest")
    assert set(contents(made.fetch(checkpoint))) == WANTED and not server.faults_left()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("surrogate", "UnicodeEncodeError"),
        ("bytes", "its manifest has more than 64 MiB"),
        ("depth", "its metadata cannot be read as JSON (maximum recursion depth"),
    ],
)
def test_whatever_one_version_does_the_others_are_listed(
    watched: Callable[..., Watched], server: ServerHandle, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    manifest = manifest_of(server, "model-t1:v3")
    before = manifest.read_text()
    if fault == "depth":

        def deep(node: Mapping[str, Any], collection: str, number: int) -> Version:
            deep_metadata = {"metadata": "[" * 100_000} if number == 3 else {}
            return version_of({**node, **deep_metadata}, collection, number)

        monkeypatch.setattr("dr_validate.source.wandb_client.project.version_of", deep)
    else:
        surrogate = before.replace("optimizer.pt", "optimizer.\\ud800")
        manifest.write_text(surrogate if fault == "surrogate" else before + " " * (64 << 20))
    try:
        made = watched(artifact="model-t1")
        assert [name[-2:] for name in made.names()] == ["v1", "v0", "v2"]
        asked = len([e for e in server.requests() if e.route == "manifest"])
        (part,) = made.list().incomplete
    finally:
        manifest.write_text(before)
    assert part.final and part.name == "model-t1:v3" and said in part.lacks
    assert len([e for e in server.requests() if e.route == "manifest"]) == asked


def test_a_manifest_out_of_reach_is_an_outage_of_its_version_alone(
    watched: Callable[..., Watched], server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched(artifact="model-t1")
    server.fault("status", route="manifest", path=f"*/{manifest_of(server, 'model-t1:v2').name}", status=500, times=None)
    assert [name[-2:] for name in made.names()] == ["v3", "v1", "v0"]
    (part,) = made.list().incomplete
    assert part.name == "model-t1:v2" and part.is_out_of_reach and not part.final and "HTTP 500" in part.lacks
    server.clear()
    assert [name[-2:] for name in made.names()] == ["v3", "v1", "v0", "v2"]
    server.fault("status", route="manifest", status=429, retry_after_s=3000, times=None)
    made = Watched(made.root / "another", artifact="model-t1")
    for _ in range(2):
        before = len(server.requests())
        with pytest.raises(Outage, match="of no version the manifest can be fetched"):
            made.list()
    assert not [e for e in server.requests()[before:] if e.route == "manifest"]  # not before the time that it asked for
    server.clear()
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3000)
    assert len(made.names()) == 4


def test_a_file_out_of_reach_is_an_outage_of_its_version_alone(
    watched: Callable[..., Watched], server: ServerHandle, logged: Logged
) -> None:
    made = watched(artifact="model-t1")
    newest = hashlib.md5((logged.root / "t1-2" / "model.safetensors").read_bytes()).hexdigest()
    server.fault("status", route="file", path=f"*{newest}*", status=500, times=None)
    with polled(made.state_dir, made.source) as run:
        run.until(lambda: sorted(run.copies()) == [3, 10, 20])
        broken = next(one for one in run.poller.listing.checkpoints if one.step == 30)
        run.until(lambda: not run.poller.is_fetching)
        assert not run.poller.is_out_of_reach and not run.poller.has_failed and not run.poller.is_ready(broken)
        server.clear()
        run.until(lambda: sorted(run.copies()) == [3, 10, 20, 30])


def test_every_reference_of_a_version_is_judged(watched: Callable[..., Watched], server: ServerHandle) -> None:
    manifest = manifest_of(server, "odd-reference:v0")
    before = manifest.read_text()
    document = json.loads(before)
    document["contents"]["config.json"]["ref"] = "https://user:sesame@store.org/config.json"  # before that of the weights
    try:
        for place, said in (("gs://bucket/weights", "gs://bucket/weights"), ("HTTPS://store.org/w", None)):
            document["contents"]["model.safetensors"]["ref"] = place
            manifest.write_text(json.dumps(document))
            made = Watched(watched().root / place[:2], artifact="odd-reference", allow_references=True)
            lacks = [part.lacks for part in made.list().incomplete]
            if said is None:
                assert not lacks and made.names() == ("odd-reference:v0",)
            else:
                assert len(lacks) == 1 and said in lacks[0] and "log the files themselves" in lacks[0]
        lacks = [part.lacks for part in watched(artifact="odd-reference").list().incomplete]
        assert "https://store.org/config.json" in lacks[0] and "set source.allow_references=true" in lacks[0]
        assert "sesame" not in lacks[0]
    finally:
        manifest.write_text(before)


def test_what_looks_at_versions_never_holds_up_the_end_of_the_process_and_stops_when_told_to() -> None:
    connection = Connection(timeout_s=600, api_timeout_s=600)
    versions = [version({}) for _ in range(20)]
    assert all(connection.each(lambda _: threading.current_thread().daemon, versions))

    def stop() -> None:
        raise Stopped("the run ends")

    with pytest.raises(Stopped), interruptible(stop):
        connection.each(lambda _: check_interrupt(), versions)


def test_a_manifest_that_stays_damaged_is_not_remembered(watched: Callable[..., Watched], server: ServerHandle) -> None:
    made = watched(artifact="odd-tevatron")
    server.fault("flip", route="manifest", times=None)
    assert "its manifest has no contents" in made.incomplete()["odd-tevatron:v0"].lacks
    server.clear()
    assert made.names() == ("odd-tevatron:v0",)
    manifest = manifest_of(server, "model-t1:v3")
    before = manifest.read_text()
    manifest.write_text(before.replace("optimizer.pt", "optimiser.pt"))  # as of a version that several processes logged
    try:
        assert watched(artifact="model-t1").checkpoint("model-t1:v3")
    finally:
        manifest.write_text(before)


@pytest.mark.parametrize("action", ["flip", "truncate", "cut", "drop"])
def test_damaged_bytes_are_found_and_fetched_again(
    watched: Callable[..., Watched], server: ServerHandle, logged: Logged, action: Any
) -> None:
    made, checkpoint = one(watched)
    met = server.faults_met()
    server.fault(action, route="file", times=2)
    into = made.fetch(checkpoint)
    assert server.faults_met() == met + 2
    assert contents(into) == {name: (logged.root / "t1-0" / name).read_bytes() for name in WANTED}


@pytest.mark.parametrize("action", ["flip", "truncate"])
def test_bytes_that_stay_damaged_are_an_error(watched: Callable[..., Watched], server: ServerHandle, action: Any) -> None:
    made, checkpoint = one(watched)
    server.fault(action, route="file", times=None)
    with pytest.raises(CheckpointError, match=r"model-t1:v0 of tester/p: config.json: bytes differ from the manifest, 3 times"):
        made.fetch(checkpoint)


def test_an_expired_url_is_asked_for_again(watched: Callable[..., Watched], server: ServerHandle) -> None:
    made, checkpoint = one(watched)
    server.fault("status", route="file", status=403, times=2)
    before = len(server.requests())
    assert set(contents(made.fetch(checkpoint))) == WANTED
    assert len([e for e in server.requests()[before:] if e.operation == "FilesOfVersion"]) == 3
    server.fault("status", route="file", status=403, times=None)
    with pytest.raises(Outage, match="refuses every URL"):
        made.fetch(checkpoint)


def test_a_store_that_asks_to_wait_is_waited_for_or_reported(watched: Callable[..., Watched], server: ServerHandle) -> None:
    made, checkpoint = one(watched)
    server.fault("status", route="file", status=429, retry_after_s=0.2)
    server.fault("status", route="file", status=503)
    assert set(contents(made.fetch(checkpoint))) == WANTED
    server.fault("status", route="file", status=429, retry_after_s=90)
    with pytest.raises(Outage, match="HTTP 429") as caught:
        made.fetch(checkpoint)
    assert caught.value.retry_after_s == 90


def test_an_api_that_is_overloaded_is_an_outage_that_ends(watched: Callable[..., Watched], server: ServerHandle) -> None:
    made = watched()
    made.list()
    server.fault("status", route="graphql", status=503, times=None)
    before = len(server.requests())
    with pytest.raises(Outage, match="cannot be reached: HTTP 503") as caught:
        made.list()
    assert len(server.requests()) == before + 2 and caught.value.retry_after_s == 0
    server.clear()
    assert len(made.names()) == 6


def test_an_api_that_asks_to_wait_is_asked_nothing_before(
    watched: Callable[..., Watched], server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, checkpoint = one(watched)
    server.fault("status", route="graphql", status=429, retry_after_s=3000, times=1)
    before = len(server.requests())
    with pytest.raises(Outage, match=r"asks to wait 3000 s \(HTTP 429") as caught:
        made.list()
    assert caught.value.retry_after_s == 3000
    for question in (made.list, lambda: made.fetch(checkpoint)):
        with pytest.raises(Outage, match="asked to wait, for") as caught:
            question()
        assert 0 < caught.value.retry_after_s <= 3000
    assert len(server.requests()) == before + 1
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3000)
    assert len(made.names()) == 4


def test_a_passing_failure_of_the_api_is_repeated_once(watched: Callable[..., Watched], server: ServerHandle) -> None:
    made = watched()
    made.list()
    met = server.faults_met()
    for action in ("status", "drop"):
        server.fault(action, route="graphql", status=503)
        assert len(made.names()) == 6
    server.fault("hang", route="graphql")
    with pytest.raises(Outage, match=r"no answer within [\d.]+ s"):
        watched(api_timeout_s=1).list()
    assert server.faults_met() == met + 3


def test_an_answer_of_the_api_that_trickles_ends_with_the_time_of_a_question(
    watched: Callable[..., Watched], server: ServerHandle
) -> None:
    server.fault("slow", route="graphql", operation="VersionsOfCollection", bytes_per_s=20, times=None)
    with pytest.raises(Outage, match=r"does not end \(\d{1,3} bytes so far\)|no answer within"):
        watched(api_timeout_s=1, artifact="model-t1").list()


def test_a_stalled_download_times_out(watched: Callable[..., Watched], server: ServerHandle) -> None:
    made, checkpoint = one(watched)
    server.fault("hang", route="file")
    with pytest.raises(Outage, match=r"sent nothing of config.json for 2 s"):
        watched(timeout_s=2).fetch(checkpoint)
    server.clear()
    server.fault("slow", route="file", bytes_per_s=200)  # some bytes every 50 ms: slow, not silent
    assert set(contents(made.fetch(checkpoint))) == WANTED


def test_a_version_deleted_before_it_is_fetched_is_gone(
    watched: Callable[..., Watched], server: ServerHandle, logged: Logged
) -> None:
    plan: dict[str, Any] = {"gone": {"group": None, "versions": []}}
    plan["gone"]["versions"] = [
        {"collection": "fleeting", "folder": write(logged.root / f"fleeting-{n}", 50 + n)} for n in range(2)
    ]
    server.python(LOG, {"PLAN": json.dumps(plan)})
    made = watched(artifact="fleeting")
    purged, deleted = made.list().checkpoints
    server.delete_version(server.artifact("fleeting:v1"))
    with pytest.raises(CheckpointDeleted, match=r"fleeting:v1 of tester/p: it was deleted before it could be fetched"):
        made.fetch(deleted)
    assert [made.source.still_has(one) for one in (purged, deleted)] == [True, False]
    server.purge(server.artifact("fleeting:v0"), "model.safetensors")
    for _ in range(2):  # whoever fetched it ahead says nothing of it; whoever needs it reports it
        assert made.names() == ("fleeting:v0",)
        with pytest.raises(CheckpointDeleted, match=r"fleeting:v0 of tester/p: .*HTTP 404"):
            made.fetch(purged)
    # Still listed by W&B: trying again and again would not help.
    assert told(made.list()) == [("fleeting:v0", "its files were deleted from W&B")]


def told(listing: Listing) -> list[tuple[str, str]]:
    """What is reported as skipped of versions that are not there."""
    assert not listing.checkpoints
    parts = (*listing.incomplete, *listing.missing)
    assert all(part.final and part.is_deleted and part.reason == part.lacks for part in parts)
    return [(part.name, part.lacks) for part in parts]


def test_a_version_deleted_within_the_look_that_finds_it_is_told_and_so_is_a_number_that_is_missing(
    watched: Callable[..., Watched], server: ServerHandle, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [{"collection": "brief", "folder": write(logged.root / f"brief-{n}", 70 + n)} for n in range(3)]
    server.python(LOG, {"PLAN": json.dumps({"brief": {"group": None, "versions": folders}})})
    server.delete_version(server.artifact("brief:v1"))
    found = watched(artifact="brief").list()
    assert [one.version for one in found.checkpoints] == ["v0", "v2"]
    assert [(part.name, part.reason) for part in found.missing] == [("brief:v1", "deleted from W&B before it was ever seen")]
    assert watched(artifact="brief", aliases=["latest"]).list().missing == ()  # what is missing may have had no such alias
    made, lock, origin = watched(artifact="brief"), threading.Lock(), Project.origin
    shutil.rmtree(made.state_dir / "wandb_versions")

    def delete_and_ask(project: Project, opaque_id: str) -> Any:
        with lock:
            if len(server.artifacts(collection="brief")) == 2:
                server.delete_version(server.artifact("brief:v2"))
        return origin(project, opaque_id)

    monkeypatch.setattr(Project, "origin", delete_and_ask)
    found = made.list()
    assert [one.version for one in found.checkpoints] == ["v0"]
    assert [(part.name, part.reason) for part in found.incomplete] == [
        ("brief:v2", "deleted from W&B while it was being listed")
    ]


def test_a_reference_is_followed_only_where_that_is_allowed(
    watched: Callable[..., Watched], server: ServerHandle, logged: Logged
) -> None:
    weights, url = logged.root / "t1-0" / "model.safetensors", f"{server.url}/storage/files/elsewhere/weights"
    request = urllib.request.Request(url, weights.read_bytes(), method="PUT")
    NO_PROXY.open(request).close()
    version = {"collection": "linked", "folder": str(logged.root / "reference"), "reference": url, "name": "model.safetensors"}
    server.python(LOG, {"PLAN": json.dumps({"linked": {"group": None, "versions": [version]}})})
    assert url in watched(artifact="linked").incomplete()["linked:v0"].lacks
    made = watched(artifact="linked", allow_references=True)
    into = made.fetch(made.checkpoint("linked:v0"))
    assert (into / "model.safetensors").read_bytes() == weights.read_bytes() and set(contents(into)) == WANTED


def test_a_full_disk_is_said_before_anything_is_written(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, checkpoint = one(watched)
    usage = shutil.disk_usage(made.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OSError) as caught:
        made.fetch(checkpoint)
    assert caught.value.errno == errno.ENOSPC and not list(made.root.glob("fetched-*/*"))


def test_setup_errors_say_the_way_out(
    watched: Callable[..., Watched], server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, said in (
        ({"project": None}, r"source.project: required.*WANDB_PROJECT"),
        ({"project": "nope"}, r"no project tester/nope.*source.entity and source.project"),
        ({"entity": "nobody"}, r"no project nobody/p"),
        ({"type": "modle"}, r"source.type: got 'modle', expected one of \['dataset', 'model'\]"),
        ({"run": "nope"}, r"source.run: got 'nope'"),
    ):
        with pytest.raises(SetupError, match=said):
            watched(**options).list()
    server.reject_key(KEY)
    with pytest.raises(SetupError, match=r"rejects the key; run `wandb login`, or set WANDB_API_KEY"):
        watched().list()
    server.clear()
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.delenv("WANDB_ENTITY")
    assert len(watched(project=None).names()) == 6


def test_a_key_that_is_none_is_not_shown(watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too-short-but-secret")
    with pytest.raises(SetupError, match="wandb login") as caught:
        watched().list()
    assert "too-short" not in str(caught.value)


def test_a_server_out_of_reach_is_an_outage_that_ends_with_it(watched: Callable[..., Watched], server: ServerHandle) -> None:
    made = watched(artifact="model-t1")
    checkpoint = made.checkpoint("model-t1:v0")
    server.kill()
    try:
        for question in (made.list, watched().list, lambda: made.fetch(checkpoint)):
            started = time.monotonic()
            with pytest.raises(Outage, match="cannot be reached"):
                question()
            assert time.monotonic() - started < 300  # far less than it waits for an answer
    finally:
        server.start()
    assert len(made.names()) == 4


def test_a_source_outlives_the_process_of_the_sdk(watched: Callable[..., Watched]) -> None:
    import wandb

    made = watched(artifact="model-t1")
    first = made.list()
    wandb.teardown()
    assert made.list() == first


def test_the_key_is_written_nowhere(
    watched: Callable[..., Watched], server: ServerHandle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dr_validate")
    made, checkpoint = one(watched)
    server.fault("status", route="file", status=403)
    server.fault("flip", route="file")
    made.fetch(checkpoint)
    assert "sha256" in caplog.text and KEY not in caplog.text
    written = [path for root in (made.root, server.folder / "clients") for path in root.rglob("*") if path.is_file()]
    assert len(written) > 10 and not [path for path in written if KEY.encode() in path.read_bytes()]
    assert not [e for e in server.requests() if e.route in ("file", "manifest") and e.authorized]


def test_a_login_in_the_url_of_the_server_is_written_nowhere(
    watched: Callable[..., Watched],
    server: ServerHandle,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import wandb

    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("WANDB_BASE_URL", server.url.replace("://", "://somebody:sesame@"))
    wandb.teardown()
    made = watched(artifact="model-t1")
    said = ""
    try:
        made.list()
        server.fault("status", route="graphql", status=503, times=None)
        made.list()
    except (Outage, SetupError) as error:
        said = str(error)
    finally:
        wandb.teardown()
    assert said and "sesame" not in said + caplog.text
    assert not [path for path in made.root.rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]


def test_a_hundred_new_versions_are_one_look(watched: Callable[..., Watched], server: ServerHandle, logged: Logged) -> None:
    folder = write(logged.root / "hundred")
    code = f"""
import shutil, wandb
with wandb.init(project="many", id="many") as run:
    for n in range(101):
        version = wandb.Artifact("many", "model", metadata={{"step": 1000 - n}})
        for name in ("config.json", "model.safetensors"):
            version.add_file({folder!r} + "/" + name)
        with version.new_file("n.txt") as stream:
            stream.write(str(n))
        run.log_artifact(version)
"""
    server.python(code)
    made = watched(project="many", artifact=None)
    before = len(server.requests())
    found = made.list().checkpoints
    assert [c.step for c in found] == list(range(900, 1001))
    assert len({c.digest for c in found}) == 1
    asked = server.requests()[before:]
    assert len([e for e in asked if e.operation == "VersionsOfCollection"]) == 2  # pages of a hundred
    assert len([e for e in asked if e.route == "manifest"]) == 101 and len(asked) < 2.2 * 101  # each asked about once
