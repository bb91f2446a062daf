"""Docstrings and comments of the Python standard library, read from its source files; nothing is imported or run."""

import ast
import logging
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dr_validate.errors import DatasetError

log = logging.getLogger(__name__)

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})


class Docstring(NamedTuple):
    """`id` is `module.qualname`; `rest` is empty for a docstring of one line. Runs of white space are single spaces."""

    id: str
    summary: str
    rest: str


class Comment(NamedTuple):
    """A block of comment lines; `id` is `module#line`."""

    id: str
    text: str


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
