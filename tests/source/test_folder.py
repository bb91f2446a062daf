"""A folder of checkpoints, as trainers leave it: half-written, rotated, linked, pickled."""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from dr_validate.errors import CheckpointDeleted, CheckpointError, SetupError, Stopped
from dr_validate.files import interruptible
from dr_validate.source.folder import FolderSource
from dr_validate.values import Checkpoint, Listing


def write(folder: Path, seed: int = 0, files: Mapping[str, str] | None = None) -> Path:
    """A plain Hugging Face folder: config, tokenizer, weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer.json").write_text("{}")
    save_file({"w": np.full(100, seed, np.float32)}, folder / "model.safetensors")
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def state(step: int) -> dict[str, str]:
    return {"trainer_state.json": json.dumps({"global_step": step})}


class Watched:
    """A source and its state_dir."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root, self.state_dir = root / "checkpoints", root / "state"
        self.root.mkdir(exist_ok=True)
        self.source = FolderSource(path=self.root, **options)

    def list(self) -> Listing:
        return self.source.list(self.state_dir)

    def names(self) -> "tuple[str, ...]":
        return tuple(one.name for one in self.list().checkpoints)

    def only(self) -> Checkpoint:
        (one,) = self.list().checkpoints
        return one

    def lacks(self) -> str:
        listing = self.list()
        assert not listing.checkpoints
        (part,) = listing.incomplete
        return part.lacks


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_the_order_is_that_of_the_training_and_not_of_the_clock(watched: Watched) -> None:
    for age, step in enumerate((1000, 500, 9)):
        write(watched.root / f"checkpoint-{step}", step)
        os.utime(watched.root / f"checkpoint-{step}" / "model.safetensors", (1e9 - age, 1e9 - age))
    assert watched.names() == ("checkpoint-9", "checkpoint-500", "checkpoint-1000")
    assert watched.list().checkpoints[0].created_at == "2001-09-09T01:46:38Z"


def test_the_step_comes_from_the_trainer_then_the_name_then_the_place(watched: Watched) -> None:
    write(watched.root / "checkpoint-7", 1, state(70))
    write(watched.root / "step_80", 2)
    write(watched.root / "global_step90_hf", 3)
    write(watched.root / "epoch-2", 4)
    write(watched.root / "best", 5)
    write(watched.root / "final", 6)
    found = [(one.name, one.step, one.step_from) for one in watched.list().checkpoints]
    assert found == [
        ("epoch-2", 2, "folder name"),
        ("checkpoint-7", 70, "trainer_state.json"),
        ("step_80", 80, "folder name"),
        ("global_step90_hf", 90, "folder name"),
        ("best", 91, "place in name order"),
        ("final", 92, "place in name order"),
    ]


@pytest.mark.parametrize("name", ["nq-lr1e-5", "minilm-v2", "bert-base-2024", "run3", "checkpoint-500", "plain"])
def test_a_final_model_in_the_output_folder_stands_after_the_last_checkpoint(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "checkpoint-1000", 1, state(1000))
    write(tmp_path / name / "checkpoint-2000", 2)
    write(tmp_path / name, 3)
    source = FolderSource(path=tmp_path / name)

    def found() -> list[tuple[str, int, str]]:
        return [(one.name, one.step, one.step_from) for one in source.list(tmp_path / "state").checkpoints]

    # checkpoint-2000 waits for its trainer_state.json, and states a step all the same
    assert found() == [("checkpoint-1000", 1000, "trainer_state.json"), (name, 2001, "place in name order")]
    write(tmp_path / name, 3, state(2000))
    assert found()[-1] == (name, 2000, "trainer_state.json")


def test_a_checkpoint_that_is_pointed_at_has_the_step_of_its_name_and_no_other_number(tmp_path: Path) -> None:
    for name, step in (("checkpoint-500", 500), ("step_80", 80), ("nq-lr1e-5", 1), ("run3", 1)):
        (one,) = FolderSource(path=write(tmp_path / name)).list(tmp_path / "state").checkpoints
        assert (one.name, one.step) == (name, step)


@pytest.mark.parametrize(
    "steps",
    [
        {"checkpoint-100": 100, "step_200": 200, "300": 300, "bert-base-2024": 301, "checkpoint-final": 302, "minilm-v2": 303},
        {"epoch=3-step=1000": 1000, "epoch=4-step=1500": 1500, "final-1": 1501},
        {"epoch-1": 1, "epoch-2": 2, "v1": 3},
        {"tas-b-500": 500, "tas-b-1000": 1000, "tas-b": 1001},
    ],
    ids=["words", "both", "epochs", "numbers"],
)
def test_a_number_in_a_name_is_a_step_only_where_it_is_called_one_or_all_have_one(
    watched: Watched, steps: Mapping[str, int]
) -> None:
    for seed, name in enumerate(steps):
        write(watched.root / name, seed)
    assert {one.name: one.step for one in watched.list().checkpoints} == steps


def test_a_half_written_file_becomes_complete_without_waiting(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-500")
    whole = (folder / "model.safetensors").read_bytes()
    for length, said in (
        (0, "0 bytes so far"),
        (5, "header"),
        (60, "header"),
        (len(whole) - 1, f"{len(whole) - 1} of {len(whole)}"),
    ):
        (folder / "model.safetensors").write_bytes(whole[:length])
        assert said in watched.lacks()
    (folder / "model.safetensors").write_bytes(whole)
    assert watched.names() == ("checkpoint-500",)


def test_text_that_is_being_written_is_not_read_as_complete(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-500")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text('{"half')
        assert f"{name} cannot be read as JSON" in watched.lacks()
        (folder / name).write_text("{}")
    assert watched.names() == ("checkpoint-500",)


def test_every_shard_must_be_there(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-500")
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (folder / "model.safetensors").rename(folder / shards[0])
    index = {"weight_map": {"w": shards[0], "v": shards[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert watched.lacks() == f"model.safetensors.index.json names {shards[1]}, which is not there"
    save_file({"v": np.zeros(3, np.float32)}, folder / shards[1])
    assert watched.names() == ("checkpoint-500",)


def write_shards(folder: Path, seed: int) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, shard in zip("wv", shards, strict=True):
        save_file({name: np.full(50, seed, np.float32)}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("wv", shards, strict=True))}))


def test_two_sets_of_weights_are_never_chosen_between(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-500")
    alone = watched.only().digest
    write_shards(folder, 1)
    lacks = watched.lacks()
    for said in ("model.safetensors and model-00001-of-00002.safetensors to model-00002-of-00002", "not guessed: delete"):
        assert said in lacks
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert watched.names() == ("checkpoint-500",)  # the single file alone is whole
    (folder / "model-00001-of-00002.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    assert watched.only().digest == alone
    (folder / "model.safetensors").unlink()
    write_shards(folder, 1)
    assert watched.names() == ("checkpoint-500",)
    (folder / "pytorch_model.bin").write_text("is never loaded")
    assert watched.names() == ("checkpoint-500",)
    save_file({"w": np.zeros(3, np.float32)}, folder / "model-00001-of-00001.safetensors")
    assert "two sets of weights" in watched.lacks()


def test_an_adapter_beside_a_whole_model_is_never_chosen_between(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-500", files={"adapter_config.json": "{}"})
    assert "but not adapter_model.safetensors" in watched.lacks()
    save_file({"a": np.zeros(3, np.float32)}, folder / "adapter_model.safetensors")
    assert "two sets of weights: model.safetensors and adapter_model.safetensors" in watched.lacks()
    (folder / "model.safetensors").unlink()
    assert watched.names() == ("checkpoint-500",)


def test_the_trainer_writes_its_state_last(watched: Watched) -> None:
    first = write(watched.root / "checkpoint-1", 1, {"optimizer.pt": "x"})
    assert watched.lacks() == "trainer_state.json is not there yet (the trainer writes it last)"
    (first / "trainer_state.json").write_text('{"global_step": 1')
    assert "trainer_state.json cannot be read" in watched.lacks()
    (first / "trainer_state.json").write_text('{"global_step": 1}')
    write(watched.root / "checkpoint-2", 2)
    assert watched.names() == ("checkpoint-1",)  # its sibling has the file, so checkpoint-2 is to have it too
    write(watched.root / "checkpoint-2", 2, state(2))
    assert watched.names() == ("checkpoint-1", "checkpoint-2")


class Clocks:
    """Both clocks, that of the file system and that of the process, `ahead` of what they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = self.set_back = 0.0
        real, wall = time.monotonic, time.time
        monkeypatch.setattr("dr_validate.source.remembered.time.monotonic", lambda: real() + self.ahead)
        monkeypatch.setattr("dr_validate.source.remembered.time.time", lambda: wall() + self.ahead - self.set_back)


@pytest.mark.parametrize("files", [{"optimizer.pt": "x"}, {"trainer_state.json": '{"global_st'}], ids=["none", "cut"])
@pytest.mark.parametrize("set_back", [0.0, 1e6])
def test_weights_that_are_whole_and_at_rest_need_no_trainer_state(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], set_back: float
) -> None:
    clocks = Clocks(monkeypatch)
    clocks.set_back = set_back
    folder = write(watched.root / "checkpoint-1", 1, files)
    for _ in range(5):  # however often one looks at once
        assert "trainer_state.json" in watched.lacks()
    clocks.ahead += 9.0
    (folder / "global_step1").mkdir()  # it goes on: no rest
    assert "trainer_state.json" in watched.lacks()
    clocks.ahead += 9.0
    (folder / "global_step1" / "optimizer.pt").write_text("x")
    for _ in range(3):
        assert "trainer_state.json" in watched.lacks()
    clocks.ahead += 11.0
    assert watched.names() == ("checkpoint-1",)


def test_a_finite_run_takes_what_has_not_changed_for_long_at_once_and_no_new_copy_of_it(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(monkeypatch)
    folder = write(watched.root / "checkpoint-1", 1, {"optimizer.pt": "x"})
    for path in (*folder.iterdir(), folder):
        os.utime(path, (1e9, 1e9))  # what a copy keeps
    assert "trainer_state.json" in watched.lacks()
    clocks.ahead += 130.0
    assert watched.names() == ("checkpoint-1",)


def test_half_of_a_checkpoint_is_never_taken_however_long_it_rests(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    whole = write(watched.root / "checkpoint-1", 1, {"optimizer.pt": "x"}) / "model.safetensors"
    content = whole.read_bytes()

    def is_taken() -> bool:
        clocks.ahead += 1000.0
        return bool(watched.names() or watched.names())

    whole.write_bytes(content[:-1])
    assert not is_taken()
    whole.unlink()
    assert not is_taken()
    shards = [whole.with_name(f"model-0000{n}-of-00002.safetensors") for n in (1, 2)]
    for shard in shards:
        shard.write_bytes(content)
        assert not is_taken() and "model.safetensors.index.json is not there yet" in watched.lacks()
    weight_map = {str(n): shard.name for n, shard in enumerate(shards)}
    whole.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert is_taken()
    (whole.parent / "config.json").unlink()
    assert not is_taken()


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "epoch=1.ckpt", "model.pt"])
def test_pickles_are_refused_with_a_way_out(watched: Watched, pickle: str) -> None:
    folder = write(watched.root / "checkpoint-500", files={pickle: "x", "training_args.bin": "x"})
    (folder / "model.safetensors").unlink()
    lacks = watched.lacks()
    assert f"weights only as a pickle ({pickle})" in lacks
    assert "safe_serialization=True" in lacks
    (folder / "config.json").unlink()
    (folder / "tokenizer.json").unlink()
    assert f"weights only as a pickle ({pickle})" in watched.lacks()


def test_empty_and_bare_folders_are_told(watched: Watched) -> None:
    (watched.root / "checkpoint-5").mkdir()
    assert watched.lacks() == "the folder is empty"
    save_file({"w": np.zeros(3, np.float32)}, watched.root / "checkpoint-5" / "model.safetensors")
    assert watched.lacks().startswith("config.json is not there")
    (watched.root / "checkpoint-5" / "config.json").write_text("{}")
    (watched.root / "checkpoint-5" / "model.safetensors").unlink()
    assert watched.lacks() == "weights (*.safetensors) are not there"


def test_an_empty_folder_is_a_checkpoint_to_come_only_where_its_name_says_a_step(watched: Watched) -> None:
    write(watched.root / "checkpoint-100", 1)
    for name in ("runs", "logs", "final", "checkpoint-200", "epoch-3", "300"):
        (watched.root / name).mkdir()
    found = [(one.name, one.step) for one in watched.list().incomplete]
    assert found == [("epoch-3", 3), ("checkpoint-200", 200), ("300", 300)]


def test_hidden_temporary_and_other_folders_are_no_checkpoints(watched: Watched) -> None:
    for name in (".cache", "tmp-checkpoint-5", "checkpoint-6.tmp"):
        write(watched.root / name)
    (watched.root / "runs" / "Nov21").mkdir(parents=True)
    (watched.root / "eval").mkdir()
    (watched.root / "eval" / "scores.csv").write_text("1")
    (watched.root / "README.md").write_text("x")
    assert watched.list() == Listing()


def test_an_alias_of_a_sibling_is_not_a_version(watched: Watched) -> None:
    write(watched.root / "checkpoint-5")
    (watched.root / "latest").symlink_to("checkpoint-5")
    elsewhere = write(watched.root.parent / "elsewhere" / "checkpoint-6", 6)
    (watched.root / "checkpoint-6").symlink_to(elsewhere)
    assert watched.names() == ("checkpoint-5", "checkpoint-6")


def test_the_path_can_be_a_checkpoint_itself(tmp_path: Path) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    folder = write(tmp_path / "model", 1, {"modules.json": json.dumps(modules)})
    source = FolderSource(path=folder)
    (part,) = source.list(tmp_path / "state").incomplete
    assert "modules.json names 1_Pooling" in part.lacks
    write(folder, 1, {"1_Pooling/config.json": "{}"})
    write(folder / "checkpoint-5", 2)
    listing = source.list(tmp_path / "state")
    assert [(one.name, one.step) for one in listing.checkpoints] == [("checkpoint-5", 5), ("model", 6)]
    source.fetch(listing.checkpoints[1], tmp_path)
    assert (tmp_path / "1_Pooling" / "config.json").is_file()
    assert not (tmp_path / "checkpoint-5").exists()


def test_two_towers_belong_together(watched: Watched) -> None:
    folder = watched.root / "checkpoint-5"
    write(folder / "query_model", 1)
    assert "query_model/ and passage_model/ belong together" in watched.lacks()
    (folder / "passage_model").mkdir()
    assert watched.lacks() == "passage_model/: the folder is empty"
    write(folder / "passage_model", 2)
    one = watched.only()
    into = watched.root.parent / "into"
    into.mkdir()
    watched.source.fetch(one, into)
    assert (into / "passage_model" / "model.safetensors").read_bytes() == (
        folder / "passage_model/model.safetensors"
    ).read_bytes()


def test_an_adapter_needs_its_weights_and_no_config(watched: Watched) -> None:
    folder = watched.root / "checkpoint-5"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    assert watched.lacks() == "weights (*.safetensors) are not there"
    (folder / "adapter_model.safetensors").write_bytes(save({"w": np.zeros(3, np.float32)}))
    assert watched.names() == ("checkpoint-5",)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "1_Pooling", "modules.json"])
def test_a_link_out_of_the_folder_makes_it_unusable(watched: Watched, name: str) -> None:
    folder = write(watched.root / "checkpoint-5")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/etc")
    way_out = "copy what it leads to, or set source.follow_links=true"
    assert watched.lacks() == f"symbolic link {name} -> /etc leaves the folder; {way_out}"


def test_links_that_stay_inside_are_followed_and_others_on_request(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-5")
    plain = watched.only().digest
    (folder / "vocab.txt.real").write_text("x")
    (folder / "vocab.txt").symlink_to("vocab.txt.real")
    assert watched.only().digest != plain
    (folder / "1_Pooling").symlink_to(".")  # round and round
    assert watched.names() == ("checkpoint-5",)
    blob = watched.root.parent / "blob"
    shutil.move(folder / "model.safetensors", blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert "leaves the folder" in watched.lacks()
    assert Watched(watched.root.parent, follow_links=True).names() == ("checkpoint-5",)


def test_a_pipe_in_place_of_a_file_does_not_hang(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-5")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "config.json" in watched.lacks()


def test_only_what_encoding_needs_makes_the_digest(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-5", 1, state(5))
    digest = watched.only().digest
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "README.md", "runs/config.json", "eval/config.json"):
        write(folder, 1, {name: "x"})
    write(folder, 1, {"trainer_state.json": '{"global_step": 5, "epoch": 2}'})
    assert watched.only().digest == digest
    for name in (
        "tokenizer_config.json",
        "special_tokens_map.json",
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
    ):
        write(folder, 1, {name: '{"a": 1}'})
        assert watched.only().digest != digest
        digest = watched.only().digest
    write(folder, 2)
    assert watched.only().digest != digest


def test_the_names_of_files_count_in_the_digest(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-5", files={"vocab.txt": "x"})
    digest = watched.only().digest
    (folder / "vocab.txt").rename(folder / "vocab.bpe")
    assert watched.only().digest != digest


def test_unchanged_files_are_not_read_again_and_changed_ones_are(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-5")
    digest = watched.only().digest
    (memory,) = (watched.state_dir / "digests").iterdir()
    remembered = json.loads(memory.read_bytes())
    key = str(folder / "model.safetensors")
    remembered[key][-1] = "0" * 64  # an answer that reading the file could not give
    memory.write_text(json.dumps(remembered))
    doctored = watched.only().digest
    assert doctored != digest
    status = (folder / "model.safetensors").stat()
    write(folder, 7)
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert watched.only().digest not in (digest, doctored)
    memory.write_text("damaged")
    write(folder, 0)
    assert watched.only().digest == digest


def test_a_memory_that_cannot_be_written_costs_only_time(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("dr_validate.source.remembered.write_atomically", refuse)
    write(watched.root / "checkpoint-5")
    assert watched.names() == ("checkpoint-5",)


def test_what_is_gone_is_forgotten(watched: Watched) -> None:
    write(watched.root / "checkpoint-5")
    write(watched.root / "checkpoint-6")
    assert len(watched.list().checkpoints) == 2
    shutil.rmtree(watched.root / "checkpoint-5")
    assert watched.names() == ("checkpoint-6",)
    (memory,) = (watched.state_dir / "digests").iterdir()
    assert not any("checkpoint-5" in key for key in json.loads(memory.read_bytes()))


def test_a_fetched_copy_is_whole_private_and_free_of_pickles(watched: Watched, tmp_path: Path) -> None:
    folder = write(watched.root / "checkpoint-5", 1, {"optimizer.bin": "x", "training_args.bin": "x"})
    one = watched.only()
    into = tmp_path / "into"
    into.mkdir()
    watched.source.fetch(one, into)
    assert {path.name for path in into.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.write(b"written over")
    assert not (into / "model.safetensors").read_bytes().startswith(b"written over")


def test_a_checkpoint_that_changed_is_worth_another_try_and_a_deleted_one_is_not(watched: Watched, tmp_path: Path) -> None:
    folder = write(watched.root / "checkpoint-5")
    one = watched.only()
    write(folder, 9)
    with pytest.raises(OSError, match="changed while it was copied"):
        watched.source.fetch(one, _new(tmp_path / "a"))
    (folder / "config.json").unlink()  # a rotation takes file after file
    with pytest.raises(CheckpointDeleted, match=r"deleted before it could be copied.*save_total_limit"):
        watched.source.fetch(one, _new(tmp_path / "b"))
    shutil.rmtree(folder)
    with pytest.raises(CheckpointDeleted, match=r"checkpoint-5 was deleted before it could be copied"):
        watched.source.fetch(one, _new(tmp_path / "c"))


def test_a_link_that_appears_after_the_listing_is_not_followed(watched: Watched, tmp_path: Path) -> None:
    folder = write(watched.root / "checkpoint-5")
    one = watched.only()
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="leaves the folder"):
        watched.source.fetch(one, _new(tmp_path / "a"))
    assert not list((tmp_path / "a").iterdir())


def test_checkpoints_that_come_and_go_while_we_look_never_break_the_listing(watched: Watched) -> None:
    stop = threading.Event()

    def rotate() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            write(watched.root / f"checkpoint-{step}", step, state(step))
            shutil.rmtree(watched.root / f"checkpoint-{step - 20}", ignore_errors=True)

    trainer = threading.Thread(target=rotate)
    trainer.start()
    try:
        seen: set[int] = set()
        for _ in range(10_000):
            listing = watched.list()
            seen |= {one.step for one in listing.checkpoints}
            if len(seen) > 200:
                break
    finally:
        stop.set()
        trainer.join()
    assert len(seen) > 200


def test_a_missing_path_is_empty_and_a_file_is_a_mistake(tmp_path: Path) -> None:
    assert FolderSource(path=tmp_path / "later").list(tmp_path / "state") == Listing()
    (tmp_path / "file").write_text("x")
    with pytest.raises(SetupError, match=r"source\.path: got .*a file"):
        FolderSource(path=tmp_path / "file").list(tmp_path / "state")


def test_the_training_run_is_named_after_the_folder_or_as_told(tmp_path: Path) -> None:
    assert FolderSource(path=tmp_path / "msmarco-tas" / ".").training_run == "msmarco-tas"
    assert FolderSource(path=tmp_path, name="tas").training_run == "tas"


def test_checkpoints_carry_the_name_that_was_given(watched: Watched) -> None:
    write(watched.root / "checkpoint-5")
    (watched.root / "checkpoint-6").mkdir()
    for name, carried in ((None, ""), ("tas", "tas")):
        found = FolderSource(path=watched.root, name=name).list(watched.state_dir)
        assert [one.training_run for one in found.checkpoints] == [carried]
        assert [one.training_run for one in found.incomplete] == [carried]


@pytest.mark.parametrize(
    "text",
    ['[{"type": "sentence_transformers.models.Dense", "path": "../../etc"}]', '[{"path": "1"}]', "3", "[" * 100_000],
    ids=["outside", "no-type", "number", "deep"],
)
def test_a_hostile_modules_file_costs_one_line(watched: Watched, text: str) -> None:
    write(watched.root / "checkpoint-5", files={"modules.json": text})
    assert "modules.json" in watched.lacks()


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def not_utf8(name: bytes) -> str:
    return os.fsdecode(name)


def test_a_name_that_is_not_utf8_is_refused_for_good_in_words_that_can_be_written(watched: Watched) -> None:
    write(watched.root / not_utf8(b"checkpoint-\xff-5"))
    write(watched.root / "checkpoint-\u00fc-7")
    (part,) = watched.list().incomplete
    assert part.final
    assert part.name == "checkpoint-\\udcff-5"
    assert part.uri.endswith(part.name)
    assert "not UTF-8" in part.lacks
    assert watched.names() == ("checkpoint-\u00fc-7",)


def test_a_file_name_that_is_not_utf8_is_named(watched: Watched) -> None:
    write(watched.root / "checkpoint-5", files={not_utf8(b"vocab.\xff"): ""})
    assert "its file vocab.\\udcff is not UTF-8" in watched.lacks()


def test_a_link_to_a_name_that_is_not_utf8_is_told_in_words_that_can_be_written(watched: Watched, tmp_path: Path) -> None:
    write(watched.root / "checkpoint-5")
    (watched.root / "checkpoint-5" / "vocab.txt").symlink_to(tmp_path / not_utf8(b"\xff"))
    assert "\\udcff leaves the folder" in watched.lacks()


def test_a_path_that_is_not_utf8_is_a_problem_of_the_setup(tmp_path: Path) -> None:
    source = FolderSource(path=write(tmp_path / not_utf8(b"\xff") / "checkpoint-5").parent)
    with pytest.raises(SetupError, match=r"source\.path: .*udcff.*rename the folder"):
        source.list(tmp_path / "state")


def test_whatever_one_checkpoint_does_the_others_are_listed(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    write(watched.root / "checkpoint-1")
    loop = write(watched.root / "checkpoint-2") / "vocab.txt"
    loop.symlink_to("vocab.txt")
    write(watched.root / "checkpoint-3", files={"trainer_state.json": "[" * 100_000, "config.json": "[" * 100_000})
    assert watched.names() == ("checkpoint-1",)
    assert [part.name for part in watched.list().incomplete] == ["checkpoint-2", "checkpoint-3"]
    loop.unlink()

    def surprise(folder: Path) -> str | None:
        if folder.name == "checkpoint-2":
            raise KeyError("\udcff" + "x" * 10_000)  # what nobody expected
        return None

    monkeypatch.setattr("dr_validate.source.folder.link_that_leaves", surprise)
    assert watched.names() == ("checkpoint-1",)
    part = watched.list().incomplete[0]
    assert part.final and part.name == "checkpoint-2" and part.lacks.startswith("it cannot be looked at (KeyError: ")
    assert len(part.lacks.encode()) < 1000


def test_only_a_complete_sibling_says_that_the_trainer_writes_its_state(watched: Watched) -> None:
    (watched.root / "checkpoint-1").mkdir()
    (watched.root / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1, "save_steps": 7}')
    write(watched.root / "checkpoint-2")
    write(watched.root / "checkpoint-3")
    assert watched.names() == ("checkpoint-2", "checkpoint-3")
    assert watched.list().save_steps == 0


def header(body: bytes, data: int = 0) -> bytes:
    return len(body).to_bytes(8, "little") + body + bytes(data)


def test_a_header_that_no_model_has_is_not_parsed(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-5")
    (folder / "model.safetensors").write_bytes(header(b" " * (5 << 20)))
    assert "model.safetensors: its header has 5,242,880 bytes, more than 4,194,304" in watched.lacks()


@pytest.mark.parametrize(("name", "mib"), [("config.json", 8), ("tokenizer_config.json", 8), ("tokenizer.json", 64)])
def test_json_that_is_larger_than_its_kind_ever_is_is_not_read(watched: Watched, name: str, mib: int) -> None:
    folder = write(watched.root / "checkpoint-5")
    (folder / name).touch()
    os.truncate(folder / name, (mib << 20) + 1)
    assert watched.lacks() == f"{name} has more than {mib} MiB"


def test_what_has_not_changed_is_not_parsed_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(watched.root / "checkpoint-5", files=state(5))
    (folder / "model.safetensors").write_bytes(header(b"{broken"))
    parsed: list[object] = []
    loads = json.loads

    def counted(text: Any) -> Any:
        parsed.append(text)
        return loads(text)

    monkeypatch.setattr(json, "loads", counted)
    time.sleep(0.5)  # files are remembered once they are older than the steps of the clock of a file system
    said = watched.lacks()
    assert parsed and "its header cannot be read" in said
    parsed.clear()
    assert watched.lacks() == said and [text for text in parsed if text != b"{}"] == []
    write(folder, 3)
    assert watched.names() == ("checkpoint-5",) and parsed


def test_a_file_of_holes_and_one_that_is_too_big_are_not_hashed(watched: Watched) -> None:
    folder = write(watched.root / "checkpoint-5")
    for size, said in ((200 << 30, "200.00 GiB, more than source.max_gib=32"), (2 << 30, "bytes are on the disk")):
        shape = {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
        start = header(json.dumps(shape).encode())
        (folder / "model.safetensors").write_bytes(start)
        os.truncate(folder / "model.safetensors", len(start) + size)
        assert said in watched.lacks()
    write(folder)
    small = Watched(watched.root.parent, max_gib=1e-7)
    assert "more than source.max_gib=1e-07: raise that" in small.lacks() and small.list().incomplete[0].final


def test_a_look_that_is_told_to_stop_says_nothing_of_any_checkpoint(watched: Watched) -> None:
    write(watched.root / "checkpoint-1")

    def stop() -> None:
        raise Stopped("the run ends")

    with pytest.raises(Stopped), interruptible(stop):
        watched.list()
    assert watched.names() == ("checkpoint-1",)
