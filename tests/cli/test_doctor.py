"""What a run needs is looked at before anything is encoded: the same checks for the doctor and at every start."""

import errno
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dr_validate.cli.doctor import check_start, examine, with_other_problems
from dr_validate.cli.grammar import NOT_COMPOSED
from dr_validate.cli.overrides import explain, explain_sweep
from dr_validate.config import build
from dr_validate.errors import ConfigError, SetupError
from dr_validate.index.flat import FlatIndex
from dr_validate.index.torch import TorchIndex
from tests.factories import composed

Monkey = pytest.MonkeyPatch


@pytest.fixture
def arguments(collection: Path, tmp_path: Path) -> list[str]:
    places = [f"dataset.path={collection}", f"state_dir={tmp_path / 'state'}", f"source.path={tmp_path / 'checkpoints'}"]
    return ["dataset=beir", "tracker=none", "device=cpu", *places]


@pytest.fixture
def no_faiss(monkeypatch: Monkey) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)


def refusal(*overrides: str) -> str:
    with pytest.raises(SetupError) as caught:
        check_start(build(composed(*overrides)))
    return str(caught.value)


MISTAKES = {
    "encoder.poling=cls": "encoder.poling: encoder=auto has no such key",
    "dataset=bier": "dataset: got 'bier', expected one of",
    "source=/a/folder": "source: got '/a/folder', expected one of folder, wandb; a folder is source.path",
    "sampler.fraction=7": "sampler.fraction: Input should be less than or equal to 1",
    "encoder.pooling=men": "encoder.pooling: ",
    "metrics=[mrr@1000]": "top_k: got 100",
    "source.path=a-file": "source.path: got 'a-file', a file",
    "source.path=nowhere": "source: no checkpoint was found (source.path=nowhere)",
    "dataset.path=nowhere": "dataset.path: nowhere does not exist",
    "sampler.pool=[nowhere]": "sampler.pool: got 'nowhere', which is no file",
    "device=cuda:93": "device: got 'cuda:93'",
    "index=factory": "index: index=factory needs faiss",
    "state_dir=a-file": "state_dir: got 'a-file', a file; set it to a folder",
    "state_dir=a-file/state": "state_dir: got 'a-file/state', but 'a-file' is a file; set it to a folder",
    "metrics=[]": "metrics: got [], expected at least one",
}


@pytest.mark.parametrize(
    "wrong",
    [
        ["encoder.poling=cls", "source.path=a-file"],
        ["dataset=bier", "encoder.poling=cls", "sampler.pool=[nowhere]"],
        ["source=/a/folder", "encoder.poling=cls"],
        ["sampler.fraction=7", "dataset.path=nowhere"],
        ["encoder.pooling=men", "source.path=a-file", "dataset.path=nowhere"],
        ["metrics=[mrr@1000]", "sampler.pool=[nowhere]"],
        ["metrics=[]", "sampler.pool=[nowhere]"],
        ["state_dir=a-file", "source.path=nowhere"],
        ["source.path=nowhere", "sampler.pool=[nowhere]", "dataset.path=nowhere"],
        ["state_dir=a-file/state", "source.path=nowhere", "device=cuda:93", "index=factory", "index.spec=Flat"],
    ],
)
def test_mistakes_of_several_kinds_come_in_one_message(
    arguments: list[str], tmp_path: Path, monkeypatch: Monkey, no_faiss: None, wrong: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    message = all_that_is_said([*arguments, "sampler=stratified", "watch.mode=once", *wrong])
    for one in wrong:
        assert MISTAKES.get(one, "") in message


def all_that_is_said(overrides: list[str]) -> str:
    """As the command has it."""
    try:
        config = composed(*overrides)
    except NOT_COMPOSED as error:
        return explain(error, overrides)
    try:
        check_start(build(config))
    except ConfigError as error:
        return str(with_other_problems(error, config))
    except SetupError as error:
        return str(error)
    return ""


def test_a_run_that_lacks_nothing_begins(arguments: list[str]) -> None:
    check_start(build(composed(*arguments)))


def test_a_finite_run_on_a_folder_without_checkpoints_is_refused_at_once(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "runs").mkdir(parents=True)
    check_start(build(composed(*arguments)))  # which may come
    said = f"source: no checkpoint was found (source.path={tmp_path / 'checkpoints'}), so nothing was validated"
    assert refusal(*arguments, "watch.mode=once").startswith(said)
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir()
    check_start(build(composed(*arguments, "watch.mode=once")))  # it is told as incomplete


def test_what_no_checkpoint_in_a_folder_states_is_asked_for_at_once(arguments: list[str], tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    folders = [plain_checkpoint(checkpoints / f"checkpoint-{step}") for step in (100, 200)]
    assert refusal(*arguments).startswith(f"checkpoint-200: {folders[1]}: a plain transformers folder does not say how token")
    stated = ["encoder.pooling=mean", "encoder.normalize=true"]
    check_start(build(composed(*arguments, *stated)))
    assert "checkpoint-200: " in str(explain_sweep(["-m", *arguments, "seed=1,2"]))
    assert not (tmp_path / "state" / "datasets").exists()
    assert explain_sweep(["-m", *arguments, *stated, "seed=1,2"]) is None
    weights = folders[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # which is told of that one, and the others may not lack it
    assert refusal(*arguments).startswith("checkpoint-200: ")
    (folders[1] / "trainer_state.json").unlink()  # the trainer may be about to write modules.json
    check_start(build(composed(*arguments)))


def test_one_damaged_checkpoint_or_a_ledger_leaves_what_is_not_stated_to_the_run(arguments: list[str], tmp_path: Path) -> None:
    plain_checkpoint(tmp_path / "checkpoints" / "checkpoint-100")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.db").write_text("x")
    check_start(build(composed(*arguments)))
    (tmp_path / "state" / "ledger.db").unlink()
    assert "set encoder.pooling" in refusal(*arguments)
    (plain_checkpoint(tmp_path / "checkpoints" / "checkpoint-200") / "config.json").write_text("{}")
    check_start(build(composed(*arguments)))


def plain_checkpoint(folder: Path) -> Path:
    """A BERT of one weight that says nothing of pooling."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 64}')
    (folder / "tokenizer.json").write_text("{}")
    save_file({"embeddings.word_embeddings.weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    (folder / "trainer_state.json").write_text(f'{{"global_step": {folder.name.partition("-")[2]}}}')
    return folder


def test_all_that_is_wrong_is_said_at_once(arguments: list[str], tmp_path: Path, monkeypatch: Monkey, no_faiss: None) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc there
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "a-file").touch()
    wrong = ["index=factory", "index.spec=Flat", "tracker=wandb", "device=cuda:93", f"dataset.path={tmp_path / 'nowhere'}"]
    wrong += [f"source.path={tmp_path / 'a-file'}", f"state_dir={tmp_path / 'a-file' / 'state'}"]
    message = refusal(*arguments, *wrong)
    for part in (
        "index: index=factory needs faiss, which is not installed; pip install 'dr_validate[cpu]'",
        "tracker: no W&B key for ",
        "device: got 'cuda:93'",
        "dataset.path: ",
        "source.path: got ",
        "state_dir: ",
    ):
        assert part in message
    assert len(message.splitlines()) == 6


def test_a_file_of_another_user_is_named_with_the_way_out(
    arguments: list[str], monkeypatch: Monkey, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "/theirs/copies")

    monkeypatch.setattr("dr_validate.source.folder.FolderSource.list", refuse)
    assert examine(composed(*arguments)) == 2
    assert "/theirs/copies: Permission denied, for user" in " ".join(capsys.readouterr().out.split())


def test_a_key_is_asked_of_nobody_where_none_is_needed(arguments: list[str], monkeypatch: Monkey, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    check_start(build(composed(*arguments, "tracker=wandb", "tracker.mode=offline")))


@pytest.mark.parametrize("wanted", ["project", "key"])
def test_a_wandb_source_needs_a_project_and_a_key(
    arguments: list[str], monkeypatch: Monkey, tmp_path: Path, wanted: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    project = ["source.project=retriever"] if wanted == "key" else []
    rest = [one for one in arguments if not one.startswith("source.")]
    said = {"project": "source.project: required", "key": "there is no key for W&B"}
    assert said[wanted] in refusal("source=wandb", *rest, *project)


def test_a_package_that_is_missing_is_named_if_this_run_needs_it(arguments: list[str], monkeypatch: Monkey) -> None:
    import importlib.metadata

    known = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name in ("transformers", "wandb"):
            raise importlib.metadata.PackageNotFoundError
        return known(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert refusal(*arguments) == "packages: missing transformers; install with pip install transformers"


def test_little_room_is_a_warning_and_none_is_an_error(
    arguments: list[str], monkeypatch: Monkey, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**30))
    check_start(build(composed(*arguments)))
    assert "1.0 GiB free; checkpoints are copied there" in caplog.text

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert "cannot be written (No space left on device)" in refusal(*arguments)


@pytest.mark.parametrize(
    ("kind", "is_careful"),
    [("nfs4", True), ("lustre", True), ("gpfs", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False)],
)
def test_a_disk_that_other_machines_have_as_well_is_named(
    kind: str, is_careful: bool, arguments: list[str], tmp_path: Path, monkeypatch: Monkey, caplog: pytest.LogCaptureFixture
) -> None:
    place = str(tmp_path).replace(" ", r"\040")
    mounts = tmp_path / "mounts"
    others = f"/dev/vda / ext4 rw 0 0\nx {place}/other nfs rw 0 0\nx {place[:-1]} nfs rw 0 0\n"
    mounts.write_text(f"{others}here:/there {place} {kind} rw 0 0\n")
    monkeypatch.setattr("dr_validate.files.MOUNTS", mounts)
    check_start(build(composed(*arguments)))
    assert (f"state_dir is on {kind}: its ledger (SQLite) and locks are safe for one machine" in caplog.text) == is_careful


def test_without_faiss_torch_searches_and_one_line_says_so(
    arguments: list[str], caplog: pytest.LogCaptureFixture, no_faiss: None
) -> None:
    caplog.set_level(logging.INFO, "dr_validate")
    check_start(build(composed(*arguments)))
    said = [record.message for record in caplog.records if "faiss" in record.message]
    assert said == [
        "index=flat: faiss is not installed, so index=torch searches, with the same ranking (for faiss: "
        "pip install 'dr_validate[cpu]' or pip install 'dr_validate[gpu]')"
    ]


def test_without_faiss_the_ranking_is_the_same(monkeypatch: Monkey) -> None:
    rng = np.random.default_rng(3)
    queries, documents = rng.standard_normal((2, 40, 8)).astype(np.float32)
    documents[5:15] = documents[3]  # ties

    def ranking(index: FlatIndex | TorchIndex) -> Any:
        search = index.open(queries, 10, np.arange(40)[::-1].copy(), "cpu")
        search.add(documents, np.arange(40))
        return search.top()

    with_faiss = ranking(FlatIndex())
    monkeypatch.setitem(sys.modules, "faiss", None)
    without = ranking(FlatIndex())
    assert np.array_equal(with_faiss.documents, without.documents)
    assert np.array_equal(with_faiss.scores, without.scores)


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """By the name of the check."""
    found = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    return {line[10:19].strip(): f"{line[:9].strip()}: {line[20:]}" for line in found}


def test_a_doctor_without_a_source_or_data_set_looks_at_the_rest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = composed("task=doctor", "tracker=none", "device=cpu", f"state_dir={tmp_path}")
    config["dataset"] = None
    assert examine(config) == 0
    found = lines(capsys)
    assert found["source"] == "not given: source.path: required, no default (set it as source.path=VALUE)"
    assert found["dataset"].startswith("not given: dataset: required, no default; choose one of dataset=beir")
    for name in ("packages", "device", "search", "disk", "tracker"):
        assert found[name].startswith("ok: "), found


def test_what_is_given_wrongly_is_still_a_problem(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="dataset.num_queries: "):
        examine(composed("task=doctor", "dataset=pydoc", "dataset.num_queries=0", f"state_dir={tmp_path}"))


def test_the_way_out_keeps_its_brackets(arguments: list[str], capsys: pytest.CaptureFixture[str], no_faiss: None) -> None:
    assert examine(composed(*arguments, "index=factory", "index.spec=Flat")) == 2
    assert "pip install 'dr_validate[cpu]'" in lines(capsys)["search"]


def test_a_device_that_is_not_there_is_refused_before_the_data_are_read(dr_validate: Any, arguments: list[str]) -> None:
    result = dr_validate(*arguments, "device=cuda:93", "state_dir=state")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("device: got 'cuda:93'")
    assert not (dr_validate.folder / "state" / "datasets").exists()
