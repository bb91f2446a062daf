"""What `pip install` brings: the package, its conf/, and a command line that works from anywhere."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(installed), **more}
    command = [sys.executable, "-m", "dr_validate", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_carries_every_yaml_file(installed: Path) -> None:
    ours = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert {
        path.relative_to(installed / "dr_validate/conf") for path in (installed / "dr_validate/conf").rglob("*.yaml")
    } == ours
    others = ("py.typed", "report/page.css", "report/page.js")
    assert all((installed / "dr_validate" / name).exists() for name in others)


def test_the_msmarco_run_composes_from_an_installed_wheel_anywhere(installed: Path, tmp_path: Path) -> None:
    result = run(installed, tmp_path, "+run=msmarco", "device=cuda:1", "--cfg", "job")
    assert result.returncode == 0, result.stderr
    assert "device: cuda:1" in result.stdout
    assert "_target_: dr_validate.dataset.msmarco.MsmarcoDataset" in result.stdout


def test_the_msmarco_run_says_what_this_machine_lacks(installed: Path, tmp_path: Path) -> None:
    result = run(installed, tmp_path, "+run=msmarco", "device=cuda:93")
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "device: got 'cuda:93'" in result.stderr
    assert "dataset.path" in result.stderr


@pytest.fixture
def no_faiss(tmp_path: Path) -> Path:
    """A folder that hides faiss from every Python that starts with it on its path."""
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['faiss'] = None\n")
    return folder


def test_a_wheel_without_extras_says_at_once_what_takes_over(installed: Path, no_faiss: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    pythonpath = os.pathsep.join([str(no_faiss), str(installed)])
    arguments = ["dataset=beir", f"dataset.path={empty}", "source.path=output", "tracker=none", "device=cpu"]
    for more, said in (
        (["task=doctor", "index=flat"], "index=flat: faiss is not installed, so index=torch searches, with the same ranking"),
        (["index=factory", "index.spec=Flat"], "index: index=factory needs faiss, which is not installed; pip install"),
    ):
        result = run(installed, empty, *arguments, *more, PYTHONPATH=pythonpath)
        assert result.returncode == 2, result.stderr
        assert said in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
    assert "dataset.corpus: found none of corpus.jsonl" in result.stderr  # with all else that is wrong
