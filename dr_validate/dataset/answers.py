"""Which passages hold an answer to which question, as DPR judges it, over a whole corpus at once.

DPR (github.com/facebookresearch/DPR, `has_answer` in dpr/data/qa_validation.py with match_type "string", and `SimpleTokenizer`
in dpr/utils/tokenizers.py): text and answer are decomposed (NFD) and cut into runs of letters, numbers and marks, and single
other characters that are neither separators nor control characters; a passage is relevant if the lower-cased tokens of an
answer stand in its text, next to each other. Its title does not count.
"""

import functools
import itertools
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.errors import DatasetError
from dr_validate.process import MOST_PROCESSES, cores, in_processes
from dr_validate.values import Int64

RULES_VERSION = 1  # of what is judged relevant
AT_ONCE = 2_000  # texts that a process is handed
FEW = 20_000  # are matched here: processes would take longer to start
_OF_ASCII = re.compile(r"[0-9a-z]+|[!-/:-@\[-`{-~]")
Int32 = NDArray[np.int32]
Matches = tuple[Int64, Int32]  # how many texts answer each question, and the ordinals of those of the first, the second ...


def words(text: str) -> list[str]:
    """Lower-cased tokens of a text, as DPR compares them."""
    if text.isascii():  # the same, five times as fast
        return _OF_ASCII.findall(text.lower())
    return [word.lower() for word in _pattern().findall(unicodedata.normalize("NFD", text))]


@functools.cache
def _pattern() -> Any:
    import regex

    return regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", regex.IGNORECASE | regex.UNICODE | regex.MULTILINE)


class Matcher:
    """Finds all answers of all questions in one pass over a text: a tree of tokens, with rows where answers end."""

    def __init__(self, answers: Sequence[Sequence[str]]) -> None:
        self._root: dict[str, Any] = {}
        for row, several in enumerate(answers):
            for answer in several:
                node = self._root
                for word in (found := words(answer)):
                    node = node.setdefault(word, {})
                assert found, "an answer without a word would be in every text"
                node.setdefault("", set()).add(row)  # no token is empty

    def rows(self, text: str) -> set[int]:
        """Questions that the text answers."""
        found: set[int] = set()
        tokens = words(text)
        root = self._root
        for place, word in enumerate(tokens):
            node = root.get(word)
            following = place + 1
            while node is not None:
                if ends := node.get(""):
                    found |= ends
                node = node.get(tokens[following]) if following < len(tokens) else None
                following += 1
        return found


def match(texts: Iterable[str], answers: Sequence[Sequence[str]], processes: int | None = None) -> Matches:
    """All matches of a corpus, in `processes` of their own (None: one for each core that this process may use).

    Memory: 20 bytes for each match, and the texts that are on their way.
    """
    stream = iter(texts)
    first = list(itertools.islice(stream, FEW))
    chunks = itertools.chain(_chunked(iter(first)), _chunked(stream))
    count = min(cores() if processes is None else processes, MOST_PROCESSES)
    if count < 2 or (processes is None and len(first) < FEW):
        matcher = Matcher(answers)
        return _by_question((_rows_of(matcher, chunk) for chunk in chunks), len(answers))
    try:
        return _by_question(in_processes(_find, chunks, count, _begin, answers), len(answers))
    except BrokenProcessPool as error:
        raise DatasetError("a process that looks for answers in the corpus was ended; is there too little memory?") from error


def _chunked(stream: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(itertools.islice(stream, AT_ONCE)):
        yield chunk


def _by_question(parts: Iterable[tuple[int, bytes, bytes]], num_questions: int) -> Matches:
    rows, ordinals, before = array("i"), array("i"), 0
    for count, of_questions, of_texts in parts:
        rows.frombytes(of_questions)
        ordinals.frombytes((np.frombuffer(of_texts, dtype=np.int32) + np.int32(before)).tobytes())
        before += count
    of_question = np.frombuffer(rows, dtype=np.int32)
    documents = np.frombuffer(ordinals, dtype=np.int32)[np.argsort(of_question, kind="stable")]
    return np.bincount(of_question, minlength=num_questions).astype(np.int64), documents


def _rows_of(matcher: Matcher, texts: Sequence[str]) -> tuple[int, bytes, bytes]:
    """How many texts, then rows and places of the matches among them, as 32-bit numbers."""
    rows, places = array("i"), array("i")
    for place, text in enumerate(texts):
        found = matcher.rows(text)
        rows.extend(found)
        places.extend([place] * len(found))
    return len(texts), rows.tobytes(), places.tobytes()


def _begin(answers: Sequence[Sequence[str]]) -> None:
    global _matcher
    _matcher = Matcher(answers)


def _find(texts: Sequence[str]) -> tuple[int, bytes, bytes]:
    assert _matcher is not None, "a process begins with _begin"
    return _rows_of(_matcher, texts)


_matcher: Matcher | None = None  # of a process that finds what another one hands out
