"""How many tokens a text may have: what is stated, else what the checkpoint says, never more than the model has places for."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dr_validate.encoder.checks import read_object
from dr_validate.encoder.spec import EncoderSpec, contradiction
from dr_validate.errors import NotStated
from dr_validate.values import Side

log = logging.getLogger(__name__)

# These models number positions from pad_token_id + 1 on, so that many rows of the table are never a text's.
PADDING_OFFSET_MODELS = {
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
NO_LIMIT = 1_000_000  # tokenizers without a limit write 1e30


def max_length(
    stated: EncoderSpec, side: Side, module: Mapping[str, Any], tokenizer: Path, config: Mapping[str, Any]
) -> tuple[int, str]:
    """The maximum length of one side, with special tokens, and where it comes from, in words.

    `module` is sentence_bert_config.json ({} for other folders), `config` config.json of the transformer.
    """
    length, origin = _wanted(stated, side, module, tokenizer)
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


def length_warnings(stated: EncoderSpec, side: Side, module: Mapping[str, Any], tokenizer: Path) -> list[str]:
    """Where the stated length is not the one that the checkpoint was trained with, or more than its tokenizer says it takes."""
    configured, (said, origin) = stated.max_length(side), _said(side, module, tokenizer)
    if said is None or configured is None or (not _in_module(side, module) and configured <= said):
        return []
    return contradiction(f"{side}_max_length", configured, said, origin)


def _wanted(stated: EncoderSpec, side: Side, module: Mapping[str, Any], tokenizer: Path) -> tuple[int | None, str]:
    configured = stated.max_length(side)
    if configured is not None:
        return configured, f"encoder.{side}_max_length"
    return _said(side, module, tokenizer)


def _in_module(side: Side, module: Mapping[str, Any]) -> str | None:
    return next((key for key in (f"{side}_length", "max_seq_length") if isinstance(module.get(key), int)), None)


def _said(side: Side, module: Mapping[str, Any], tokenizer: Path) -> tuple[int | None, str]:
    """By the checkpoint itself."""
    if key := _in_module(side, module):
        return int(module[key]), f"{key} of sentence_bert_config.json"
    limit = read_object(tokenizer / "tokenizer_config.json").get("model_max_length")
    if isinstance(limit, int | float) and 0 < limit < NO_LIMIT:
        return int(limit), "model_max_length of the tokenizer"
    return None, ""
