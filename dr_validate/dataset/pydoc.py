"""A collection that every machine has: the docstrings of its own Python standard library. The demo's data set."""

import ast
import functools
import hashlib
import json
import logging
import random
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pydantic import Field

from dr_validate.component import component, fingerprint
from dr_validate.dataset.build import open_test_set
from dr_validate.dataset.locate import Name, OwnFiles
from dr_validate.dataset.storage import made_once
from dr_validate.errors import DatasetError
from dr_validate.values import TestSet

log = logging.getLogger(__name__)
RULES_VERSION = 1
MAX_QUERIES = 500  # pairs kept back from training, whatever num_queries is
MIN_DOCUMENT_WORDS = 5
MIN_COMMENT_WORDS = 12
QUERY_WORDS = range(3, 21)
FILES = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels.tsv"}
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})


@component
class PydocDataset(OwnFiles):
    """Given the summary line of a docstring, find its remainder among all others, one-line docstrings and comment blocks.

    The texts are those of the running Python: another version is another test set, with another fingerprint.
    """

    name: Name | None = "pydoc"
    num_queries: int = Field(default=300, ge=1, le=MAX_QUERIES)

    def check(self) -> None:
        """See `Dataset.check`: what is read are the sources of the running Python."""

    def open(self, cache: Path) -> TestSet:
        """See `Dataset.open`."""
        folder = _written(self.num_queries, cache)
        collection = self.collect(self.name or "pydoc", {part: [folder / file] for part, file in FILES.items()})
        return open_test_set(collection, cache)


@dataclass(frozen=True, slots=True)
class Pair:
    """A summary line and the remainder of its docstring, which is the document `id`."""

    id: str
    query: str
    document: str


def training_pairs(seed: int) -> list[tuple[str, str]]:
    """(query, document) texts to train on, shuffled by `seed`; no query or relevant document of any test set is among them."""
    _, pairs = _documents_and_pairs(standard_library())
    rows = [(pair.query, pair.document) for pair in _by_hash(pairs)[MAX_QUERIES:]]
    random.Random(seed).shuffle(rows)
    return rows


def _written(num_queries: int, cache: Path) -> Path:
    """The collection as files in BEIR's form, made once per Python and settings."""
    root = standard_library()
    parts = {"python": sys.version, "root": str(root), "num_queries": num_queries, "rules": RULES_VERSION}
    folder = cache / f"pydoc-{fingerprint(parts)}"
    made_once(folder, RULES_VERSION, lambda fresh: _write(num_queries, fresh))
    return folder


def _write(num_queries: int, folder: Path) -> None:
    log.info("collecting docstrings under %s (once)", standard_library())
    documents, pairs = _documents_and_pairs(standard_library())
    test = _by_hash(pairs)[:num_queries]
    _write_rows(folder / FILES["corpus"], documents)
    _write_rows(folder / FILES["queries"], {f"{pair.id}?": pair.query for pair in test})
    judged = "".join(f"{pair.id}?\t{pair.id}\t1\n" for pair in test)
    (folder / FILES["qrels"]).write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")


@functools.cache  # parsing some 700 files takes seconds, and a trainer asks for pairs and test set
def _documents_and_pairs(root: Path) -> tuple[Mapping[str, str], tuple[Pair, ...]]:
    """Documents by id, each text once (the first counts), and the pairs whose summary line names one docstring only."""
    docstrings, comments = read_sources(root)
    summaries = Counter(docstring.summary.lower() for docstring in docstrings)
    documents: dict[str, str] = {}
    pairs: list[Pair] = []
    seen: set[str] = set()
    for identity, text, query in _candidates(docstrings, comments):
        if text.lower() in seen:
            continue
        seen.add(text.lower())
        unique = _unique(identity, documents)
        documents[unique] = text
        if query is not None and summaries[query.lower()] == 1 and len(query.split()) in QUERY_WORDS:
            pairs.append(Pair(unique, query, text))
    # A comment that repeats a summary line would be a better answer than the judged one.
    queries = {pair.query.lower() for pair in pairs}
    kept = {identity: text for identity, text in documents.items() if text.lower() not in queries}
    return MappingProxyType(kept), tuple(pairs)


class Docstring(NamedTuple):
    """`id` is `module.qualname`; `rest` is empty for a docstring of one line. Runs of white space are single spaces."""

    id: str
    summary: str
    rest: str


class Comment(NamedTuple):
    """A block of comment lines; `id` is `module#line`."""

    id: str
    text: str


def _candidates(docstrings: list[Docstring], comments: list[Comment]) -> list[tuple[str, str, str | None]]:
    """(id, document, query or None) in a fixed order."""
    rows: list[tuple[str, str, str | None]] = []
    for docstring in docstrings:
        if len(docstring.rest.split()) >= MIN_DOCUMENT_WORDS:
            rows.append((docstring.id, docstring.rest, docstring.summary))
        elif len((text := f"{docstring.summary} {docstring.rest}".strip()).split()) >= MIN_DOCUMENT_WORDS:
            rows.append((docstring.id, text, None))
    rows.extend((comment.id, comment.text, None) for comment in comments if len(comment.text.split()) >= MIN_COMMENT_WORDS)
    return rows


def _unique(identity: str, taken: dict[str, str]) -> str:
    """Names defined twice (branches of an `if`, property setters) get a number."""
    number, candidate = 1, identity
    while candidate in taken:
        number += 1
        candidate = f"{identity}~{number}"
    return candidate


def _by_hash(pairs: Sequence[Pair]) -> list[Pair]:
    """In an order that only the ids decide, so that a pair added elsewhere moves no other across the border."""
    return sorted(pairs, key=lambda pair: (hashlib.blake2b(pair.id.encode(), digest_size=8).digest(), pair.id))


def _write_rows(file: Path, texts: Mapping[str, str]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for identity, text in texts.items():
            stream.write(json.dumps({"_id": identity, "text": text}, ensure_ascii=False) + "\n")


def standard_library() -> Path:
    """Where this interpreter's standard library is."""
    return Path(sysconfig.get_path("stdlib"))


def read_sources(root: Path) -> tuple[list[Docstring], list[Comment]]:
    """All docstrings and comment blocks under `root`, by the files' paths. Raises DatasetError if there are none."""
    docstrings: list[Docstring] = []
    comments: list[Comment] = []
    unreadable = 0
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        if SKIPPED_FOLDERS & set(inside.parts):
            continue
        parts = inside.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            with tokenize.open(file) as stream:  # honours a coding line
                source = stream.read()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old modules
                tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):
            unreadable += 1
            continue
        docstrings.extend(_docstrings(tree, module))
        comments.extend(_comments(source, module))
    if not docstrings:
        raise DatasetError(f"dataset=pydoc: no Python source files under {root}; choose another dataset for this interpreter")
    if unreadable:
        log.info("%d source files under %s cannot be parsed and are left out", unreadable, root)
    return docstrings, comments


def _docstrings(node: ast.AST, name: str) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = (ast.get_docstring(node) or "").strip()
        if text:
            summary, _, rest = text.partition("\n")
            yield Docstring(name, squeezed(summary), squeezed(rest))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")
        else:
            yield from _docstrings(child, name)


def _comments(source: str, module: str) -> Iterator[Comment]:
    block: list[str] = []
    start = 0
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        stripped = line.strip()
        if stripped.startswith("#"):
            start = start if block else number
            block.append(stripped.lstrip("#!: "))
        elif block:
            yield Comment(f"{module}#{start}", squeezed(" ".join(block)))
            block = []


def squeezed(text: str) -> str:
    """`text` with single spaces only; half surrogates, which some docstrings show, as question marks."""
    return " ".join(text.encode(errors="replace").decode().split())
