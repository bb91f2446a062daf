"""BERT's tokenizer from its file, where transformers would build the very same; importing transformers costs 0.7 CPU seconds.

transformers' `BertTokenizer` takes only vocabulary and added tokens from `tokenizer.json` and makes the rest anew by
`tokenizer_config.json`. So the file stands for it where it says what would be made; the unusual is left to transformers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dr_validate.encoder.checks import read_object

CLASSES = ("BertTokenizer", "BertTokenizerFast")
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
MODEL = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
# Keys of tokenizer_config.json that are looked at here, and those that change no token id; any other may.
LOOKED_AT = {*SPECIAL, "added_tokens_decoder", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "tokenizer_class"}
LOOKED_AT |= {"truncation_side"}
WITHOUT_EFFECT = {"backend", "clean_up_tokenization_spaces", "do_basic_tokenize", "is_local", "local_files_only", "max_length"}
WITHOUT_EFFECT |= {"model_max_length", "name_or_path", "pad_to_multiple_of", "pad_token_type_id", "padding_side"}
WITHOUT_EFFECT |= {"special_tokens_map_file", "stride", "truncation_strategy"}


def read_word_pieces(folder: Path) -> Tokenizer | None:
    """The tokenizer in `folder`, which truncates on the right and has no end-of-text token; None where it is for transformers
    to say what it is, or what is wrong with it. Raises CheckpointError where a file is not JSON."""
    if read_object(folder / "config.json").get("model_type") != "bert" or (folder / "added_tokens.json").exists():
        return None
    config, content = read_object(folder / "tokenizer_config.json"), read_object(folder / "tokenizer.json")
    named = read_object(folder / "special_tokens_map.json")
    try:
        usual = _is_usual(config) and _says_the_same(content, config)
    except (KeyError, TypeError, ValueError, AttributeError):  # damaged
        return None
    if not usual or any(SPECIAL.get(key) != _text_of(token) for key, token in named.items()):
        return None
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _is_usual(config: Mapping[str, Any]) -> bool:
    unknown = {key for key, value in config.items() if value not in (None, [], {})} - LOOKED_AT - WITHOUT_EFFECT
    tokens = all(_text_of(config.get(key, token)) == token for key, token in SPECIAL.items())
    truncates_right = config.get("truncation_side", "right") == "right"
    return config.get("tokenizer_class") in CLASSES and tokens and truncates_right and not unknown


def _says_the_same(content: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether `tokenizer.json` holds what transformers would make."""
    added = {entry["id"]: {key: value for key, value in entry.items() if key != "id"} for entry in content["added_tokens"]}
    ids = {entry["content"]: number for number, entry in added.items() if entry["special"]}
    if set(ids) != set(SPECIAL.values()) or len(added) != len(ids):
        return False
    again = {int(number): entry for number, entry in config.get("added_tokens_decoder", {}).items()}
    model = {key: value for key, value in content["model"].items() if key != "vocab"}
    return (
        again in ({}, added)
        and (content["truncation"] or {}).get("direction", "Right") == "Right"
        and model == MODEL
        and content["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and content["normalizer"] == _normalizer(config)
        and content["post_processor"] == _post_processor(ids["[CLS]"], ids["[SEP]"])
    )


def _normalizer(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case", True),
    }


def _post_processor(cls: int, sep: int) -> dict[str, Any]:
    def special(token: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)]
    numbers = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in (("[CLS]", cls), ("[SEP]", sep))}
    pair = [*single, text("B", 1), special("[SEP]", 1)]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": numbers}


def _text_of(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token
