"""Tables of text: whether the first line is a header, and then the columns by its names, never by their place."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

QUERY_ID = ("query-id", "query_id", "qid", "topic-id", "topic", "query")
DOCUMENT_ID = ("corpus-id", "corpus_id", "pid", "docid", "doc_id", "document-id", "passage-id", "docno")
# What headers are made of beside the names that are read: a first line of such words alone is a header, too.
USUAL = frozenset({"abstract", "answer", "answers", "body", "category", "content", "date", "doc", "document", "documentid"})
USUAL |= {"grade", "headings", "id", "index", "iteration", "key", "label", "lang", "language", "metadata", "name", "number"}
USUAL |= {"paragraph", "passage", "q0", "question", "rank", "sentence", "source", "split", "summary", "tag", "text", "title"}
USUAL |= {"topic", "type", "url", "value"}
_CELL = re.compile(r'"([^"]*(?:""[^"]*)*)"(?=\t|\Z)|([^\t]*)')
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a table may call its columns. `needed`: what has to be there, in words, and the names accepted for it."""

    needed: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()

    def header(self, first: Sequence[str], second: Sequence[str] = ()) -> tuple[str, ...] | None:
        """The names in the cells of the first line, in the spelling of this class where it knows them; None where that line is
        data, which the second line helps to tell. Raises ValueError for a header that lacks a column, or has one twice."""
        accepted = [name for names in (*self.needed.values(), self.optional) for name in names]
        spelled = {plain(name): name for name in reversed(accepted)}
        words = [plain(cell) for cell in first]
        if not _is_header(words, spelled.keys()) and not (len(first) > 1 and _has_words_for_numbers(first, second)):
            return None
        names = tuple(spelled.get(word, cell.strip()) for word, cell in zip(words, first, strict=True))
        lacking = [what for what, among in self.needed.items() if not set(among) & set(names)]
        if lacking:
            expected = "; ".join(f"{what}: one of {list(self.needed[what])}" for what in lacking)
            raise ValueError(
                f"this looks like a header, {[cell.strip() for cell in first]}, but names no {' and no '.join(lacking)} "
                f"(expected for the {expected}); rename its columns, or remove it; if it is data, put a header above it"
            )
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"the header {list(names)} names {', '.join(map(repr, twice))} twice; keep one of them")
        return names


def plain(name: str) -> str:
    """A column's name without what spellings differ in: `Query_ID`, `query-id` and `"query id"` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def split_quoted(line: str) -> list[str]:
    """Cells between tabs; one within quotes, as CSV writes it, may hold tabs, and two quotes for one."""
    if '"' not in line:
        return line.split("\t")
    cells, place = [], 0
    while place <= len(line):
        found = _CELL.match(line, place)
        assert found is not None, "a cell may be empty"
        quoted, bare = found.groups()
        cells.append(bare if quoted is None else quoted.replace('""', '"'))
        place = found.end() + 1
    return cells


def _is_header(words: Sequence[str], known: Collection[str]) -> bool:
    """Two names that are read, or one where no cell has a digit, or nothing but words that headers are made of."""
    number = sum(word in known for word in words)
    if number > 1 or (number == 1 and not any(_DIGIT.search(word) for word in words)):
        return True
    return all(word in USUAL or word in known for word in words)


def _has_words_for_numbers(first: Sequence[str], second: Sequence[str]) -> bool:
    """Single words without a digit above an id with one."""
    words = all(len(cell.split()) == 1 and not _DIGIT.search(cell) for cell in first)
    return words and bool(second) and _DIGIT.search(second[0]) is not None
