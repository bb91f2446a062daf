"""What may be read from a checkpoint folder at all: JSON and safetensors, nothing that runs, nothing outside it."""

import json
from pathlib import Path
from typing import Any

from dr_validate.errors import CheckpointError
from dr_validate.files import two_sets_of_weights

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Written by trainers beside the weights; their absence or presence says nothing about the weights.
NOT_WEIGHTS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth"}
USE_STEP_VERSION = "use the version with the alias 'checkpoint_global_step_N' instead: it holds the whole folder"


def check_no_link_leaves(folder: Path) -> None:
    """Raise CheckpointError if anything in `folder` is a symbolic link to something outside it."""
    root = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise CheckpointError(f"{path}: a link that leaves the checkpoint folder; copy the file into the folder")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} if there is no such file; CheckpointError if it is something else."""
    content = _read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The JSON list of objects in `path`; CheckpointError if it is something else."""
    content = _read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise CheckpointError(f"{path}: expected a list of JSON objects")
    return content


def child(folder: Path, name: object, place: str) -> Path:
    """`folder / name`, refused where `name` is no relative path that stays inside `folder`."""
    path = folder / str(name)
    if not isinstance(name, str) or not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{place}: got {name!r}, expected a path inside the checkpoint folder")
    return path


def check_no_code(folder: Path) -> None:
    """Raise CheckpointError where a configuration wants Python code from the checkpoint to run."""
    for name in ("config.json", "tokenizer_config.json"):
        auto_map = read_object(folder / name).get("auto_map")
        if auto_map:
            raise CheckpointError(
                f"{folder / name}: auto_map {auto_map!r} asks to run code that came with the checkpoint; remote code is "
                "never run. Save the model with a class of transformers and without auto_map"
            )


def check_weights(folder: Path) -> None:
    """Raise CheckpointError unless `folder` holds safetensors weights, whole, inside it and of one model."""
    _check_one_set(folder)
    if (folder / "model.safetensors").is_file():
        return
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise CheckpointError(_no_weights(folder, "model.safetensors"))
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: no weight_map")
    for shard in sorted({str(name) for name in shards.values()}):
        if not child(folder, shard, f"{index}: weight_map").is_file() or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index}: names the shard {shard!r}, which is not a safetensors file in the folder")


def check_adapter_weights(folder: Path) -> None:
    """Raise CheckpointError unless `folder` holds adapter weights as safetensors, and no others."""
    _check_one_set(folder)
    if not (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(_no_weights(folder, "adapter_model.safetensors"))


def _check_one_set(folder: Path) -> None:
    if two := two_sets_of_weights([path.name for path in folder.glob("*")]):
        raise CheckpointError(f"{folder}: {two}")


def _no_weights(folder: Path, wanted: str) -> str:
    pickles = sorted(
        path.name
        for pattern in PICKLES
        for path in folder.glob(pattern)
        if path.name not in NOT_WEIGHTS and not path.name.startswith("rng_state")
    )
    if pickles:
        return (
            f"{folder}: weights only as pickles ({', '.join(pickles[:3])}), which can run code and are never loaded; "
            f"save them as {wanted} (save_pretrained of transformers 5 does)"
        )
    return f"{folder}: no {wanted}"


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
