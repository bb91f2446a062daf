"""The README cannot drift: its commands compose, its choices are those of conf/, its files exist."""

import csv
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dr_validate.cli.overrides import explain_sweep

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    *(page for folder in ("dr_validate", "scripts", "tests", ".github") for page in (ROOT / folder).rglob("*.md")),
]
BASH = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
DATASETS = (ROOT / "dr_validate" / "dataset" / "README.md").read_text()
TOLD = [*BASH, *re.findall(r"^python -m dr_validate \+run=msmarco .*$", DATASETS, re.M)]
COMMANDS = [shlex.split(line, comments=True)[3:] for line in TOLD if line.startswith("python -m dr_validate")]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_composes(arguments: list[str], dr_validate: Any) -> None:
    if "-m" in arguments:
        assert explain_sweep(arguments) is None  # each job
        return
    result = dr_validate(*arguments, "--cfg", "job")
    assert result.returncode == 0, result.stderr


def test_there_are_commands_and_their_scripts_exist() -> None:
    assert len(COMMANDS) >= 8
    scripts = [shlex.split(line)[1] for line in BASH if line.startswith("bash ")]
    assert scripts == ["scripts/demo.sh", "scripts/test.sh"]
    assert all((ROOT / script).exists() for script in scripts)


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= 152, "whole sections belong on the page of their folder"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def anchors(page: str) -> set[str]:
    """Of its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page, re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_table_names_every_choice() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+` ?)+)\|", README, re.M))
    told = {group: set(re.findall(r"\w+", choices)) for group, choices in rows.items()}
    groups = [folder for folder in (ROOT / "conf").iterdir() if folder.is_dir() and folder.name != "hydra"]
    assert told == {folder.name: {path.stem for path in folder.glob("*.yaml")} for folder in groups}


def test_every_module_of_the_tree_exists() -> None:
    tree = (ROOT / "dr_validate" / "README.md").read_text()
    for name in re.findall(r"\b(\w+\.py)\b", tree):
        assert any(list((ROOT / folder).rglob(name)) for folder in ("dr_validate", "scripts", "tests")), name


@pytest.mark.parametrize(("path", "least"), [("tests", 30), ("dr_validate/dataset", 15), ("dr_validate/encoder", 15)])
def test_every_test_that_a_table_names_exists(path: str, least: int) -> None:
    page = (ROOT / path / "README.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", page)
    assert len(named) > least
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / path).read_text(), f"{path}::{name}"
    assert page.count("::") == len(named), "a test is named in another form"


def test_the_summary_of_the_study_is_that_of_its_figures() -> None:
    study = ROOT / "scripts" / "research"
    with (study / "study.csv").open(newline="") as lines:
        figures = {(row["collection"], row["sample"], row["baselines"], row["metric"]): row for row in csv.DictReader(lines)}
    rows = re.findall(r"^\| (\w+) (\d+%) \| (.+) \|$", (study / "STUDY.md").read_text(), re.M)
    assert len(rows) == 17
    for collection, sample, cells in rows:
        alone, with_one, ndcg, recall = (
            figures[collection, sample, baselines, metric]
            for baselines, metric in (("0", "mrr@10"), ("1", "mrr@10"), ("0", "ndcg@10"), ("0", "recall@100"))
        )
        names = ("rmse", "bias", "difference_rmse", "tau", "regret", "levels_covered", "worst_checkpoint_covered")
        first = [alone[name] for name in (*names, "level_half_width", "differences_covered")]
        told = [*first, ndcg["rmse"], recall["rmse"], *(with_one[name] for name in ("rmse", "bias", "levels_covered"))]
        assert re.findall(r"[-+]?[\d.]+", cells) == told, f"{collection} {sample}"
