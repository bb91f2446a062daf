"""What pages, docstrings and comments name is there: files, keys, choices of a group, modules."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PLACES = ("dr_validate", "conf", "scripts", "tests", ".github")
FILES = [
    *ROOT.glob("*.*"),
    *(ROOT / ".ci").iterdir(),
    *(path for place in PLACES for path in (ROOT / place).rglob("*") if path.is_file() and "__pycache__" not in path.parts),
]
PARTS = [path.relative_to(ROOT).parts for path in FILES]
NAMES = {"/".join(parts[place:]) for parts in PARTS for place in range(len(parts))}  # whole, and from any folder on
PROSE = [
    path
    for path in FILES
    if path.suffix in (".md", ".yaml", ".sh", ".py") and path.name != "CHANGELOG.md" and not path.is_relative_to(ROOT / "tests")
]
GROUPS = {folder.name: {path.stem: path for path in folder.glob("*.yaml")} for folder in CONF.iterdir() if folder.is_dir()}
# Of others: DPR's and sentence-transformers' own files, what the examples of a page write, a key that an example has wrong.
OTHERS = {"dpr/data/qa_validation.py", "dpr/utils/tokenizers.py", "modules/pooling.py", "samplers.py", "metrics.py"}
OTHERS |= {"thousand.yaml", "study.md", "table.md", "sampler=thousand", "sampler=a", "sampler.documents", "store.max_gb"}
OTHERS |= {"report.html", "report.csv", "report.differences", "report.metrics"}  # files, and a variable of an example
FILE = re.compile(r"[\w./-]*\w\.(?:py|md|sh|yaml)\b")


def loaded(path: Path) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(path))
    return found or {}


def keys_by_section() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for section, keys in loaded(CONF / "config.yaml").items():
        found[section] = set(keys) if isinstance(keys, dict) else set()
    for group, choices in GROUPS.items():
        for path in choices.values():
            found.setdefault(group, set()).update(loaded(path))
    return {section: keys for section, keys in found.items() if keys and section not in ("run", "hydra", "defaults")}


KEYS = keys_by_section()
KEY = re.compile(rf"(?<![\w./-])({'|'.join(KEYS)})\.([a-z_]\w*)")
CHOICE = re.compile(rf"(?<![\w.])({'|'.join(GROUPS)})=([a-z_]\w*)")


def prose(path: Path) -> str:
    """A page, or the comments and docstrings of a file."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    return "\n".join(_of_python(text)) if path.suffix == ".py" else "\n".join(re.findall(r"#.*", text))


def _of_python(text: str) -> Iterator[str]:
    yield from (
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_is_of_something_that_is_there(path: Path) -> None:
    text = prose(path)
    for file in FILE.findall(text):
        name = re.sub(r"^(\.*/)+", "", file)
        assert name in NAMES or is_of_others(name), file
    for section, key in KEY.findall(text):
        modules = {module.stem for module in (ROOT / "dr_validate" / section).glob("*.py")}
        assert key in KEYS[section] | modules or is_of_others(f"{section}.{key}"), f"{section}.{key}"
    for group, choice in CHOICE.findall(text):
        assert choice in GROUPS[group] or is_of_others(f"{group}={choice}"), f"{group}={choice}"


def is_of_others(name: str) -> bool:
    return any(name == one or name.endswith(f"/{one}") for one in OTHERS)
