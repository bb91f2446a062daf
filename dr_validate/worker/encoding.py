"""What ranking a checkpoint takes: its kept vectors, its model and its tokens, none of them touched before it is used.

Token ids are made once for every checkpoint with the same tokenizer: 2 bytes a token, on disk, memory-mapped when read.
"""

import contextlib
import functools
import json
import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.files import atomic_file, name_of_digest, write_atomically
from dr_validate.stages import Encoder, Model, Tokenizer, Workload
from dr_validate.store.embeddings import NothingKept
from dr_validate.values import SIDES, Float32, Int64, Sample, Side, TestSet, TokenBlock
from dr_validate.worker.samples import SpecSample

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
Load = Callable[[Encoder, str, Path, str], AbstractContextManager[Model]]
"""From encoder, digest, folder and device to the loaded model."""
Read = Callable[[slice], Sequence[str] | Sequence[list[int]]]
FORMAT = 1
MAGIC = 0x314B4F54  # "TOK1"
HEADER_WORDS = 5  # magic, texts, tokens, bytes of an id, CRC-32 of the rest
WORD_BYTES = 8
DTYPES = {2: np.uint16, 4: np.uint32}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEncoding:
    """A checkpoint and what is to be ranked with it: kept vectors, and a model and tokens that are made when first needed."""

    model: "LazyModel"
    workload: Workload
    described: Mapping[str, Any]  # what the encoder says of the checkpoint without loading it

    @property
    def load_s(self) -> float:
        """See `engine.ray_workers.Opened.load_s`."""
        return self.model.load_s

    def contract(self) -> Mapping[str, Any]:
        """The model's, and how it was computed when the first of its vectors was made."""

        def computed() -> Mapping[str, Any]:
            return {key: value for key, value in self.model.contract.items() if key not in self.described}

        return {**self.described, **self.workload.vectors.contract(computed)}


class Encoding:
    """Opens the checkpoints of a run; what they share, tokens above all, stays between them."""

    def __init__(self, run: Run, device: str, test_set: TestSet, load: Load | None = None) -> None:
        """`load`: instead of the encoder's own."""
        self._load: Load = load or (lambda encoder, _, folder, device: encoder.load(folder, device))
        self._run, self._device, self._test_set = run, device, test_set
        self._state_dir = run.settings.state_dir

    @contextlib.contextmanager
    def open(
        self,
        digest: str,
        folder: Path,
        sample: SpecSample,
        when_loaded: Callable[[], None] = lambda: None,
        *,
        keep: bool = True,
    ) -> Iterator[CheckpointEncoding]:
        """The checkpoint in `folder` on one sample. `when_loaded` is called once the model is there, if it is needed at all;
        without `keep` no vector is read or kept."""

        def load() -> AbstractContextManager[Model]:
            return self._load(self._run.encoder, digest, folder, self._device)

        test_set, read = self._test_set, read_encoder(self._run, digest, folder)
        key = vectors_key(read, test_set)
        counts: dict[Side, int] = {"query": len(test_set.query_ids), "document": len(test_set.corpus)}
        kept = self._run.store.vectors(digest, key, counts, self._state_dir, baseline=sample.is_baseline)
        with kept if keep else contextlib.nullcontext(NothingKept()) as vectors, LazyModel(load, when_loaded) as model:
            texts = {side: self._texts(side, sample.sample, model) for side in SIDES}
            workload = Workload(
                queries=texts["query"],
                documents=texts["document"],
                vectors=vectors,
                ordinals=sample.sample.ordinals,
                own_documents=test_set.own_documents,
                tie_rank=test_set.corpus.tie_rank,
                top_k=self._run.settings.top_k,
                preemptible=sample.is_baseline,
                progress_file=self._state_dir / "progress" / f"{sample.spec}-{name_of_digest(digest)}.npz",
            )
            yield CheckpointEncoding(model=model, workload=workload, described=read["contract"])

    def _texts(self, side: Side, sample: Sample, model: Model) -> "TokenBlocks":
        test_set = self._test_set
        if side == "query":
            key, number, block_size = f"queries-{test_set.fingerprint}", len(test_set.query_ids), len(test_set.query_ids)
        else:
            part = "full" if sample.is_full else sample.fingerprint
            key, number = f"documents-{test_set.fingerprint}-{part}", len(sample.ordinals)
            block_size = self._run.settings.block_documents

        def read(part: slice) -> Sequence[str] | Sequence[list[int]]:
            return test_set.query_texts[part] if side == "query" else test_set.corpus.texts(sample.ordinals[part])

        return TokenBlocks(
            self._state_dir / "tokens",
            lambda: model.tokenizer(side),
            texts_key=key,
            num_texts=number,
            read=read,
            block_size=block_size,
        )


def read_encoder(run: Run, digest: str, folder: Path) -> Mapping[str, Any]:
    """What the encoder says of a checkpoint (`Encoder.read`); of one whose folder is gone, what it said when it was there."""
    if not folder.is_dir() and (known := remembered_encoder(run, digest)):
        return known
    read: Mapping[str, Any] = run.encoder.read(folder)
    path = _remembered_in(run, digest)
    with contextlib.suppress(OSError):  # then it is read again
        content = json.dumps(dict(read), sort_keys=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            write_atomically(path, content)
    return read


def remembered_encoder(run: Run, digest: str) -> Mapping[str, Any] | None:
    """What the encoder with these settings said of a checkpoint when its folder was there, None where that is not known."""
    try:
        known = json.loads(_remembered_in(run, digest).read_bytes())
        return {"contract": known["contract"], "vectors": known["vectors"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remembered_in(run: Run, digest: str) -> Path:
    stated = fingerprint(dict(run.encoder.fingerprint()))
    return run.settings.state_dir / "embeddings" / ".read" / f"{name_of_digest(digest)}-{stated}.json"


def vectors_key(read: Mapping[str, Any], test_set: TestSet) -> Mapping[str, Any]:
    """What vectors of a checkpoint are kept under: the effect of the encoder's settings, however it was brought about."""
    return {"encoder": read["vectors"], "test_set": test_set.fingerprint}


class LazyModel:
    """The `Model` protocol; `load` is entered when it is first used and left with the block. `load_s`: what that took."""

    def __init__(self, load: Callable[[], AbstractContextManager[Model]], when_loaded: Callable[[], None]) -> None:
        self._load, self._when_loaded = load, when_loaded
        self._stack = ExitStack()
        self._model: Model | None = None
        self.load_s = 0.0

    def __enter__(self) -> "LazyModel":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._model = None
        self._stack.__exit__(*exc_info)

    @property
    def dim(self) -> int:
        """See `Model.dim`."""
        return self._loaded().dim

    @property
    def contract(self) -> Mapping[str, Any]:
        """See `Model.contract`."""
        return self._loaded().contract

    def tokenizer(self, side: Side) -> Tokenizer:
        """See `Model.tokenizer`."""
        return self._loaded().tokenizer(side)

    def encode(self, tokens: TokenBlock, side: Side) -> "Tensor | Float32":
        """See `Model.encode`."""
        return self._loaded().encode(tokens, side)

    def _loaded(self) -> Model:
        if self._model is None:
            began = time.monotonic()
            self._model = self._stack.enter_context(self._load())
            self.load_s = time.monotonic() - began
            self._when_loaded()
        return self._model


class TokenBlocks:
    """`TextBlocks` over a folder of the token cache, which several processes may use. A block is tokenized when it is first
    asked for, by whichever thread. Only the block in use is mapped into memory, and it is checked on its first use."""

    def __init__(
        self, cache: Path, tokenizer: Callable[[], Tokenizer], *, texts_key: str, num_texts: int, read: Read, block_size: int
    ) -> None:
        """`cache` has a sub-folder for each (texts, tokenizer, block size). `tokenizer` is asked for with the first block.

        `texts_key` names the texts: equal keys, equal texts. `read` gives the texts of a slice; it is called for blocks that
        are not on disk yet, or damaged there.
        """
        assert block_size > 0 and num_texts >= 0, (block_size, num_texts)
        self._cache, self._open_tokenizer, self._texts_key, self._read = cache, tokenizer, texts_key, read
        self._num_texts, self._size = num_texts, block_size
        self._checked: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return -(-self._num_texts // self._size)

    def positions(self, number: int) -> slice:
        """See `TextBlocks.positions`."""
        assert 0 <= number < len(self), (number, len(self))
        return slice(number * self._size, min((number + 1) * self._size, self._num_texts))

    def block(self, number: int) -> TokenBlock:
        """The block, memory-mapped read-only; tokenized first if it is not on disk or damaged."""
        part = self.positions(number)
        expected = part.stop - part.start
        with self._lock:  # or else two would tokenize it
            path = self.folder / f"{number:06d}.tokens"
            if number in self._checked and path.is_file():
                return _map(path)
            problem = _problem(path, expected) if path.exists() else None
            if problem is not None:
                log.warning("%s: %s; tokenizing block %d again", path, problem, number)
            if problem is not None or not path.exists():
                texts = self._read(part)
                assert len(texts) == expected, f"read({part}) gave {len(texts)} texts"
                _write(path, self._tokenizer.tokenize(texts))
            self._checked.add(number)
            return _map(path)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._open_tokenizer()

    @functools.cached_property
    def folder(self) -> Path:
        """Where the blocks are, made if need be."""
        key = {
            "format": FORMAT,
            "texts": self._texts_key,
            "num_texts": self._num_texts,
            "tokenizer": self._tokenizer.key,
            "block_size": self._size,
        }
        folder = self._cache / fingerprint(key)
        meta = folder / "meta.json"
        if not meta.is_file():
            write_atomically(meta, json.dumps(key, indent=2) + "\n")
        return folder


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
