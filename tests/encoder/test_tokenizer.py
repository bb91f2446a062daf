import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.errors import CheckpointError
from dr_validate.stages import Tokenizer
from dr_validate.values import TokenBlock

STATED: dict[str, Any] = {"pooling": "mean", "normalize": True}


def tokenizer(folder: Path, **settings: Any) -> Tokenizer:
    with AutoEncoder(**STATED, **settings).load(folder, "cpu") as model:
        return model.tokenizer("document")


def lists(block: TokenBlock) -> list[list[int]]:
    return [block.ids[block.offsets[i] : block.offsets[i + 1]].tolist() for i in range(len(block))]


def test_ids_are_those_of_transformers_cut_with_special_tokens_counted(bert: Path, texts: list[str]) -> None:
    import transformers

    expected: Any = transformers.AutoTokenizer.from_pretrained(str(bert))
    block = tokenizer(bert, document_max_length=9).tokenize(texts)
    assert lists(block) == expected(texts, truncation=True, max_length=9)["input_ids"]
    assert block.ids.dtype == np.uint16


# Fields of the encoder that change no token of a document; each of the others does.
NO_TOKEN = {"pooling", "normalize", "query_prefix", "query_max_length", "dtype", "base_model", "max_tokens_per_batch"}
OTHERS: dict[str, Any] = {"pooling": "cls", "normalize": False, "query_prefix": "q: ", "query_max_length": 9}
OTHERS |= {"dtype": "bfloat16", "max_tokens_per_batch": 7}
OTHERS |= {"document_prefix": "d: ", "document_max_length": 9, "append_eos": False, "tokenizer": "tokenizer with other words"}


def test_every_setting_that_can_change_tokens_changes_the_key_and_no_other_does(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / OTHERS["tokenizer"]
    shutil.copytree(bert, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    *_, first, second = content["model"]["vocab"]
    content["model"]["vocab"] |= {first: content["model"]["vocab"][second], second: content["model"]["vocab"][first]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    fields = {field.name for field in dataclasses.fields(AutoEncoder)}
    # Which weights are read, and by which config.json, leaves tokens alone: they come from the tokenizer's files.
    assert fields == OTHERS.keys() | {"base_model", "config", "weights_prefix", "native"}, (
        "a new field: does it change the tokens of a text?"
    )
    usual = tokenizer(bert).key
    for name, value in OTHERS.items():
        stated = {**STATED, name: str(folder) if name == "tokenizer" else value}
        with AutoEncoder(**stated).load(bert, "cpu") as model:
            assert (model.tokenizer("document").key == usual) == (name in NO_TOKEN), name


def test_the_key_follows_the_end_of_text_that_is_added(bert: Path) -> None:
    config, keys = bert / "tokenizer_config.json", []
    tokens = json.loads((bert / "tokenizer.json").read_text()) | {"post_processor": None}
    (bert / "tokenizer.json").write_text(json.dumps(tokens))
    for token in ("<s>", "</s>"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token": token}))
        keys.append(tokenizer(bert, append_eos=True).key)
    assert keys[0] != keys[1]


def test_the_end_of_text_is_added_or_left_out_at_full_length(bert: Path, texts: list[str]) -> None:
    usual = lists(tokenizer(bert, document_max_length=9).tokenize(texts))
    assert lists(tokenizer(bert, document_max_length=9, append_eos=True).tokenize(texts)) == usual  # it ends so already
    without = lists(tokenizer(bert, document_max_length=9, append_eos=False).tokenize(texts))
    assert all(2 not in ids for ids in without)
    assert max(map(len, without)) == 9
    config = bert / "tokenizer.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"post_processor": None}))
    added = lists(tokenizer(bert, document_max_length=9, append_eos=True).tokenize(texts))
    assert all(ids[-1] == 2 for ids in added)
    assert max(map(len, added)) == 9


def test_a_broken_tokenizer_file_is_a_checkpoint_error(bert: Path) -> None:
    content = (bert / "tokenizer.json").read_text()
    (bert / "tokenizer.json").write_text(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="tokenizer.json: not JSON"):
        tokenizer(bert)


def test_token_ids_with_a_prefix_are_refused(bert: Path) -> None:
    with pytest.raises(CheckpointError, match="prefix 'd: ' cannot be added"):
        tokenizer(bert, document_prefix="d: ").tokenize([[5, 6]])


def test_token_ids_of_another_vocabulary_are_refused(bert: Path) -> None:
    with pytest.raises(CheckpointError, match="token ids up to 30000"):
        tokenizer(bert).tokenize([[5, 30000]])


def test_a_length_without_room_for_text_is_refused(bert: Path) -> None:
    with pytest.raises(CheckpointError, match="no room"):
        tokenizer(bert, document_max_length=2)
