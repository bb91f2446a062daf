"""What `bert.py` needs to know of `config.json`, without transformers, which takes half a CPU second to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_validate.encoder.checks import read_object

SIZES = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
SIZES += ["max_position_embeddings", "type_vocab_size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """Names and meanings are those of transformers' BertConfig."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int | None


def read_bert_config(folder: Path) -> BertConfig | None:
    """None where something is unusual, or not stated so that a default of transformers would count."""
    content = read_object(folder / "config.json")
    sizes = {name: content.get(name) for name in SIZES}
    epsilon, padding = content.get("layer_norm_eps"), content.get("pad_token_id", -1)
    if not _is_usual(content) or not all(type(size) is int and size > 0 for size in sizes.values()):
        return None
    if not isinstance(epsilon, float) or not (padding is None or (type(padding) is int and padding >= 0)):
        return None
    if content["hidden_size"] % content["num_attention_heads"]:
        return None
    known: dict[str, Any] = {**sizes, "layer_norm_eps": epsilon, "pad_token_id": padding}
    return BertConfig(model_type=str(content["model_type"]), **known)


def _is_usual(content: dict[str, Any]) -> bool:
    return (
        content.get("hidden_act") == "gelu"
        and content.get("position_embedding_type", "absolute") in ("absolute", None)
        and not (content.get("is_decoder") or content.get("add_cross_attention"))
    )
