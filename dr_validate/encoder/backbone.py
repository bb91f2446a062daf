"""The transformer of a tower: its weights, an adapter over them, its tokenizer, how long a text may be. JSON only."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_validate.encoder.checks import (
    USE_STEP_VERSION,
    check_adapter_config,
    check_adapter_weights,
    check_is_dense,
    check_no_code,
    check_no_code_in,
    check_normalizer,
    check_sizes,
    check_weights,
    objects,
    output_weights,
    read_object,
    some,
    unused_weights,
    weight_shapes,
)
from dr_validate.encoder.spec import EncoderSpec, TowerSpec, contradiction
from dr_validate.errors import CheckpointError, NotStated
from dr_validate.values import Side

NOT_OF_THE_MODEL = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "use_cache"}
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)  # fmt: skip
ENCODER_OF = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
# The others put virtual tokens before the text or need more than the weights of the adapter.
ADAPTERS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA")
log = logging.getLogger(__name__)
# These models number positions from pad_token_id + 1 on, so that many rows of the table are never a text's.
PADDING_OFFSET_MODELS = {
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
NO_LIMIT = 1_000_000  # tokenizers without a limit write 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """The transformer of a tower; `weights` is the base's folder where there is an adapter, `config` what is in its
    config.json, `config_file`; the other fields as in TowerSpec."""

    weights: Path
    adapter: Path | None
    tokenizer: Path
    config_file: Path
    config: Mapping[str, Any]
    weights_prefix: str
    warnings: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """Its class and size in the words of config.json: `BertModel, num_hidden_layers=6, hidden_size=384`."""
        names = self.config.get("architectures")
        named = names[0] if isinstance(names, list) and names else self.config["model_type"]
        sizes = [f"{key}={self.config[key]}" for key in ("num_hidden_layers", "hidden_size") if key in self.config]
        return ", ".join([str(named), *sizes])

    def tower(
        self, side: Side, stated: EncoderSpec, module: Mapping[str, Any], *, warnings: Sequence[str] = (), **others: Any
    ) -> TowerSpec:
        """One side with this transformer; `module`: see `max_length`; `others`: the fields of TowerSpec that are not of it."""
        length, origin = max_length(stated, side, module, self.tokenizer, self.config)
        return TowerSpec(
            weights=self.weights,
            adapter=self.adapter,
            tokenizer=self.tokenizer,
            config=self.config_file,
            architecture=self.architecture,
            max_length=length,
            max_length_from=origin,
            warnings=(*self.warnings, *warnings, *_length_warnings(stated, side, module, self.tokenizer)),
            **{"weights_prefix": self.weights_prefix, **others},
        )


def read_backbone(folder: Path, root: Path, stated: EncoderSpec) -> Backbone:
    """The transformer in `folder`; a tokenizer may also lie in `root`, the checkpoint's own folder.

    Raises CheckpointError for what must not or cannot be loaded.
    """
    adapter = folder if (folder / "adapter_config.json").is_file() else None
    weights = _base_of(folder, root, stated) if adapter is not None else folder
    for place in {folder, weights}:
        check_no_code(place, native=stated.native)
    config_file = stated.config or weights / "config.json"
    check_no_code_in(config_file, native=stated.native)
    if not config_file.is_file():
        raise CheckpointError(_no_config(weights))
    check_weights(weights)
    config = read_object(config_file)
    _check_config(config, config_file)
    check_is_dense(weights, config, weight_shapes(weights))
    check_sizes(config, config_file, weight_shapes(weights))
    tokenizer = stated.tokenizer or _tokenizer_in(folder, root, weights)
    check_no_code(tokenizer, native=stated.native)
    file = tokenizer / "tokenizer.json"
    check_normalizer(read_object(file), file)  # read here, as the tokenizers library raises a bare Exception on a broken file
    warnings = _other_config(config, weights / "config.json", stated)
    warnings += unused_weights(weight_shapes(weights), str(config["model_type"]))
    if stated.weights_prefix:
        warnings += _left_out(weights, stated.weights_prefix, str(config["model_type"]))
    return Backbone(
        weights=weights,
        adapter=adapter,
        tokenizer=tokenizer,
        config_file=config_file,
        config=config,
        weights_prefix=stated.weights_prefix or "",
        warnings=tuple(warnings),
    )


def _other_config(config: Mapping[str, Any], own: Path, stated: EncoderSpec) -> list[str]:
    """A warning where the stated configuration is of another model than the checkpoint's own."""
    said = read_object(own)
    if stated.config is None or not said:
        return []
    differ = sorted(key for key in said.keys() & config.keys() - NOT_OF_THE_MODEL if said[key] != config[key])
    return contradiction("config", str(stated.config), ", ".join(f"{key}={said[key]!r}" for key in differ) or None)


def _left_out(weights: Path, prefix: str, model_type: str) -> list[str]:
    """A warning where what does not have the prefix may make the vector. Raises CheckpointError where nothing has it."""
    shapes = weight_shapes(weights)
    others = [name for name in shapes if not name.startswith(prefix)]
    if len(others) == len(shapes):
        there = sorted({f"{name.partition('.')[0]}." for name in shapes})
        raise CheckpointError(
            f"encoder.weights_prefix: got {prefix!r}, but no weight in {weights} begins so; what they begin with: {some(there)}"
        )
    if not (found := output_weights(shapes, others, model_type)):
        return []
    return [f"encoder.weights_prefix={prefix!r} leaves out {len(found)} weights that may make the vector: {some(found)}"]


def _base_of(folder: Path, root: Path, stated: EncoderSpec) -> Path:
    path = folder / "adapter_config.json"
    config = read_object(path)
    check_adapter_weights(folder)
    kind = config.get("peft_type")
    if kind not in ADAPTERS:
        raise CheckpointError(f"{path}: peft_type: got {kind!r}, expected one of {list(ADAPTERS)}")
    if config.get("megatron_config"):
        raise CheckpointError(f"{path}: megatron_config names a module to import; remove it, code is never loaded from a name")
    check_adapter_config(config, folder)
    base = stated.base_model or _base_inside(folder, root, config.get("base_model_name_or_path"))
    if base is None:
        named = config.get("base_model_name_or_path")
        raise NotStated(
            f"{path}: the adapter's base model {named!r} is not a folder inside the checkpoint, others are not "
            "followed by a name, and nothing is downloaded; set encoder.base_model to the folder of the base model"
        )
    if (base / "adapter_config.json").is_file():
        raise CheckpointError(f"{base}: the base of the adapter in {folder} is an adapter itself; merge it into its base first")
    return base


def _base_inside(folder: Path, root: Path, named: object) -> Path | None:
    """The base that an adapter names, where it lies below the checkpoint: a name counts from either's folder."""
    if not isinstance(named, str) or not named:
        return None
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no name of a folder at all
        places = [(place / named).resolve() for place in (folder, root)]
        return next((place for place in places if place.is_relative_to(root.resolve()) and place.is_dir()), None)
    return None


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    if not config.get("model_type"):
        raise CheckpointError(f"{path}: no model_type, so the architecture is not known; save it with save_pretrained")
    if config.get("is_encoder_decoder") and config["model_type"] not in ENCODER_OF:
        raise CheckpointError(
            f"{path}: model_type {config['model_type']!r} is an encoder-decoder; only the encoders of "
            f"{sorted(ENCODER_OF)} are supported. Save its encoder as a model of its own"
        )
    if any(part.get("quantization_config") for part in objects(config)):
        raise CheckpointError(
            f"{path}: quantization_config: quantized weights are not supported; save them as float32 or bfloat16"
        )


def _tokenizer_in(*places: Path) -> Path:
    for place in places:
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            return place
    raise CheckpointError(
        f"{places[0]}: no tokenizer in the checkpoint (none of {', '.join(TOKENIZER_FILES)}); set encoder.tokenizer to the "
        "folder of the tokenizer that the training used"
    )


def _no_config(folder: Path) -> str:
    if any(folder.glob("*.safetensors")):
        return (
            f"{folder}: weights without config.json: a bare state dict, as the Trainer saves a module of one's own, and as the "
            "version 'final_model' of a sentence-transformers or Tevatron training is. It does not say what model it is: set "
            "encoder.config and encoder.tokenizer to the folder of the model that was trained, and encoder.weights_prefix to "
            f"what the names of its weights begin with; or {USE_STEP_VERSION}"
        )
    return f"{folder}: not a model: no config.json, modules.json, adapter_config.json or query_model/ in it"


def max_length(
    stated: EncoderSpec, side: Side, module: Mapping[str, Any], tokenizer: Path, config: Mapping[str, Any]
) -> tuple[int, str]:
    """The maximum length of one side, with special tokens, and where it comes from, in words.

    `module` is sentence_bert_config.json ({} for other folders), `config` config.json of the transformer.
    """
    length, origin = stated.max_length(side), f"encoder.{side}_max_length"
    if length is None:
        length, origin = _said_length(side, module, tokenizer)
    places = positions(config)
    if places is not None and (length is None or length > places):
        if length is not None:
            log.info("%s: maximum length %d (%s) cut to the %d positions of the model", tokenizer.name, length, origin, places)
            return places, f"cut from {length} ({origin}) to the positions of the model"
        return places, "positions of the model"
    if length is None:
        raise NotStated(
            f"{tokenizer}: neither the tokenizer nor the model says how long a text may be; set encoder.{side}_max_length"
        )
    return length, origin


def positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens the position table of the model can number, None if it has none."""
    table = next((config[key] for key in ("max_position_embeddings", "n_positions") if key in config), None)
    if not isinstance(table, int) or table <= 0 or config.get("model_type") in {"t5", "mt5", "umt5"}:
        return None  # T5 numbers distances, not places
    if config.get("model_type") in PADDING_OFFSET_MODELS:
        padding = config.get("pad_token_id")
        return table - ((padding if isinstance(padding, int) else 1) + 1)
    return table


def _length_warnings(stated: EncoderSpec, side: Side, module: Mapping[str, Any], tokenizer: Path) -> list[str]:
    """Where the stated length is not the one that the checkpoint was trained with, or more than its tokenizer says it takes."""
    configured, (said, origin) = stated.max_length(side), _said_length(side, module, tokenizer)
    if said is None or configured is None or (not _in_module(side, module) and configured <= said):
        return []
    return contradiction(f"{side}_max_length", configured, said, origin)


def _in_module(side: Side, module: Mapping[str, Any]) -> str | None:
    return next((key for key in (f"{side}_length", "max_seq_length") if isinstance(module.get(key), int)), None)


def _said_length(side: Side, module: Mapping[str, Any], tokenizer: Path) -> tuple[int | None, str]:
    """By the checkpoint itself."""
    if key := _in_module(side, module):
        return int(module[key]), f"{key} of sentence_bert_config.json"
    limit = read_object(tokenizer / "tokenizer_config.json").get("model_max_length")
    if isinstance(limit, int | float) and 0 < limit < NO_LIMIT:
        return int(limit), "model_max_length of the tokenizer"
    return None, ""
