import inspect
import json
import logging
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.values import TokenBlock
from dr_validate.worker.encoding import TokenBlocks

TEXTS = [f"text {'x' * (i % 7)} number {i}" for i in range(23)] + [""]


class ByteTokenizer:
    """Bytes of the text as ids: a real, if simple, tokenizer."""

    def __init__(self, key: str = "bytes", dtype: type[np.uint16] | type[np.uint32] = np.uint16) -> None:
        self.key = key
        self.dtype = dtype
        self.calls = 0

    def tokenize(self, texts: Sequence[str] | Sequence[list[int]]) -> TokenBlock:
        self.calls += 1
        lists = [list(str(text).encode()) for text in texts]
        offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
        return TokenBlock(ids=np.array([token for ids in lists for token in ids], dtype=self.dtype), offsets=offsets)


def open_blocks(folder: Path, tokenizer: ByteTokenizer, texts: Sequence[str] = TEXTS, block_size: int = 10) -> TokenBlocks:
    own: dict[str, Any] = {"texts_key": "some texts", "num_texts": len(texts), "block_size": block_size}
    return TokenBlocks(folder, lambda: tokenizer, read=lambda part: texts[part], **own)


def texts_of(block: TokenBlock) -> list[str]:
    return [bytes(block.ids[block.offsets[i] : block.offsets[i + 1]].tolist()).decode() for i in range(len(block))]


def all_texts(blocks: TokenBlocks) -> list[str]:
    return [text for number in range(len(blocks)) for text in texts_of(blocks.block(number))]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_blocks_hold_the_tokens_of_consecutive_texts(tmp_path: Path, dtype: type[np.uint16] | type[np.uint32]) -> None:
    blocks = open_blocks(tmp_path, ByteTokenizer(dtype=dtype))
    assert len(blocks) == 3
    for number in range(3):
        assert texts_of(blocks.block(number)) == TEXTS[blocks.positions(number)]
        assert blocks.block(number).ids.dtype == dtype
    assert blocks.positions(2) == slice(20, 24)
    assert all_texts(blocks) == TEXTS


def test_a_block_is_tokenized_once_for_all_who_open_it(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    all_texts(open_blocks(tmp_path, tokenizer))
    assert tokenizer.calls == 3
    assert all_texts(open_blocks(tmp_path, tokenizer)) == TEXTS
    assert tokenizer.calls == 3


def test_only_the_block_asked_for_is_made_and_it_is_memory_mapped(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    block = open_blocks(tmp_path, tokenizer).block(1)
    assert tokenizer.calls == 1
    assert [path.name for path in tmp_path.glob("*/*.tokens")] == ["000001.tokens"]
    assert isinstance(block.ids, np.memmap)
    assert not block.ids.flags.writeable


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped bit", "flipped offset", "other count"])
def test_a_damaged_block_is_made_again_with_a_log_line(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    all_texts(open_blocks(tmp_path, ByteTokenizer()))
    path = next(tmp_path.glob("*/000001.tokens"))
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    elif damage == "flipped bit":
        content[-1] ^= 1
    elif damage == "flipped offset":
        content[50] ^= 1
    else:
        content = bytearray(path.with_name("000002.tokens").read_bytes())
    path.write_bytes(content)
    tokenizer = ByteTokenizer()
    with caplog.at_level(logging.WARNING):
        assert all_texts(open_blocks(tmp_path, tokenizer)) == TEXTS
    assert tokenizer.calls == 1
    assert "tokenizing block 1 again" in caplog.text


def test_another_tokenizer_or_block_size_has_a_folder_of_its_own(tmp_path: Path) -> None:
    first = open_blocks(tmp_path, ByteTokenizer())
    assert open_blocks(tmp_path, ByteTokenizer("other")).folder != first.folder
    assert open_blocks(tmp_path, ByteTokenizer(), block_size=9).folder != first.folder
    assert open_blocks(tmp_path, ByteTokenizer()).folder == first.folder
    meta = json.loads((first.folder / "meta.json").read_text())
    assert (meta["texts"], meta["tokenizer"], meta["block_size"]) == ("some texts", "bytes", 10)


def test_whatever_names_the_texts_or_makes_the_tokens_has_a_folder_of_its_own(tmp_path: Path) -> None:
    usual = {"tokenizer": ByteTokenizer, "texts_key": "some texts", "num_texts": 24, "block_size": 10}
    others = {"tokenizer": lambda: ByteTokenizer("other"), "texts_key": "other texts", "num_texts": 23, "block_size": 9}
    arguments = inspect.signature(TokenBlocks).parameters.keys() - {"cache", "read"}  # `read` gives what `texts_key` names
    assert arguments == usual.keys() == others.keys(), "a new argument: does it change the tokens?"

    def folder(**arguments: Any) -> Path:
        return TokenBlocks(tmp_path, **arguments, read=lambda part: TEXTS[part]).folder

    folders = [folder(**usual), *(folder(**(usual | {name: others[name]})) for name in others)]
    assert len(set(folders)) == len(folders)


def test_no_texts_give_no_blocks(tmp_path: Path) -> None:
    blocks = open_blocks(tmp_path, ByteTokenizer(), texts=[])
    assert len(blocks) == 0
    assert all_texts(blocks) == []


def test_a_block_of_empty_texts_has_offsets_and_no_ids(tmp_path: Path) -> None:
    block = open_blocks(tmp_path, ByteTokenizer(), texts=["", ""]).block(0)
    assert block.lengths.tolist() == [0, 0]


def _build(folder: Path) -> None:
    assert all_texts(open_blocks(folder, ByteTokenizer(), block_size=2)) == TEXTS


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    workers = [multiprocessing.get_context("spawn").Process(target=_build, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    tokenizer = ByteTokenizer()
    assert all_texts(open_blocks(tmp_path, tokenizer, block_size=2)) == TEXTS
    assert tokenizer.calls == 0
    assert not [path for path in tmp_path.rglob(".*")]
