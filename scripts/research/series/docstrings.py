"""Docstrings to a retrieval collection: a first line is a query, what follows it is the document that it should find."""

import ast
import json
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dr_validate.dataset.pydoc import squeezed
from dr_validate.errors import SetupError
from dr_validate.files import atomic_folder, write_atomically
from scripts.research.series.sources import read_packages

log = logging.getLogger(__name__)

MAX_CHARACTERS = 700
MIN_DOCUMENT_WORDS = 6
MIN_REMAINDER_WORDS = 8  # a shorter remainder answers nothing: it joins its first line, as a document without a query
QUERY_WORDS = range(4, 21)
Pair = tuple[str, int]  # query and ordinal of its document
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True, kw_only=True)
class Docstrings:
    """Documents, each text once and each first line once (the first counts), in the order in which they are added."""

    signatures: bool = False
    documents: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    _texts: set[str] = field(default_factory=set)
    _queries: set[str] = field(default_factory=set)

    def add(self, docstring: str, signature: str) -> None:
        """One docstring, and the signature of what it belongs to ("" for a module)."""
        head, _, remainder = docstring.strip().partition("\n")
        head, remainder = squeezed(head), squeezed(remainder)
        prefix = f"{signature} " if self.signatures and signature else ""
        if len(remainder.split()) < MIN_REMAINDER_WORDS:
            self._keep(f"{head} {remainder}".strip(), prefix)
            return
        kept = self._keep(remainder, prefix)
        if kept and len(head.split()) in QUERY_WORDS and head.lower() not in self._queries:
            self._queries.add(head.lower())
            self.pairs.append((head, len(self.documents) - 1))

    def _keep(self, text: str, prefix: str) -> bool:
        cut = text[:MAX_CHARACTERS]
        if len(cut.split()) < MIN_DOCUMENT_WORDS or cut.lower() in self._texts:
            return False
        self._texts.add(cut.lower())
        self.documents.append((prefix + cut)[:MAX_CHARACTERS])
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What a series is trained and tested on; no query of `training` is a test query, nor its document a test document."""

    documents: Sequence[str]
    test: Sequence[Pair]
    training: Sequence[Pair]


def collect(packages: Sequence[str], signatures: bool) -> Docstrings:
    """All docstrings in ASCII of these packages. Raises SetupError for a package that cannot be read."""
    found = Docstrings(signatures=signatures)
    for label, files in read_packages(packages):
        before = len(found.documents)
        for _, content in files:
            for docstring, signature in _docstrings(content):
                found.add(docstring, signature)
        log.info("%s: %d files, %d documents", label, len(files), len(found.documents) - before)
    return found


def draw(found: Docstrings, num_documents: int, num_queries: int, seed: int) -> Collection:
    """So many documents (all, where there are fewer) in their own order, and test queries among them. Raises SetupError where
    too few pairs remain to train on."""
    chance = random.Random(seed)
    total = len(found.documents)
    kept = sorted(chance.sample(range(total), min(num_documents, total)))
    place = {ordinal: number for number, ordinal in enumerate(kept)}
    pairs = [(query, place[ordinal]) for query, ordinal in found.pairs if ordinal in place]
    chance.shuffle(pairs)
    if len(pairs) < 2 * num_queries:
        raise SetupError(
            f"--queries: got {num_queries}, but {len(kept)} documents have {len(pairs)} queries, and as many as for the test "
            "must be left to train on; give more --packages, more --documents or fewer --queries"
        )
    documents = [found.documents[ordinal] for ordinal in kept]
    return Collection(documents=documents, test=pairs[:num_queries], training=pairs[num_queries:])


def write_beir(collection: Collection, folder: Path) -> None:
    """In BEIR's form; ids are the ordinals, so that ties are broken as in coll.json."""
    with atomic_folder(folder) as fresh:
        _write_rows(fresh / "corpus.jsonl", {str(number): text for number, text in enumerate(collection.documents)})
        _write_rows(fresh / "queries.jsonl", {str(number): query for number, (query, _) in enumerate(collection.test)})
        judged = "".join(f"{number}\t{document}\t1\n" for number, (_, document) in enumerate(collection.test))
        (fresh / "qrels").mkdir()
        (fresh / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")


def write_coll_json(collection: Collection, file: Path) -> None:
    """As `scripts/research/fidelity_study.py --vectors` reads it."""
    queries, gold = zip(*collection.test, strict=True)
    write_atomically(file, json.dumps({"docs": collection.documents, "queries": queries, "gold": gold}))


def _docstrings(content: bytes) -> Iterator[tuple[str, str]]:
    """Docstring and signature of each definition in a source file, none of one that this Python cannot parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            docstring = ast.get_docstring(node)
            if docstring and docstring.isascii():
                yield docstring, _signature(node)


def _signature(node: Definition) -> str:
    if isinstance(node, ast.Module):
        return ""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    return f"{node.name}({squeezed(ast.unparse(node.args))})"


def _write_rows(file: Path, texts: Mapping[str, str]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for identity, text in texts.items():
            stream.write(json.dumps({"_id": identity, "text": text}) + "\n")
