"""DPR's open-domain question answering: Wikipedia in passages, questions with answers; relevant is what holds an answer.

Answers are looked for over a whole corpus at once, as DPR does (github.com/facebookresearch/DPR, `has_answer` in
dpr/data/qa_validation.py with match_type "string", and `SimpleTokenizer` in dpr/utils/tokenizers.py): text and answer are
decomposed (NFD) and cut into runs of letters, numbers and marks, and single other characters that are neither separators nor
control characters; a passage is relevant if the lower-cased tokens of an answer stand in its text, next to each other. Its
title does not count.
"""

import ast
import csv
import functools
import itertools
import logging
import re
import time
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from dr_validate.component import UserPath, component
from dr_validate.dataset.build import Collection, Judge
from dr_validate.dataset.corpus import ArrowCorpus
from dr_validate.dataset.locate import OwnFiles, existing_folder, folder_name, locate, variants
from dr_validate.dataset.read import JSON_SUFFIXES, Place, Problems, json_rows, lines, shorten
from dr_validate.dataset.records import DOCUMENT, Entry, Part, entry_part, identifier, judgement_part, texts_alone
from dr_validate.dataset.storage import File, made_once
from dr_validate.errors import DatasetError
from dr_validate.process import MOST_PROCESSES, cores, in_processes
from dr_validate.values import Int32, Int64, Qrels

log = logging.getLogger(__name__)
RULES_VERSION = 1  # of what is judged relevant
AT_ONCE = 2_000  # texts that a process is handed
FEW = 20_000  # are matched here: processes would take longer to start
_OF_ASCII = re.compile(r"[0-9a-z]+|[!-/:-@\[-`{-~]")
Matches = tuple[Int64, Int32]  # how many texts answer each question, and the ordinals of those of the first, the second ...


@component
class DprDataset(OwnFiles):
    """`psgs_w100.tsv` and `*-SPLIT.qa.csv` under `path`: a passage is relevant to a question if its text holds an answer, as
    DPR judges it, so that `hit_rate@20` is DPR's top-20 accuracy. Both may be gzipped.

    `queries` may also be JSON lines of `question`, `answers` and `lang` (XOR-TyDi), of which `language` takes one. Questions
    that no passage answers count as 0; those with more than `max_matches` relevant passages are left out.
    """

    path: UserPath | None = None
    split: Annotated[str, Field(pattern=r"^[^/\\]+$")] = "test"
    language: str | None = None
    max_matches: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _has_places(self) -> "DprDataset":
        if self.path is None and (self.corpus is None or self.queries is None):
            raise ValueError(
                "got no path; set dataset.path to the folder of psgs_w100.tsv, or dataset.corpus and dataset.queries"
            )
        if self.qrels is not None and self.max_matches is not None:
            raise ValueError(f"got max_matches={self.max_matches}, which has no effect beside qrels")
        return self

    def collection(self) -> Collection:
        folder = existing_folder(self.path)
        problems = Problems(self.name or "dpr")
        corpus = locate("corpus", self.corpus, variants(folder, "psgs_w100.tsv"), problems)
        queries = locate("queries", self.queries, self._questions_in(folder), problems)
        qrels = () if self.qrels is None else locate("qrels", self.qrels, [], problems)
        problems.stop_if_any()
        asked = Part(files=queries, read=lambda problems: (each.entry for each in self._questions(queries, problems)))
        rules = {"answers": RULES_VERSION, "language": self.language, "max_matches": self.max_matches}
        made = Judge(files=queries, rules=rules, judge=lambda *known: self._judge(corpus, queries, *known))
        name = self.name or folder_name(Path(queries[0].name.partition(".")[0]))
        return self.collected(name, entry_part(corpus, DOCUMENT), asked, judgement_part(qrels) if qrels else made)

    def _questions_in(self, folder: Path) -> list[Path]:
        if self.queries is not None:
            return []
        found = sorted(file for ending in ("", ".gz") for file in folder.glob(f"*-{self.split}.qa.csv{ending}"))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise DatasetError(f"dataset.queries: {folder} holds {names}; set dataset.queries to one of them")
        return found or [folder / f"nq-{self.split}.qa.csv"]

    def _questions(self, files: tuple[File, ...], problems: Problems) -> Iterator["Question"]:
        for file in files:
            is_json = Path(file.name.removesuffix(".gz")).suffix.lower() in JSON_SUFFIXES
            if self.language is not None and not is_json:
                raise DatasetError(f"dataset.language: got {self.language!r}, but {file} has no languages; remove it")
            if file.name.lower().startswith("curatedtrec") and self.qrels is None:
                raise DatasetError(f"{file}: its answers are regular expressions, which are not supported; set dataset.qrels")
            yield from _of_json(file, self.language, problems) if is_json else _of_csv(file, problems)

    def _judge(
        self, corpus_files: tuple[File, ...], files: tuple[File, ...], corpus: ArrowCorpus, folder: Path, problems: Problems
    ) -> tuple[list[Entry], Qrels]:
        if corpus.tokenized:
            raise DatasetError(f"{corpus_files[0]}: the passages are token ids, in which no answer can be looked for")
        questions = list(self._questions(files, problems))
        if not questions:
            language = "" if self.language is None else f" in the language {self.language!r}"
            problems.add(files[0], f"no questions{language}; check dataset.queries")
        problems.stop_if_any()
        known = [question.answers for question in questions]
        made_once(folder, RULES_VERSION, lambda fresh: _match(texts_alone(corpus_files), known, fresh))
        counts, documents = (np.load(folder / f"{name}.npy") for name in ("counts", "documents"))
        kept = np.ones(len(questions), dtype=np.bool_) if self.max_matches is None else counts <= self.max_matches
        _say(counts, kept, len(corpus), self.max_matches)
        if not np.any(counts[kept]):
            raise DatasetError(f"{files[0]}: no question has an answer in {corpus_files[0]}; do they belong together?")
        entries = [question.entry for question, keep in zip(questions, kept.tolist(), strict=True) if keep]
        return entries, _qrels(documents[np.repeat(kept, counts)], counts[kept])


@dataclass(frozen=True, slots=True)
class Question:
    """A question under the id of its line, or its own, and what answers it."""

    entry: Entry
    answers: tuple[str, ...]


def _of_csv(file: File, problems: Problems) -> Iterator[Question]:
    """DPR's `question<TAB>['answer', ...]`, quoted as CSV, without a header; `qN` is the question in line N."""
    reader = csv.reader((f"{line}\n" for _, line in lines(file, problems)), delimiter="\t")
    for cells in reader:
        place = Place(str(file), reader.line_num)
        if len(cells) != 2:
            problems.add(place, f"got {len(cells)} columns in {shorten(cells)}, expected question<TAB>['answer', ...]")
            continue
        try:
            given = ast.literal_eval(cells[1])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            problems.add(place, f"answers: got {shorten(cells[1])}, expected a list such as ['one', 'two']")
            continue
        yield from _question(f"q{reader.line_num}", cells[0], given, place, problems)


def _of_json(file: File, language: str | None, problems: Problems) -> Iterator[Question]:
    for place, row in json_rows(file, problems):
        if language is not None and "lang" not in row:
            problems.add(place, f"no lang: got the fields {sorted(row)}, but dataset.language={language} asks for one language")
        elif language in (None, row.get("lang")):
            text, own = row.get("question"), identifier(row.get("id", f"q{place.number}"))
            if not isinstance(text, str) or own is None:
                problems.add(place, f"got the fields {sorted(row)}, expected id, question and answers")
            else:
                yield from _question(own, text, row.get("answers"), place, problems)


def _question(identity: str, text: str, given: Any, place: Place, problems: Problems) -> Iterator[Question]:
    if not isinstance(given, list) or not given or not all(isinstance(answer, str) for answer in given):
        problems.add(place, f"answers: got {shorten(given)}, expected a list of at least one text")
    elif empty := [answer for answer in given if not words(answer)]:
        problems.add(place, f"answer {empty[0]!r}: holds no word, so that DPR finds it in every passage; remove it")
    else:
        yield Question(Entry(identity, text, place), tuple(given))


def _match(texts: Iterator[str], known: list[tuple[str, ...]], folder: Path) -> None:
    log.info("looking for the answers to %d questions in the whole corpus (once)", len(known))
    start = time.monotonic()
    counts, documents = match_answers(texts, known)
    np.save(folder / "counts.npy", counts)
    np.save(folder / "documents.npy", documents)
    log.info("%d matches found in %.0f s", len(documents), time.monotonic() - start)


def _say(counts: Int64, kept: Any, num_documents: int, most: int | None) -> None:
    nowhere = int(np.count_nonzero(counts == 0))
    if nowhere:
        log.info("%d of %d questions have no answer in any passage: they count as 0, as in DPR", nowhere, len(counts))
    if left := int(np.count_nonzero(~kept)):
        log.warning(
            "dataset.max_matches=%s leaves out %d of %d questions, whose answers are in up to %d of %d passages: values are "
            "not those of all questions",
            *(most, left, len(counts), int(counts.max()), num_documents),
        )


def _qrels(documents: Int64, counts: Int64) -> Qrels:
    return Qrels(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        documents=documents.astype(np.int64),
        gains=np.ones(len(documents), dtype=np.int64),
        not_found=counts == 0,
    )


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


def match_answers(texts: Iterable[str], answers: Sequence[Sequence[str]], processes: int | None = None) -> Matches:
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
