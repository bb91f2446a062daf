"""What notebooks use: the table of Reports, and one checkpoint evaluated in this process; the README's example is run."""

import gc
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dr_validate
from dr_validate import evaluate, reports
from dr_validate.errors import CheckpointError, ConfigError, SetupError
from dr_validate.ledger.ledger import Ledger
from dr_validate.process import importing
from dr_validate.values import Estimate, Report
from tests.factories import told as report

README = Path(__file__).resolve().parents[1] / "dr_validate" / "README.md"
AT = "2026-11-21T03:15:10Z"
STATED = {"pooling": "mean", "normalize": True}


def recorded(state_dir: Path, made: list[Report]) -> Path:
    """A ledger of these Reports, of the sampled spec s1 and the full corpus s0."""
    state_dir.mkdir(parents=True)
    with Ledger(state_dir / "ledger.db") as ledger:
        for spec in ("s0", "s1"):
            ledger.register_spec(spec, {"dataset": "vaswani", "sampler": "random", "full_spec": "s0"}, AT)
        for one in made:
            if one.status == "done":
                ledger.begin(one.checkpoint, one.spec, AT)
            ledger.finish(one)
    return state_dir


def test_the_table_has_values_as_now_known_with_their_intervals(tmp_path: Path) -> None:
    first = replace(report(100), notes={"estimate": {"sample": "m"}}, corpus={"documents": 200, "encoded": 20})
    revised = {"s1": {"m": {first.checkpoint.digest: {"mrr@10": [0.2, 0.1, 0.25, 0.05, 0.29]}}}}["s1"]
    later = replace(report(200, at="2026-11-21T04:15:10Z"), notes={"estimate": {"sample": "m", "earlier": revised}})
    full = replace(report(100, spec="s0"), metrics={"mrr@10": Estimate(value=0.22, low=0.22, high=0.22, naive=0.22)})
    table = reports(recorded(tmp_path / "state", [first, later, full, report(300, error="broken")]))
    rows = {(row.spec, row.step): row for row in table.itertuples()}
    assert list(rows) == [("s0", 100), ("s1", 100), ("s1", 200), ("s1", 300)]
    one = rows["s1", 100]
    assert (one.metric, one.value, one.low, one.high, one.as_reported) == ("mrr@10", 0.2, 0.1, 0.25, 0.3)
    assert (one.population_low, one.population_high, one.encoded, one.is_full) == (0.05, 0.29, 20, False)
    assert (rows["s0", 100].value, rows["s0", 100].is_full) == (0.22, True)
    assert (rows["s1", 300].status, rows["s1", 300].error, math.isnan(rows["s1", 300].value)) == ("skipped", "broken", True)


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"state_dir: .*nowhere holds no ledger\.db"):
        reports(tmp_path / "nowhere")


def test_what_is_not_offered_is_an_attribute_error() -> None:
    assert not hasattr(dr_validate, "anything")


def test_the_example_of_the_readme_runs(
    tmp_path: Path, collection: Path, write_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "output" / "checkpoint-500", step=500)
    collection.rename(tmp_path / "nq")
    recorded(tmp_path / ".dr_validate", [report(500)])
    monkeypatch.chdir(tmp_path)
    (example,) = (each for each in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "evaluate" in each)
    names: dict[str, object] = {}
    exec(example, names)
    found = names["report"]
    assert isinstance(found, Report)
    assert (found.checkpoint.name, found.checkpoint.step, found.dataset) == ("checkpoint-500", 500, "nq")
    estimate = found.metrics["mrr@10"]
    assert estimate.low <= estimate.value <= estimate.high <= estimate.naive
    full = evaluate("output/checkpoint-500", {"choice": "beir", "path": "nq"}, encoder=STATED).metrics["mrr@10"]
    assert full.low == full.value == full.high == full.naive
    assert not (tmp_path / ".dr_validate" / "reports.jsonl").exists()  # nothing is recorded


def test_the_notebooks_garbage_is_collected_as_it_was_before_libraries_were_imported() -> None:
    number = gc.get_freeze_count()
    try:
        for choose, is_on in ((gc.disable, False), (gc.enable, True)):
            choose()
            with importing():
                assert not gc.isenabled()
            assert gc.isenabled() == is_on
    finally:
        gc.enable()
    assert gc.get_freeze_count() <= number


def test_of_weights_that_diverged_no_wider_type_is_asked_for(
    tmp_path: Path, collection: Path, write_checkpoint: Callable[..., Path]
) -> None:
    from safetensors.numpy import load_file, save_file

    weights = write_checkpoint(tmp_path / "checkpoint-5", step=5) / "model.safetensors"
    save_file({name: np.full_like(one, np.nan) for name, one in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"vectors hold NaN or Inf \(float32\): the weights diverged$"):
        evaluate(weights.parent, collection, encoder=STATED)


@pytest.mark.slow
def test_mistakes_are_named_before_anything_is_loaded(tmp_path: Path, collection: Path) -> None:
    with pytest.raises(ConfigError, match="dataset"):
        evaluate(tmp_path / "x", "nothing_like_this")
    with pytest.raises(ConfigError, match=r"settings: there is no key 'devise'"):
        evaluate(tmp_path / "x", collection, settings={"devise": "cpu"})
    with pytest.raises(ConfigError, match="fractoin"):
        evaluate(tmp_path / "x", collection, {"choice": "random", "fractoin": 0.1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: not the folder of one complete checkpoint"):
        evaluate(tmp_path / "empty", collection, encoder=STATED)
    with pytest.raises(CheckpointError, match=r"/x: no such folder"):
        evaluate(tmp_path / "x", collection, encoder=STATED)
    with pytest.raises(ConfigError, match=r"sampler: got 'stratifed', expected one of .*; did you mean stratified\?"):
        evaluate(tmp_path / "empty", collection, "stratifed")
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"state_dir .*/file/x: cannot be written .*; set state_dir to a folder that can"):
        evaluate(tmp_path / "empty", collection, encoder=STATED, state_dir=tmp_path / "file" / "x")


def test_homes_and_folders_that_are_not_there_are_paths_too(
    tmp_path: Path, collection: Path, write_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "checkpoint-5", step=5)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    evaluate("~/checkpoint-5", collection, encoder=STATED, state_dir="~/state")
    assert (tmp_path / "state" / "datasets").is_dir()
    assert not list((tmp_path / "elsewhere").iterdir())
    with pytest.raises(SetupError, match=r"dataset\.path: /nowhere/nq does not exist"):
        evaluate("~/checkpoint-5", "/nowhere/nq", encoder=STATED)
