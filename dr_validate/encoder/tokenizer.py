"""Texts to token ids through the checkpoint's own fast tokenizer. Imports tokenizers: imported only to load a model."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from dr_validate.component import fingerprint
from dr_validate.encoder.spec import TowerSpec
from dr_validate.errors import CheckpointError
from dr_validate.values import TokenBlock

log = logging.getLogger(__name__)

WORDS_TRIED = 1000  # of the vocabulary, evenly spread
SMALL_VOCABULARY = 1 << 16  # ids of a smaller one fit into 16 bits


class FastTokenizer:
    """One side's tokenizer: prefix, special tokens, truncation to the maximum length, no padding.

    With `append_eos` every text ends with the end-of-text token, truncated ones too; with False none does.
    """

    def __init__(self, tower: TowerSpec, append_eos: bool | None) -> None:
        self._folder = tower.tokenizer
        with _faults_of(self._folder):
            self._open(tower, append_eos)
            self.key = self._make_key()  # changes when the token ids of any text could

    def _open(self, tower: TowerSpec, append_eos: bool | None) -> None:
        loaded = _static(tower.tokenizer) if tower.static else _load(tower.tokenizer)
        self._special = not tower.static
        self._backend = loaded.backend
        self._prefix = tower.prefix
        self._max_length = tower.max_length
        if tower.lower_case:
            _lower_case(self._backend)
        self._backend.no_padding()
        self._check_words()
        self._end = _end_of_text(loaded.end_of_text, tower.tokenizer, append_eos)
        ends_with_eos = self._backend.encode("a", add_special_tokens=self._special).ids[-1:] == self._end
        # One token more or less than the maximum, so that adding or dropping the end leaves the full length.
        self._add = append_eos is True and not ends_with_eos
        self._drop = append_eos is False and ends_with_eos
        self._truncate_to = self._max_length - self._add + self._drop
        special = self._backend.num_special_tokens_to_add(is_pair=False) if self._special else 0
        if self._truncate_to <= special:
            raise CheckpointError(f"maximum length {self._max_length} leaves no room beside {special} special tokens; raise it")
        self._backend.enable_truncation(self._truncate_to, direction=loaded.truncation_side)
        self._size = self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def prefix_length(self) -> int:
        """Tokens of the prefix with the special tokens before it: what a pooling without the prompt leaves out."""
        if not self._prefix:
            return 0
        ids = self._backend.encode(self._prefix, add_special_tokens=self._special).ids
        trailing = bool(ids) and ids[-1] in self._special_ids()
        return len(ids) - trailing

    def tokenize(self, texts: Sequence[str] | Sequence[list[int]]) -> TokenBlock:
        """(len(texts),) token lists, flat; uint16 where every id fits. Raises CheckpointError for ids the model cannot take."""
        if _are_ids(texts):
            return self._block([list(ids[: self._max_length]) for ids in self._checked(texts)])
        with _faults_of(self._folder):
            prefixed = [self._prefix + str(text) for text in texts]
            encodings = self._backend.encode_batch_fast(prefixed, add_special_tokens=self._special)
        lists = [encoding.ids for encoding in encodings]
        if self._add:
            lists = [[*ids, *self._end] for ids in lists]
        if self._drop:
            lists = [ids[:-1] if ids[-1:] == self._end else ids for ids in lists]
        return self._block(lists)

    def _block(self, lists: Sequence[Sequence[int]]) -> TokenBlock:
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(lists), dtype=np.uint32, count=int(offsets[-1]))
        if self._size >= SMALL_VOCABULARY:
            return TokenBlock(ids=ids, offsets=offsets)
        if (worst := int(ids.max(initial=0))) >= SMALL_VOCABULARY:
            raise CheckpointError(
                f"{self._folder}: the tokenizer makes token id {worst}, but has {self._size} words: save it again, or set "
                "encoder.tokenizer to the one that the training used"
            )
        return TokenBlock(ids=ids.astype(np.uint16), offsets=offsets)

    def _checked(self, texts: Sequence[list[int]]) -> Sequence[list[int]]:
        if self._prefix:
            raise CheckpointError(
                f"the collection came as token ids, to which the prefix {self._prefix!r} cannot be added; set the encoder's "
                "prefix to '' (if the prefix is in the ids) or use a collection of texts"
            )
        worst = max((max(ids) for ids in texts if ids), default=0)
        if worst >= self._size or any(token < 0 for ids in texts for token in ids):
            raise CheckpointError(
                f"the collection came as token ids up to {worst}, but the tokenizer has {self._size}: it was tokenized for "
                "another model; use a collection of texts"
            )
        return texts

    def _check_words(self) -> None:
        """Raise CheckpointError where the words of the vocabulary itself cannot be told from each other."""
        words = sorted(self._backend.get_vocab(with_added_tokens=False))
        encodings = self._backend.encode_batch(words[:: len(words) // WORDS_TRIED + 1], add_special_tokens=False)
        found = {token for encoding in encodings for token in encoding.ids} - self._special_ids()
        if len(found) < 2:
            raise CheckpointError(
                f"{self._folder}: a tokenizer without words: of the {len(words)} in its vocabulary it tells no two apart, so "
                "that all texts would look the same; save it again, or set encoder.tokenizer to the one that the training used"
            )

    def _special_ids(self) -> set[int]:
        return {number for number, token in self._backend.get_added_tokens_decoder().items() if token.special}

    def _make_key(self) -> str:
        backend = hashlib.sha256(self._backend.to_str().encode()).hexdigest()  # holds the truncation too
        parts = {"backend": backend, "prefix": self._prefix, "max_length": self._max_length}
        ends = {"add": self._add, "drop": self._drop, "end": self._end if self._add or self._drop else []}
        return fingerprint({**parts, **ends, **({} if self._special else {"special": False})})


@contextlib.contextmanager
def _faults_of(folder: Path) -> Iterator[None]:
    """Raise CheckpointError for whatever a tokenizer from outside does: its libraries raise plain Exception for a file that
    they cannot use, whatever Python raises for a value of the wrong type, and a panic where a pattern takes too long."""
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be used ({said}); save it again, or set encoder.tokenizer to the one that the "
            "training used"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    backend: Backend
    end_of_text: int | None
    truncation_side: str


def _load(folder: Path) -> _Loaded:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load its tokenizer: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{folder}: {type(tokenizer).__name__} has no fast form; save a tokenizer.json beside it, or set encoder.tokenizer"
        )
    backend: Backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
    return _Loaded(backend=backend, end_of_text=tokenizer.eos_token_id, truncation_side=tokenizer.truncation_side)


def _static(folder: Path) -> _Loaded:
    return _Loaded(backend=Backend.from_file(str(folder / "tokenizer.json")), end_of_text=None, truncation_side="right")


def _lower_case(backend: Backend) -> None:
    """As sentence-transformers does for do_lower_case: first of all normalisers, unless there is one."""
    present = backend.normalizer
    members: list[Any] = [] if present is None else [present]
    if isinstance(present, NormalizerSequence):
        members = [present[place] for place in range(len(present))]
    if not any(isinstance(member, Lowercase) for member in members):
        backend.normalizer = NormalizerSequence([Lowercase(), *members])


def _end_of_text(token: int | None, folder: Path, append_eos: bool | None) -> list[int]:
    if append_eos is True and token is None:
        raise CheckpointError(f"encoder.append_eos: the tokenizer in {folder} has no end-of-text token; leave it unset")
    return [] if token is None else [token]


def _are_ids(texts: Sequence[str] | Sequence[list[int]]) -> TypeGuard[Sequence[list[int]]]:
    return len(texts) > 0 and not isinstance(texts[0], str)
