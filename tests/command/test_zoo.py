"""A zoo of bad input: each is one clear reason in reports.jsonl or exit code 2; nothing is lost, the rest is validated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteCheckpoint = Callable[..., Path]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def nan_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][:] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lost_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def wrong_hidden_size(folder: Path) -> None:
    edit_json(folder / "config.json", hidden_size=48)


def remote_code(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_evil.EvilModel"})
    (folder / "modeling_evil.py").write_text("raise SystemExit('remote code ran')")


def link_out(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder.parent.parent / "elsewhere.safetensors")


def bare_state_dict(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


ZOO: dict[Callable[[Path], None], tuple[str, str]] = {
    truncated: ("skipped", "model.safetensors"),
    pickle_only: ("skipped", "safetensors"),
    missing_shard: ("skipped", "model-00002-of-00002.safetensors"),
    no_tokenizer: ("failed", "encoder.tokenizer"),
    nan_weights: ("failed", "NaN"),
    lost_weight: ("failed", "encoder.layer.0.output.dense.weight"),
    wrong_hidden_size: ("failed", "48"),
    remote_code: ("failed", "auto_map"),
    link_out: ("skipped", "link"),
    bare_state_dict: ("skipped", "config.json"),
    broken_config: ("skipped", "config.json"),
}


def arguments(checkpoints: Path, collection: Path) -> list[str]:
    return [
        f"source.path={checkpoints}",
        "dataset=beir",
        f"dataset.path={collection}",
        "tracker=none",
        "watch.mode=once",
        "encoder.pooling=mean",
        "encoder.normalize=true",
    ]


def test_each_broken_checkpoint_has_its_reason_and_the_good_ones_are_validated(
    dr_validate: Any, tmp_path: Path, collection: Path, write_checkpoint: WriteCheckpoint
) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step, spoil in enumerate(ZOO, start=1):
        spoil(write_checkpoint(checkpoints / spoil.__name__, seed=step, step=step))
    write_checkpoint(checkpoints / "good", seed=98, step=98)
    write_checkpoint(checkpoints / "good_too", seed=99, step=0)
    (checkpoints / "checkpoint-97").mkdir()
    result = dr_validate(*arguments(checkpoints, collection))
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    reports = {r["checkpoint"]["name"]: r for r in dr_validate.reports()}
    for spoil, (status, reason) in ZOO.items():
        report = reports[spoil.__name__]
        assert (report["status"], report["metrics"]) == (status, {}), report
        assert reason in report["error"], report
    assert reports["checkpoint-97"]["status"] == "skipped"
    assert {name for name, r in reports.items() if r["status"] == "done"} == {"good", "good_too"}
    assert len(reports) == len(dr_validate.reports()) == len(ZOO) + 3


def test_without_pooling_nothing_is_guessed(
    dr_validate: Any, tmp_path: Path, collection: Path, write_checkpoint: WriteCheckpoint
) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / "checkpoints" / f"checkpoint-{step}", seed=step, step=step)
    stated = [a for a in arguments(tmp_path / "checkpoints", collection) if not a.startswith("encoder.")]
    for mode in ("once", "follow"):
        result = dr_validate(*stated, f"watch.mode={mode}")
        assert result.returncode == 2, result.stderr
        assert result.stderr.count("set encoder.pooling and encoder.normalize") == 1
        assert result.stderr.splitlines()[-1].startswith("checkpoint-2: ")
    assert dr_validate.reports() == []
    assert "failed" not in dr_validate("task=status").stdout


def unreadable_line(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as stream:
        stream.write('{"_id": "d99", "text": \n')


@pytest.mark.parametrize(
    ("spoil", "more", "said"),
    [
        (unreadable_line, [], "corpus.jsonl:49"),
        (None, ["device=cuda:5"], "device: got 'cuda:5'"),
        (None, ["sampler=random", "sampler.fraction=0.01"], "fraction"),
        (None, ["sampler=run_pool", "sampler.run=no_such.run"], "no_such.run"),
    ],
    ids=["unreadable-line", "device", "budget", "run-file"],
)
def test_what_is_wrong_for_every_checkpoint_ends_in_exit_code_2(
    spoil: Callable[[Path], None] | None,
    more: list[str],
    said: str,
    dr_validate: Any,
    tmp_path: Path,
    collection: Path,
    write_checkpoint: WriteCheckpoint,
) -> None:
    write_checkpoint(tmp_path / "checkpoints" / "checkpoint-1", step=1)
    if spoil is not None:
        spoil(collection)
    result = dr_validate(*arguments(tmp_path / "checkpoints", collection), *more)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert dr_validate.reports() == []


def test_a_full_disk_ends_in_a_message_and_the_next_start_goes_on(
    dr_validate: Any, tmp_path: Path, collection: Path, write_checkpoint: WriteCheckpoint, small_disk: Path
) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / "checkpoints" / f"checkpoint-{step}", seed=step, step=step)
    command = [*arguments(tmp_path / "checkpoints", collection), f"state_dir={small_disk}"]
    assert dr_validate(*command, "watch.order=oldest_first", "watch.timeout_s=1000").returncode == 0  # it fits
    write_checkpoint(tmp_path / "checkpoints" / "checkpoint-3", seed=3, step=3)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError), ballast.open("wb", buffering=0) as stream:
        while stream.write(b"x" * 4096):
            pass
    full = dr_validate(*command)
    assert full.returncode == 2, full.stderr
    assert "disk" in full.stderr.lower()
    assert "Traceback" not in full.stderr
    ballast.unlink()
    freed = dr_validate(*command)
    assert freed.returncode == 0, freed.stderr
    lines = (small_disk / "reports.jsonl").read_text().splitlines()
    assert [json.loads(line)["checkpoint"]["step"] for line in lines] == [1, 2, 3]


def test_nothing_planted_in_the_environment_is_written(
    dr_validate: Any, tmp_path: Path, collection: Path, write_checkpoint: WriteCheckpoint
) -> None:
    secret = "5ecre7" * 7
    dr_validate.environment |= {"WANDB_API_KEY": secret, "HF_TOKEN": f"hf_{secret}"}
    write_checkpoint(tmp_path / "checkpoints" / "checkpoint-1", step=1)
    offline = [a for a in arguments(tmp_path / "checkpoints", collection) if a != "tracker=none"]
    result = dr_validate(*offline, "tracker=wandb", "tracker.mode=offline", "tracker.project=p")
    assert result.returncode == 0, result.stderr
    assert secret not in result.stdout + result.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" for path in written), written
    assert not [path for path in written if secret.encode() in path.read_bytes()]
