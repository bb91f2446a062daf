"""`task=report` as a user calls it, and the page in a real browser."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dr_validate.cli.run import show_report
from dr_validate.config import ReportSettings
from dr_validate.report.page import write_report
from dr_validate.watcher.lock import claim
from tests.factories import CommandLine
from tests.processes import LIMIT_S
from tests.report.training import Training, within

HEAVY = {"torch", "faiss", "transformers", "wandb", "ranx", "scipy.stats", "pandas", "datasets"}
LONG = "a-name-without-any-space-that-is-far-wider-than-a-telephone-" * 3

# In the page: what went wrong, whether it is wider than its window, and what the script makes of a table.
PROBE = """
<script>
addEventListener("load", function () {
  const heads = document.querySelectorAll("table.sortable tr.names th button");
  const table = [...document.querySelectorAll("table.sortable")].find(t => t.caption.textContent.startsWith("Checkpoints"));
  const column = name => [...table.querySelectorAll("tr.names th")].findIndex(th => th.textContent === name);
  const cells = name => [...table.tBodies[0].rows].map(row => row.cells[column(name)].textContent);
  const press = name => table.querySelectorAll("tr.names th")[column(name)].querySelector("button").click();
  press("value"); const up = cells("value");
  press("value"); const down = cells("value");
  press("step"); const steps = cells("step");
  dispatchEvent(new Event("beforeprint"));
  const open = [...document.querySelectorAll("details")].map(d => d.open);
  const root = document.documentElement;
  const told = {problems, up, down, steps, open, heads: heads.length, width: root.scrollWidth, window: innerWidth};
  parent.postMessage(JSON.stringify(told), "*");
});
</script>
"""
FRAMES = """<!DOCTYPE html><html><body><script>
addEventListener("message", function (event) {
  const told = document.createElement("pre");
  told.textContent = event.data;
  document.body.append(told);
});
</script>WIDTHS</body></html>"""


def test_the_numbers_that_are_drawn_are_beside_the_page(filled: Training, tmp_path: Path) -> None:
    page = write_report(filled.state_dir, ReportSettings(out=tmp_path / "own.html"))
    rows = list(csv.DictReader((tmp_path / "own.csv").read_text().splitlines()))
    full = [row for row in rows if row["strategy"] == "full corpus" and row["metric"] == "mrr@10"]
    assert [float(row["value"]) for row in full] == [0.21, 0.33, 0.31]
    (one,) = [row for row in rows if row["strategy"] != "full corpus" and row["metric"] == "mrr@10" and row["step"] == "200"]
    assert float(one["low"]) < float(one["value"]) == 0.35 < float(one["high"]) and one["dataset"] == "vaswani"
    assert 'http-equiv="refresh"' not in page.read_text()


def test_the_page_is_written_anew_while_a_watcher_works(filled: Training) -> None:
    page, (spec, *_) = filled.state_dir / "report.html", filled.ledger.specs()
    began, seen = threading.Event(), threading.Event()

    def work() -> None:
        with claim(filled.state_dir, spec, "2026-11-21T03:15:10Z"):
            began.set()
            while not seen.is_set():
                if page.is_file() and '<meta http-equiv="refresh" content="0.05"/>' in page.read_text():
                    seen.set()

    watcher = threading.Thread(target=work, daemon=True)
    watcher.start()
    assert began.wait(LIMIT_S)
    assert show_report({"state_dir": str(filled.state_dir), "report": {"every_s": 0.05}}) == 0
    assert seen.is_set()
    assert 'http-equiv="refresh"' not in page.read_text()  # once nobody works any more


@pytest.fixture
def filled(training: Training) -> Training:
    training.sample(*(within(value, 0.02) for value in (0.2, 0.35, 0.3)))
    training.full(0.21, 0.33, 0.31)
    training.ended(400, "failed", LONG, name=LONG)
    return training


def test_the_command_writes_the_page_says_so_and_loads_nothing_heavy(filled: Training, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "dr_validate", "task=report", f"state_dir={filled.state_dir}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"report: {filled.state_dir / 'report.html'}" in result.stderr
    assert "vaswani: Best of 3 checkpoints: step 200 (mrr@10 0.330 on the full corpus)." in result.stderr
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert not imported & HEAVY
    assert (filled.state_dir / "report.html").is_file()


def in_browser(page: Path, widths: list[int], folder: Path) -> tuple[list[dict[str, Any]], str]:
    """What the page tells about itself in frames of these widths, and what the browser logged."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    watch = "<script>const problems = []; addEventListener('error', e => problems.push(e.message));</script>"
    probed = page.read_text().replace("<head>", f"<head>{watch}").replace("</body>", f"{PROBE}</body>")
    (folder / "probed.html").write_text(probed)
    frames = "".join(f'<iframe src="probed.html" style="border:0;width:{width}px;height:900px"></iframe>' for width in widths)
    (folder / "frames.html").write_text(FRAMES.replace("WIDTHS", frames))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    options += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000", "--enable-logging=stderr"]
    options += [f"--screenshot={folder / 'page.png'}", "--window-size=1300,1000", "--dump-dom"]
    command = [browser, *options, (folder / "frames.html").as_uri()]
    environment = {**os.environ, "HOME": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    told = [json.loads(text.replace("&amp;", "&")) for text in re.findall(r"<pre>(.*?)</pre>", result.stdout, re.S)]
    assert len(told) == len(widths), result.stderr[-2000:]
    return told, result.stderr


def test_the_page_fits_a_telephone_and_its_script_sorts(filled: Training, tmp_path: Path) -> None:
    page = write_report(filled.state_dir, ReportSettings())
    told, log = in_browser(page, [400, 1200], tmp_path)
    assert "CONSOLE" not in log
    assert sorted(one["window"] for one in told) == [400, 1200]
    for one in told:
        assert one["problems"] == []
        assert one["width"] == one["window"]
        assert one["up"] == ["0.2000", "0.3000", "0.3500", ""]
        assert one["down"] == ["0.3500", "0.3000", "0.2000", ""]  # what has no value stays at the end
        assert one["steps"] == ["100", "200", "300", "400"]
        assert one["open"] and all(one["open"])
        assert one["heads"] > 10
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_page_of_a_real_run_has_texts_documents_and_how_it_was_made_without_being_told_the_data_set(
    dr_validate: CommandLine, collection: Path, write_checkpoint: Callable[..., Path]
) -> None:
    home = dr_validate.folder
    dr_validate.environment["HOME"] = str(home)
    data = collection.rename(home / "collection")
    for step in (100, 200):
        write_checkpoint(home / "training" / f"checkpoint-{step}", seed=step, step=step)
    stated = ["dataset=beir", f"dataset.path={data}", "encoder.pooling=mean", "encoder.normalize=true", "seed=21"]
    result = dr_validate(
        *("watch.mode=once", f"source.path={home / 'training'}", *stated, "tracker=none", "metrics=[mrr@10]", "top_k=10")
    )
    assert result.returncode == 0, result.stderr[-2000:]
    shutil.rmtree(data)  # the state_dir has what it takes
    assert dr_validate("task=report").returncode == 0
    page = ElementTree.fromstring((home / ".dr_validate" / "report.html").read_text())
    text = " ".join(" ".join(page.itertext()).split())
    unfolded = [" ".join(" ".join(cell.itertext()).split()) for cell in page.iter("td") if cell.find("details") is not None]
    assert unfolded  # two random encoders do not agree on every query
    for cell in unfolded:
        assert re.match(r"\w+ \w+ q\d+ first documents step 100 d\d+ .*\w+ \w+ number \d+ .* step 200 d\d+ .* number \d+", cell)
    assert any("grade 1, relevant" in cell for cell in unfolded)
    for fact in ("BertModel, num_hidden_layers=1, hidden_size=32", "beir, path=~/collection, split=test", "32 tokens"):
        assert fact in text
    assert "source.path=$HOME/training" in text and "seed=21" in text and str(home) not in text
    assert re.search(r"dr_validate \d\S+, torch \d\S+, transformers \d", text)
