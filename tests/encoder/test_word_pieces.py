"""BERT's tokenizer read from its file is the one that transformers makes, to the last byte; the unusual is left to it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dr_validate.encoder.word_pieces import read_word_pieces

FILES = ["config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


@pytest.fixture
def folder(tmp_path: Path, minilm: Path) -> Path:
    for name in FILES:
        shutil.copyfile(minilm / name, tmp_path / name)
    return tmp_path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def normalizer(**values: Any) -> dict[str, Any]:
    usual = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return {"type": "BertNormalizer", **usual, **values}


@pytest.mark.parametrize(
    ("config", "content"),
    [
        ({}, {}),
        ({"do_lower_case": False, "strip_accents": False}, {"normalizer": normalizer(lowercase=False, strip_accents=False)}),
        ({"tokenizer_class": "BertTokenizerFast", "model_max_length": 99}, {"truncation": None, "padding": None}),
        ({"never_split": None, "additional_special_tokens": [], "padding_side": "left"}, {}),
    ],
)
def test_what_is_read_is_what_transformers_makes(folder: Path, config: dict[str, Any], content: dict[str, Any]) -> None:
    change(folder / "tokenizer_config.json", **config)
    change(folder / "tokenizer.json", **content)
    ours, expected = read_word_pieces(folder), theirs(folder)
    assert ours is not None
    assert ours.to_str() == expected.backend_tokenizer.to_str()
    assert (expected.eos_token_id, expected.truncation_side) == (None, "right")


def test_a_tokenizer_that_transformers_has_saved_again_is_read_the_same(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    theirs(folder).save_pretrained(again)
    shutil.copyfile(folder / "config.json", again / "config.json")
    ours = read_word_pieces(again)
    assert ours is not None
    assert ours.to_str() == theirs(again).backend_tokenizer.to_str()


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"model_type": "electra"}),
        ("tokenizer_config.json", {"tokenizer_class": "MPNetTokenizer"}),
        ("tokenizer_config.json", {"do_lower_case": False}),  # transformers would go by this, the file does not
        ("tokenizer_config.json", {"eos_token": "[SEP]"}),
        ("tokenizer_config.json", {"cls_token": "[PAD]"}),
        ("tokenizer_config.json", {"extra_special_tokens": ["[Q]"]}),
        ("tokenizer_config.json", {"truncation_side": "left"}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "[PAD]"}}}),
        ("tokenizer_config.json", {"a_key_of_next_year": True}),
        ("special_tokens_map.json", {"eos_token": "[SEP]"}),
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}),
        ("tokenizer.json", {"normalizer": normalizer(clean_text=False)}),
        ("tokenizer.json", {"added_tokens": []}),
        ("tokenizer.json", {"truncation": {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}}),
        ("tokenizer.json", {"model": "damaged"}),
    ],
)
def test_the_unusual_is_left_to_transformers(folder: Path, file: str, values: dict[str, Any]) -> None:
    assert read_word_pieces(folder) is not None
    change(folder / file, **values)
    assert read_word_pieces(folder) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_without_a_file_it_is_left_to_transformers(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert read_word_pieces(folder) is None


def test_tokens_beside_the_file_are_left_to_transformers(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"[Q]": 30522}')
    assert read_word_pieces(folder) is None
