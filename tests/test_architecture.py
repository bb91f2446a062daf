"""The shape of the code is a test: who may import whom, how long things may get, what must not be imported early."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dr_validate"
ROOT = "the package itself"  # modules that are in no folder; `config`, which names the stages, has a floor as if it were one
STAGES = ("source", "store", "dataset", "encoder", "sampler", "engine", "index", "metrics", "fidelity")
# Who may import whom: a folder imports the package's own modules, and folders of the floors below its own. A stage knows no
# other stage.
FLOORS: tuple[tuple[str, ...], ...] = (
    STAGES,
    ("estimator", "config"),
    ("ledger",),
    ("report", "tracker"),
    ("worker", "watcher"),
    ("cli", "integrations"),
)
HEAVY = {
    "torch",
    "transformers",
    "faiss",
    "pyarrow",
    "datasets",
    "wandb",
    "ranx",
    "numba",
    "scipy",
    "bm25s",
    "peft",
    "pandas",
    "rich",
    "ray",
}
FILES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports: anywhere, or where importing the file imports them."""
    tree = tree_of(path)
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    return {name.removeprefix("dr_validate.") for name in imports(path) if name.startswith("dr_validate.")}


FOLDERS = sorted([*(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()), "config"])


def folder_of(module: str) -> str:
    first = module.split(".")[0]
    return first if first in FOLDERS else ROOT


def test_every_folder_has_its_floor() -> None:
    assert sorted(folder for floor in FLOORS for folder in floor) == FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_from_floors_below(folder: str) -> None:
    floor = next(number for number, folders in enumerate(FLOORS) if folder in folders)
    below = {name for folders in FLOORS[:floor] for name in folders} | {folder, ROOT}
    for path in [*(PACKAGE / folder).rglob("*.py"), *PACKAGE.glob(f"{folder}.py")]:
        others = {name for name in ours(path) if folder_of(name) not in below}
        assert not others, f"{path.relative_to(PACKAGE)} imports {others}"


def test_the_modules_of_the_package_itself_import_no_folder() -> None:
    for path in PACKAGE.glob("*.py"):
        others = {name for name in ours(path) if folder_of(name) != ROOT}
        assert path.stem in ("__main__", "config") or not others, f"{path.name} imports {others}"


def test_there_are_no_import_cycles() -> None:
    graph = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in FILES}
    edges = {name: {other for other in ours(path) if other in graph} for name, path in graph.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join([*trail, name])}"
        if name not in done:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_files_and_functions_stay_small() -> None:
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 400, f"{path.name} is longer than 400 lines"
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 50, f"{path.name}: {node.name} is longer than 50 lines"
                arguments = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]
                assert len(arguments) <= 7, f"{path.name}: {node.name} has {len(arguments)} parameters"


def test_components_import_nothing_heavy_at_the_top() -> None:
    named = [path for path in FILES if "@component" in path.read_text()]
    assert len(named) >= 15
    for path in named:
        heavy = {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY
        assert not heavy, f"{path.name} imports {heavy} at the top"


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, dr_validate.cli.run, dr_validate.config, dr_validate.watcher.loop; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(out.split()) & HEAVY


def test_nothing_in_the_package_prints() -> None:
    for path in FILES:
        calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert "print" not in names, path.name


def test_any_exception_is_caught_only_at_the_borders() -> None:
    borders = {
        "attempts.py": "one checkpoint, validated",
        "delivery.py": "one tracker",
        "doctor.py": "one checkpoint, looked at before it is validated",
        "main.py": "what the other process hears of",
        "polling.py": "a thread, whose errors the watcher raises",
        "folder.py": "one checkpoint, listed: the others are",
        "wandb.py": "one version, listed: the others are",
        "storage.py": "storage of any kind, whose errors become Python's",
    }
    for path in FILES:
        if "except Exception" in path.read_text():
            assert path.name in borders, path.name


def test_no_test_imports_another_tests_file() -> None:
    tests = Path(__file__).parent
    for path in tests.rglob("*.py"):
        found = re.findall(r"^from tests\.(?:\w+\.)*(?:test_\w+|conftest) import", path.read_text(), re.M)
        assert not found, f"{path.relative_to(tests)}: {found}; what tests share is in factories.py or beside them"


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE), ids=lambda f: f.name
)
def test_the_map_of_a_folder_names_its_modules_and_no_others(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    alone = {*re.findall(r"`([a-z_0-9]+)`", text), *re.findall(r"(\w+)\.py\b", text)}
    assert alone <= modules, "no such module"
    assert modules <= alone | set(re.findall(r"`([a-z_0-9]+)\.", text)), "not on the map"


def test_no_two_modules_give_one_name_to_two_things() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    twice = {name: where for name, where in places.items() if len(where) > 1 and name != "main"}
    assert not twice, "a reader who searches for a name finds one definition"
