"""What may be read from a checkpoint folder at all: JSON and safetensors, nothing that runs, nothing outside it."""

import json
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.errors import CheckpointError
from dr_validate.files import two_sets_of_weights

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
log = logging.getLogger(__name__)

OF_EVERY_BERT = re.compile(r"(.*\.)?(pooler\.dense|position_ids)(\..*)?")
# Weights that no vector is made from: of heads that predict tokens, of BERT's pooler, and numbers that are no weights.
WITHOUT_USE = re.compile(
    r"(.*\.)?(pooler\.dense|cls\.predictions|cls\.seq_relationship|lm_head|vocab_transform|vocab_layer_norm|vocab_projector|"
    r"generator_predictions|generator_lm_head|discriminator_predictions|predictions|sop_classifier|lm_predictions|"
    r"mask_predictions|pred_layer|position_ids|inv_freq|masked_bias)(\..*)?"
)
WITHOUT_USE_IN = {"modernbert": re.compile(r"(head\.(dense|norm)|decoder)\..*")}  # names too plain to be known elsewhere
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
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        check_no_code_in(path)


def check_no_code_in(path: Path) -> None:
    """The same for one file."""
    auto_map = read_object(path).get("auto_map")
    if auto_map:
        raise CheckpointError(
            f"{path}: auto_map {auto_map!r} asks to run code that came with the checkpoint; remote code is "
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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`, which check_weights has passed."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    shards = read_object(folder / "model.safetensors.index.json")["weight_map"]
    return [folder / name for name in sorted(set(shards.values()))]


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in `folder` by name; no weight is read."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, "np") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: safetensors cannot load it: {error}") from error
    return found


def output_weights(shapes: Mapping[str, Sequence[int]], unused: Collection[str], model_type: str) -> list[str]:
    """Those of the `unused` weights that may belong to how a vector is made: more than one number, and not known as useless."""
    plain = WITHOUT_USE_IN.get(model_type)
    known = [name for name in unused if WITHOUT_USE.fullmatch(name) or (plain is not None and plain.fullmatch(name))]
    return sorted(name for name in set(unused) - set(known) if math.prod(shapes.get(name, (2,))) > 1)


def check_unused(folder: Path, unused: Collection[str], model_type: str) -> None:
    """Raise CheckpointError where encoding would leave out weights that may make the vector; log those that do not."""
    if not unused:
        return
    shapes = weight_shapes(folder)
    if found := output_weights(shapes, unused, model_type):
        listed = some([f"{name} {shapes.get(name, '')}".rstrip() for name in found])
        raise CheckpointError(
            f"{folder}: cannot load it whole: its config.json has no place for {len(found)} weights of the file: {listed}. If "
            "they make the vector (a head of its own), another model would be scored: save it in sentence-transformers' form, "
            "with a Dense module. If they do not, save it without them, or set encoder.weights_prefix to what the names "
            "of the others begin with"
        )
    if heads := sorted(name for name in unused if not OF_EVERY_BERT.fullmatch(name)):
        log.info("%s: %d weights that encoding does not use, such as %s", folder.name, len(heads), heads[0])


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


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
