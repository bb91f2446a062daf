"""What may be read from a checkpoint folder at all: JSON and safetensors, nothing that runs, nothing outside it."""

import base64
import json
import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.errors import CheckpointError
from dr_validate.files import two_sets_of_weights

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
log = logging.getLogger(__name__)

# BERT has its pooler whether it was trained or not, and the others are numbers that are no weights.
NO_WEIGHT = re.compile(r"(.*\.)?(pooler\.dense|position_ids|inv_freq|masked_bias)(\..*)?")
# Weights that no vector is made from: of heads that predict tokens, of BERT's pooler, and numbers that are no weights.
WITHOUT_USE = re.compile(
    r"(.*\.)?(pooler\.dense|cls\.predictions|cls\.seq_relationship|lm_head|vocab_transform|vocab_layer_norm|vocab_projector|"
    r"generator_predictions|generator_lm_head|discriminator_predictions|predictions|sop_classifier|lm_predictions|"
    r"mask_predictions|pred_layer|position_ids|inv_freq|masked_bias)(\..*)?"
)
WITHOUT_USE_IN = {"modernbert": re.compile(r"(head\.(dense|norm)|decoder)\..*")}  # names too plain to be known elsewhere
# Written by trainers beside the weights; their absence or presence says nothing about the weights.
NOT_WEIGHTS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth"}
# What transformers computes itself; every other value of these keys may be a kernel, which is fetched from the hub and run.
CHOOSES_KERNELS = re.compile(r"_*(attn|experts)_implementation(_internal)?")
OWN_KERNELS = (None, "eager", "sdpa", "batched_mm", "grouped_mm")
# Keys of config.json that say how many modules are made, and how wide they are, in the words of most architectures.
COUNTS = re.compile(
    r"(n|num)_(\w+_)?(layers?|blocks?|groups?|experts?)|(encoder|decoder)_layers|inner_group_num|depths?", re.ASCII
)
WIDTHS = {"vocab_size", "type_vocab_size", "hidden_size", "intermediate_size", "embedding_size"}
WIDTHS |= {"d_model", "d_ff", "dim", "hidden_dim", "n_embd", "n_inner", "ffn_dim"}
MOST_MODULES = 1024  # of one kind: made in a second or two, and then what they hold is compared with the file
MOST_GROWTH = 512  # of a text; SentencePiece's own tables have 18, and some replacements beside them
ADAPTER_WEIGHTS = "adapter_model.safetensors"
RANKED = ("LORA", "ADALORA", "LOHA", "VERA")  # adapters whose rank is a dimension of their weights
# No repeated group, no reference: at most a power of the length of a module's name, of which MOST_STARS is the exponent.
QUICK_PATTERN = re.compile(r"(\(\?:|\\[.wd]|[\w.|()^$\[\]-]|(?<![)*+])[*+])*", re.ASCII)
STARS = re.compile(r"[*+]")
MOST_STARS = 5
USE_STEP_VERSION = (
    "use the folder that training saved whole (of W&B artifacts: the version with the alias 'checkpoint_global_step_N')"
)


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


def check_no_code(folder: Path, *, native: bool = False) -> None:
    """Raise CheckpointError where a configuration wants Python code from the checkpoint to run. `native`: see the next one."""
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        check_no_code_in(path, native=native and path.name == "config.json")


def check_no_code_in(path: Path, *, native: bool = False) -> None:
    """The same for one file, at any depth of it. `native`: its auto_map is passed over, and transformers' own class taken."""
    content = read_object(path)
    for part in objects(content):
        if part.get("auto_map") and not (native and part is content):
            raise CheckpointError(
                f"{path}: auto_map {part['auto_map']!r} asks to run code that came with the checkpoint; remote code is "
                "never run. Save the model with a class of transformers and without auto_map, or, where transformers itself "
                f"has the class of model_type {content.get('model_type')!r}, set encoder.native=true"
            )
        for key in filter(CHOOSES_KERNELS.fullmatch, part):
            parts = list(part[key].values()) if isinstance(part[key], dict) else [part[key]]
            if other := [choice for choice in parts if choice not in OWN_KERNELS]:
                raise CheckpointError(
                    f"{path}: {key}: got {other[0]!r}, which may name code of a hub, never fetched and never run; expected "
                    "'eager' or 'sdpa': remove the key, no vector depends on it"
                )


def objects(content: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value, however deep."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
        waiting.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def check_sizes(config: Mapping[str, Any], path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise CheckpointError where config.json has more layers or wider ones than weights of these shapes can fill.

    To be called before a module is made: a model of a billion layers would take all memory before any shape is compared.
    """
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    for part in objects(config):
        for key, value in part.items():
            most = max(MOST_MODULES, len(shapes)) if COUNTS.fullmatch(key) else widest if key in WIDTHS else None
            numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]
            if most is not None and max(numbers, default=0) > most:
                raise CheckpointError(
                    f"{path}: {key}: got {max(numbers)}, but the weights are {len(shapes)} tensors with no dimension over "
                    f"{widest}: the configuration is of another model; save both again"
                )


def check_normalizer(content: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError where the normalizer of `tokenizer.json` could make a text grow beyond all bounds."""
    growth = 1.0
    for part in objects(content.get("normalizer")):
        pattern, text = part.get("pattern"), part.get("content")
        if isinstance(text, str) and isinstance(pattern, dict):  # Replace; a regular expression may match nothing at all
            literal = pattern.get("String")
            growth *= max(1.0, len(text) / len(literal)) if literal else 1 + len(text)
        growth *= max(1, len(str(part.get("prepend", ""))))
        growth *= max(1, _longest_replacement(part.get("precompiled_charsmap"), path))
    if growth > MOST_GROWTH:
        raise CheckpointError(
            f"{path}: normalizer: its replacements may make a text {growth:.3g} times as long, expected at most {MOST_GROWTH}; "
            "save the tokenizer that the training used again, or set encoder.tokenizer"
        )


def _longest_replacement(charsmap: object, path: Path) -> int:
    """Characters that one may become by SentencePiece's table: a trie, its size before it, then texts that end with zero."""
    if not isinstance(charsmap, str) or not charsmap:
        return 0
    try:
        table = base64.b64decode(charsmap)
        texts = table[4 + int.from_bytes(table[:4], "little") :].decode(errors="replace")
    except ValueError as error:
        raise CheckpointError(f"{path}: precompiled_charsmap: not a table of SentencePiece ({error})") from error
    return max(map(len, texts.split("\0")))


def check_is_dense(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise CheckpointError, by name, for a model that does not make one dense vector of each text."""
    library = read_object(folder / "config_sentence_transformers.json").get("model_type")
    modules = read_objects(folder / "modules.json") if (folder / "modules.json").is_file() else []
    types = " ".join(str(entry.get("type")) for entry in modules)
    named = config.get("architectures")
    classes = " ".join(map(str, named)) if isinstance(named, list) else ""
    found = None
    if (
        library == "CrossEncoder"
        or "cross_encoder" in types
        or ("ForSequenceClassification" in classes and not {"embeddingHead.weight"} & shapes.keys())
    ):
        found = "a cross-encoder, which scores a query and a document together"
    elif library == "SparseEncoder" or "sparse_encoder" in types or "Splade" in classes + types:
        found = "SPLADE or another sparse encoder, whose vectors are words with weights"
    elif library == "MultiVectorEncoder" or "multi_vector" in types or "pylate." in types or "ColBERT" in classes:
        found = "ColBERT or another late-interaction model, which has a vector for each token"
    if found:
        said = library or classes or types
        raise CheckpointError(
            f"{folder}: {said}: this is {found}; only encoders with one dense vector for each text can be validated. If it is "
            "one, save the encoder alone (AutoModel, save_pretrained)"
        )


def check_adapter_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError where adapter_config.json asks for more than its weights hold, or for patterns that never end."""
    path = folder / "adapter_config.json"
    if config.get("layer_replication"):
        raise CheckpointError(f"{path}: layer_replication is not supported; merge the adapter into its base")
    named = [config.get(key) for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")]
    named += [list(config[key]) for key in ("rank_pattern", "alpha_pattern") if isinstance(config.get(key), dict)]
    for pattern in [name for names in named for name in (names if isinstance(names, list) else [names])]:
        if isinstance(pattern, str) and (not QUICK_PATTERN.fullmatch(pattern) or len(STARS.findall(pattern)) > MOST_STARS):
            raise CheckpointError(
                f"{path}: got the regular expression {pattern[:100]!r}, which could take forever; name the modules in a list"
            )
    if config.get("peft_type") not in RANKED:
        return
    shapes = weight_shapes(folder, ADAPTER_WEIGHTS)
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    pattern = config.get("rank_pattern")
    ranks = [config.get(key) for key in ("r", "init_r")] + list(pattern.values() if isinstance(pattern, dict) else ())
    if wrong := [rank for rank in ranks if isinstance(rank, int) and rank > max(widest, MOST_MODULES)]:
        raise CheckpointError(f"{path}: got the rank {wrong[0]}, but no dimension of its weights is over {widest}")


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
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(_no_weights(folder, ADAPTER_WEIGHTS))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`, which check_weights has passed."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    shards = read_object(folder / "model.safetensors.index.json")["weight_map"]
    return [folder / name for name in sorted(set(shards.values()))]


def weight_shapes(folder: Path, name: str | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in `folder`, of its model or in the file `name`, by their names; no weight is read."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder) if name is None else [folder / name]:
        try:
            with safe_open(path, "np") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: safetensors cannot load it: {error}") from error
    return found


def output_weights(shapes: Mapping[str, Sequence[int]], unused: Collection[str], model_type: str) -> list[str]:
    """Those of the `unused` weights that may belong to how a vector is made: more than one number, and not known as useless."""
    known = _without_use(unused, model_type)
    return sorted(name for name in set(unused) - set(known) if math.prod(shapes.get(name, (2,))) > 1)


def unused_weights(shapes: Mapping[str, Sequence[int]], model_type: str) -> list[str]:
    """A warning where the file has weights that are known to make no vector, such as the head of a language model."""
    if not (found := sorted(name for name in _without_use(shapes, model_type) if not NO_WEIGHT.fullmatch(name))):
        return []
    return [f"{len(found)} weights of the file make no vector and are not used: {some(found)}"]


def check_unused(folder: Path, unused: Collection[str], model_type: str) -> None:
    """Raise CheckpointError where encoding would leave out weights that may make the vector."""
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


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _without_use(names: Iterable[str], model_type: str) -> list[str]:
    plain = WITHOUT_USE_IN.get(model_type)
    return [name for name in names if WITHOUT_USE.fullmatch(name) or (plain is not None and plain.fullmatch(name))]


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
    except (ValueError, RecursionError) as error:  # also nested too deep, and numbers of thousands of digits
        raise CheckpointError(f"{path}: not JSON ({error})") from error
