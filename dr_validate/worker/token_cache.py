"""Token ids on disk, made once for every checkpoint with the same tokenizer: 2 bytes a token, memory-mapped when read."""

import json
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dr_validate.component import fingerprint
from dr_validate.files import atomic_file, write_atomically
from dr_validate.stages import Tokenizer
from dr_validate.values import Int64, TokenBlock

log = logging.getLogger(__name__)

Read = Callable[[slice], Sequence[str] | Sequence[list[int]]]

FORMAT = 1
MAGIC = 0x314B4F54  # "TOK1"
HEADER_WORDS = 5  # magic, texts, tokens, bytes of an id, CRC-32 of the rest
WORD_BYTES = 8
DTYPES = {2: np.uint16, 4: np.uint32}


class TokenCache:
    """A folder with one sub-folder for each (texts, tokenizer, block size); safe to use from several processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, *, tokenizer: Tokenizer, texts_key: str, num_texts: int, read: Read, block_size: int) -> "TokenBlocks":
        """Blocks of `block_size` texts, each tokenized when first asked for.

        `texts_key` names the texts: equal keys, equal texts. `read` gives the texts of a slice; it is called for blocks that
        are not on disk yet, or damaged there.
        """
        assert block_size > 0 and num_texts >= 0, (block_size, num_texts)
        key = {
            "format": FORMAT,
            "texts": texts_key,
            "num_texts": num_texts,
            "tokenizer": tokenizer.key,
            "block_size": block_size,
        }
        folder = self._folder / fingerprint(key)
        meta = folder / "meta.json"
        if not meta.is_file():
            write_atomically(meta, json.dumps(key, indent=2) + "\n")
        return TokenBlocks(folder=folder, tokenizer=tokenizer, num_texts=num_texts, read=read, block_size=block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBlocks:
    """TextBlocks over a cache folder. Only the block in use is mapped into memory, and it is checked on its first use."""

    folder: Path
    tokenizer: Tokenizer
    num_texts: int
    read: Read
    block_size: int
    _checked: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return -(-self.num_texts // self.block_size)

    def positions(self, number: int) -> slice:
        """Which texts the block holds."""
        assert 0 <= number < len(self), (number, len(self))
        return slice(number * self.block_size, min((number + 1) * self.block_size, self.num_texts))

    def block(self, number: int) -> TokenBlock:
        """The block, memory-mapped read-only; tokenized first if it is not on disk or damaged."""
        part = self.positions(number)
        path = self.folder / f"{number:06d}.tokens"
        expected = part.stop - part.start
        if number in self._checked and path.is_file():
            return _map(path)
        if path.exists():
            problem = _problem(path, expected)
            if problem is None:
                self._checked.add(number)
                return _map(path)
            log.warning("%s: %s; tokenizing block %d again", path, problem, number)
        _write(path, self._tokenize(part, expected))
        self._checked.add(number)
        return _map(path)

    def all(self) -> TokenBlock:
        """Every text in one block in memory: for queries."""
        blocks = [self.block(number) for number in range(len(self))]
        lengths = [block.lengths for block in blocks]
        offsets = np.zeros(self.num_texts + 1, dtype=np.int64)
        if blocks:
            np.cumsum(np.concatenate(lengths), out=offsets[1:])
        ids = np.concatenate([block.ids for block in blocks]) if blocks else np.zeros(0, dtype=np.uint16)
        return TokenBlock(ids=ids, offsets=offsets)

    def _tokenize(self, part: slice, expected: int) -> TokenBlock:
        texts = self.read(part)
        assert len(texts) == expected, f"read({part}) gave {len(texts)} texts"
        return self.tokenizer.tokenize(texts)


def _write(path: Path, block: TokenBlock) -> None:
    """Header, offsets, ids; atomic, so that two processes that build at once both leave a whole block."""
    assert block.ids.dtype.itemsize in DTYPES and block.ids.dtype.kind == "u", block.ids.dtype
    offsets = np.ascontiguousarray(block.offsets, dtype="<i8")
    ids = np.ascontiguousarray(block.ids)
    checksum = zlib.crc32(ids.data, zlib.crc32(offsets.data))
    header = np.array([MAGIC, len(block), len(ids), ids.dtype.itemsize, checksum], dtype="<i8")
    with atomic_file(path) as stream:
        for part in (header, offsets, ids):
            stream.write(part.data)


def _map(path: Path) -> TokenBlock:
    if path.stat().st_size < HEADER_WORDS * WORD_BYTES:
        raise ValueError("no header")
    content: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
    magic, num_texts, num_tokens, width, _ = _header(content)
    start = HEADER_WORDS * WORD_BYTES
    middle = start + (num_texts + 1) * WORD_BYTES
    if magic != MAGIC or width not in DTYPES or num_texts < 0 or middle + num_tokens * width != len(content):
        raise ValueError("header and size do not fit")
    offsets: Int64 = content[start:middle].view("<i8")
    return TokenBlock(ids=content[middle:].view(DTYPES[width]), offsets=offsets)


def _problem(path: Path, expected: int) -> str | None:
    """What is wrong with the file, None if it is whole."""
    try:
        block = _map(path)
    except ValueError as error:
        return str(error)
    checksum = _header(np.memmap(path, dtype=np.uint8, mode="r"))[4]
    if zlib.crc32(np.ascontiguousarray(block.ids).data, zlib.crc32(np.ascontiguousarray(block.offsets).data)) != checksum:
        return "checksum differs"
    return None if len(block) == expected else f"holds {len(block)} texts, not {expected}"


def _header(content: NDArray[np.uint8]) -> list[int]:
    return [int(word) for word in content[: HEADER_WORDS * WORD_BYTES].view("<i8")]
