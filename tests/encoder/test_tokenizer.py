import json
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


def test_the_key_follows_length_prefix_and_end_of_text(bert: Path) -> None:
    variants: list[dict[str, Any]] = [{}, {"document_max_length": 9}, {"document_prefix": "d: "}, {"append_eos": False}]
    keys = [tokenizer(bert, **settings).key for settings in variants]
    assert len(set(keys)) == len(variants)
    assert tokenizer(bert, max_tokens_per_batch=7).key == keys[0]


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
