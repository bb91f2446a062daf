"""The shape of the code is a test: who may import whom, how long things may get, what must not be imported early."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dr_validate"
STAGES = ("source", "store", "dataset", "encoder", "sampler", "engine", "index", "metrics", "estimator", "fidelity", "tracker")
SHARED = {"values", "errors", "component", "files", "stages", "strategies", "tables", "tokens", "messages"}
SHARED |= {"report_json", "report_notes", "findings", "per_query"}
BELOW = {"estimator": {"metrics"}}  # what a metric is worth at a rank is said once
KNOW_THE_ORDER = {"pipeline", "config", "delivery", "estimates", "plans"}
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
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports: anywhere, or where importing the file imports them."""
    tree = ast.parse(path.read_text())
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


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage: str) -> None:
    for path in (PACKAGE / stage).glob("*.py"):
        others = {name.split(".")[0] for name in ours(path)} - {stage} - SHARED - BELOW.get(stage, set())
        assert not others, f"{path.name} imports {others}"


def test_only_those_who_know_the_order_import_stages() -> None:
    for path in PACKAGE.glob("*.py"):
        if path.stem not in KNOW_THE_ORDER:
            stages = {name.split(".")[0] for name in ours(path)} & set(STAGES)
            assert not stages, f"{path.name} imports {stages}"


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
        for node in ast.walk(ast.parse(text)):
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
    code = "import sys, dr_validate.__main__, dr_validate.config, dr_validate.watch; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(out.split()) & HEAVY


def test_nothing_in_the_package_prints() -> None:
    for path in FILES:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert "print" not in names, path.name


def test_any_exception_is_caught_only_at_the_borders() -> None:
    borders = {
        "attempt.py": "one checkpoint, validated",
        "delivery.py": "one tracker",
        "worker.py": "what the other process hears of",
        "polling.py": "a thread, whose errors the watcher raises",
        "folder.py": "one checkpoint, listed: the others are",
        "wandb.py": "one version, listed: the others are",
    }
    for path in FILES:
        if "except Exception" in path.read_text():
            assert path.name in borders, path.name
