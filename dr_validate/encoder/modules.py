"""Read a sentence-transformers folder (`modules.json`) as sentence-transformers 6.2 does, without importing it. JSON only."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.encoder.backbone import NO_LIMIT, read_backbone
from dr_validate.encoder.checks import (
    USE_STEP_VERSION,
    check_is_dense,
    check_normalizer,
    check_weights,
    child,
    read_object,
    read_objects,
)
from dr_validate.encoder.spec import EncoderSpec, Head, PoolingName, TowerSpec, contradiction
from dr_validate.errors import CheckpointError, NotStated
from dr_validate.values import Side

log = logging.getLogger(__name__)
POOLING_NAMES: Mapping[str, PoolingName] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# Before version 6, in the order in which the library concatenates them.
POOLING_FLAGS: Mapping[str, PoolingName] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
# Names of the prompts that `encode_query` and `encode_document` take.
PROMPT_NAMES: Mapping[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
ACTIVATIONS = ("GELU", "Identity", "ReLU", "Sigmoid", "SiLU", "Tanh")
SUPPORTED = "Transformer, Pooling, then any of Dense, LayerNorm, Normalize, Dropout"
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Settings of the Transformer module that say what we do anyway, or nothing about the vectors.
HARMLESS = {"max_seq_length", "do_lower_case", "query_length", "document_length", "unpad_inputs"}
EXPECTED = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def modules_tower(folder: Path, root: Path, side: Side, stated: EncoderSpec) -> TowerSpec:
    """One side of the sentence-transformers model in `folder`; raises CheckpointError for modules we do not know."""
    check_is_dense(folder, {}, {})
    parts = [routed for part in _modules(folder) for routed in _routed(*part, side)]
    if [name for name, _ in parts[:1]] == ["StaticEmbedding"]:
        return _static_tower(folder, parts, side, stated)
    if [name for name, _ in parts[:2]] != ["Transformer", "Pooling"]:
        raise CheckpointError(f"{folder / 'modules.json'}: got {[name for name, _ in parts]}, expected {SUPPORTED}")
    settings = _transformer_settings(parts[0][1])
    backbone = read_backbone(parts[0][1], root, stated)
    pooling, include_prompt = _pooling(parts[1][1])
    library = read_object(folder / "config_sentence_transformers.json")
    if library.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise CheckpointError(
            f"{folder}: model_type {library['model_type']!r} is not a model with one dense vector for each text"
        )
    heads = tuple(head for name, path in parts[2:] if (head := _head(name, path)) is not None)
    said = {"pooling": "+".join(pooling), "normalize": _is_normalized(heads, library)}
    heads, normalize = _normalization(heads, library, stated, folder)
    return backbone.tower(
        side,
        stated,
        settings,
        lower_case=bool(settings.get("do_lower_case", False)),
        pooling=pooling if stated.pooling is None else (stated.pooling,),
        include_prompt=include_prompt,
        heads=heads,
        truncate_dim=library.get("truncate_dim"),
        normalize=normalize,
        prefix=_prompt(side, library, stated, folder),
        warnings=(
            *contradiction("pooling", stated.pooling, said["pooling"]),
            *contradiction("normalize", stated.normalize, said["normalize"]),
            *_prompt_warnings(side, library, stated),
        ),
    )


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Class name and folder of each module, in order."""
    path = folder / "modules.json"
    entries = read_objects(path)
    return [(_module(entry.get("type"), path), child(folder, entry.get("path", ""), f"{path}: path")) for entry in entries]


def _module(name: object, path: Path) -> str:
    if not isinstance(name, str) or not name.startswith("sentence_transformers."):
        raise CheckpointError(f"{path}: type {name!r} is code from outside sentence-transformers, which is never run")
    return name.rpartition(".")[2]


def _routed(name: str, folder: Path, side: Side) -> list[tuple[str, Path]]:
    """A module, or those that a Router (before version 5: Asym) has for one side, as the library resolves task and text."""
    if name not in {"Router", "Asym"}:
        return [(name, folder)]
    path = next((folder / file for file in ("router_config.json", "config.json") if (folder / file).is_file()), folder)
    config = read_object(path)
    routes, types = config.get("structure"), config.get("types")
    settings = config.get("parameters") or {}
    if not isinstance(routes, dict) or not isinstance(types, dict) or not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected the objects structure, types and parameters of a {name}")
    mapped = settings.get("route_mappings") or {}
    keys = [str(key) for key in ((side, "text"), (side, None), (None, "text"), (None, None))]
    route = next((mapped[key] for key in keys if key in mapped), side if side in routes else settings.get("default_route"))
    members = routes.get(route) if isinstance(route, str) else None
    if not isinstance(members, list):
        raise CheckpointError(
            f"{path}: no route for a {side}: it has {sorted(routes)}; save the model with the routes 'query' and 'document'"
        )
    return [(_module(types.get(member), path), child(folder, member, f"{path}: structure")) for member in members]


def _static_tower(folder: Path, parts: Sequence[tuple[str, Path]], side: Side, stated: EncoderSpec) -> TowerSpec:
    """A table of word vectors and their mean: no transformer, no special tokens, and no limit but the tokenizer's own."""
    place = parts[0][1]
    check_weights(place)
    file = place / "tokenizer.json"
    content = read_object(file)
    if not content:
        raise CheckpointError(f"{file}: is not there; save the model again")
    check_normalizer(content, file)
    cut = content.get("truncation")
    said = cut.get("max_length") if isinstance(cut, dict) else None
    length, origin = stated.max_length(side), f"encoder.{side}_max_length"
    if length is None:
        length, origin = (said, file.name) if isinstance(said, int) and said > 0 else (NO_LIMIT, "no limit")
    library = read_object(folder / "config_sentence_transformers.json")
    heads = tuple(head for name, path in parts[1:] if (head := _head(name, path)) is not None)
    heads, normalize = _normalization(heads, library, stated, folder)
    return TowerSpec(
        weights=place,
        tokenizer=place,
        config=file,
        pooling=("mean",),
        heads=heads,
        truncate_dim=library.get("truncate_dim"),
        normalize=normalize,
        prefix=_prompt(side, library, stated, folder),
        max_length=length,
        max_length_from=origin,
        architecture="StaticEmbedding",
        static=True,
        warnings=(*contradiction("pooling", stated.pooling, "mean"), *_prompt_warnings(side, library, stated)),
    )


def _transformer_settings(folder: Path) -> Mapping[str, Any]:
    path = next((folder / name for name in TRANSFORMER_FILES if (folder / name).is_file()), folder / TRANSFORMER_FILES[0])
    settings = read_object(path)
    for key, value in settings.items():
        if key in HARMLESS or not value or value == EXPECTED.get(key):
            continue
        if key in {"model_args", "model_kwargs"} and set(value) <= {"dtype", "torch_dtype", "attn_implementation"}:
            continue  # how the library would compute it; we say so ourselves
        raise CheckpointError(f"{path}: {key}: got {value!r}, which is not supported; load and save the model without it")
    return settings


def _pooling(folder: Path) -> tuple[tuple[PoolingName, ...], bool]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: modules.json names it, but it is not there: this version is unusable (the version 'final_model' of a "
            f"training copies no sub-folders); {USE_STEP_VERSION}"
        )
    config = read_object(path)
    include_prompt = bool(config.get("include_prompt", True))
    if "pooling_mode" not in config:
        modes = tuple(name for flag, name in POOLING_FLAGS.items() if config.get(flag))
        return modes or ("mean",), include_prompt
    stated = config["pooling_mode"]
    names = [stated] if isinstance(stated, str) else list(stated)
    unknown = [name for name in names if name not in POOLING_NAMES]
    if unknown or not names:
        raise CheckpointError(f"{path}: pooling_mode: got {stated!r}, expected some of {sorted(POOLING_NAMES)}")
    return tuple(POOLING_NAMES[name] for name in names), include_prompt


def _head(name: str, folder: Path) -> Head | None:
    """The module after pooling; None for one that does nothing when encoding."""
    config = read_object(folder / "config.json")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise CheckpointError(f"{folder / 'config.json'}: {key}: got {config[key]!r}, expected 'sentence_embedding'")
    if name == "Dropout":
        return None
    if name == "Normalize":
        return Head(kind="normalize", folder=folder)
    if name not in {"Dense", "LayerNorm"}:
        raise CheckpointError(f"{folder}: module {name} is not supported; expected {SUPPORTED}")
    check_weights(folder)
    if name == "LayerNorm":
        return Head(kind="layer_norm", folder=folder, out_features=_size(config, "dimension", folder))
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    module, _, short = str(activation).rpartition(".")
    if not module.startswith("torch.nn.") or short not in ACTIVATIONS:
        raise CheckpointError(
            f"{folder / 'config.json'}: activation_function: got {activation!r}, expected one of {list(ACTIVATIONS)}"
        )
    return Head(
        kind="dense",
        folder=folder,
        in_features=_size(config, "in_features", folder),
        out_features=_size(config, "out_features", folder),
        bias=bool(config.get("bias", True)),
        activation=short,
        residual=bool(config.get("use_residual", False)),
    )


def _size(config: Mapping[str, Any], key: str, folder: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"{folder / 'config.json'}: {key}: got {value!r}, expected a positive integer")
    return value


def _is_normalized(heads: Sequence[Head], library: Mapping[str, Any]) -> bool | None:
    """As far as the model says how its vectors are compared."""
    if bool(heads) and heads[-1].kind == "normalize":
        return True
    similarity = library.get("similarity_fn_name")
    return None if similarity is None else similarity == "cosine"


def _normalization(
    heads: Sequence[Head], library: Mapping[str, Any], stated: EncoderSpec, folder: Path
) -> tuple[tuple[Head, ...], bool]:
    """Heads without a Normalize at the end, and whether final vectors get length 1: dot products must rank as the model means.

    A model that compares by cosine needs no Normalize module, and one saved before similarity_fn_name existed does not say.
    """
    similarity = library.get("similarity_fn_name")
    if similarity not in (None, "cosine", "dot"):
        raise CheckpointError(
            f"{folder}: similarity_fn_name {similarity!r} is not supported, expected 'cosine' or 'dot'; scores are dot products"
        )
    last = bool(heads) and heads[-1].kind == "normalize"
    if last and library.get("truncate_dim") is not None and similarity == "dot" and stated.normalize is None:
        return tuple(heads), False  # the library cuts the unit vector and leaves it shorter than 1
    kept = tuple(heads[:-1]) if last else tuple(heads)
    if stated.normalize is not None:
        return kept, stated.normalize
    if not last and similarity is None:
        raise NotStated(
            f"{folder}: neither a Normalize module nor similarity_fn_name in config_sentence_transformers.json says whether "
            "vectors are compared by cosine or by dot product; set encoder.normalize to true (cosine) or false (dot)"
        )
    return kept, last or similarity == "cosine"


def _prompt_warnings(side: Side, library: Mapping[str, Any], stated: EncoderSpec) -> list[str]:
    """Where another prefix is stated than the prompt that the checkpoint names for this side; an empty one says nothing."""
    prompts = library.get("prompts")
    named = [prompts[name] for name in PROMPT_NAMES[side] if prompts.get(name)] if isinstance(prompts, dict) else []
    return contradiction(f"{side}_prefix", stated.prefix(side), str(named[0]) if named else None, "prompts")


def _prompt(side: Side, library: Mapping[str, Any], stated: EncoderSpec, folder: Path) -> str:
    """The prefix of one side: what is stated, else the first candidate among the saved prompts, else none.

    `library` is config_sentence_transformers.json. A default prompt alone is refused: version 5 puts it before both sides,
    version 6 before neither.
    """
    configured = stated.prefix(side)
    if configured is not None:
        return configured
    prompts = library.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise CheckpointError(f"{folder / 'config_sentence_transformers.json'}: prompts: got {prompts!r}, expected an object")
    name = next((candidate for candidate in PROMPT_NAMES[side] if candidate in prompts), None)
    if name is not None:
        prompt = str(prompts[name] or "")
        if prompt and name != PROMPT_NAMES[side][0]:
            log.warning("prompts: %ss get %r (%r), which sentence-transformers 6 skips", side, name, prompt)
        return prompt
    default = library.get("default_prompt_name")
    if default and prompts.get(default):
        raise NotStated(
            f"{folder}: default_prompt_name {default!r}: versions of sentence-transformers disagree whether its prompt "
            f"{prompts[default]!r} goes before a {side}; set encoder.{side}_prefix to it, or to ''"
        )
    return ""
