"""The study as its command runs it, on vectors from a folder and on those that a full run has kept."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from dr_validate.errors import SetupError
from dr_validate.index.torch import TorchIndex
from dr_validate.values import Float32
from scripts.research.fidelity_study import parse
from scripts.research.study.collection import read_collection
from scripts.research.study.compare import side_by_side
from scripts.research.study.draws import Corrected
from scripts.research.study.encoded import Stored, in_folder
from scripts.research.study.ranking import Rankings
from scripts.research.study.run import study
from scripts.research.study.summary import intervals, levels
from tests import warm
from tests.factories import CommandLine

ROOT = Path(__file__).resolve().parents[2]
NUM_DOCUMENTS, NUM_QUERIES, DIM = 600, 12, 16
WORDS = [f"word{number}" for number in range(40)]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints, the later the better, and `strong`, another model's vectors."""
    folder, chance = tmp_path_factory.mktemp("vectors"), np.random.default_rng(7)
    documents = chance.normal(size=(NUM_DOCUMENTS, DIM))
    gold = chance.choice(NUM_DOCUMENTS, NUM_QUERIES, replace=False)
    texts = [" ".join(chance.choice(WORDS, 6)) for _ in range(NUM_DOCUMENTS)]
    collection = {"docs": texts, "queries": [texts[place] for place in gold], "gold": gold.tolist()}
    (folder / "coll.json").write_text(json.dumps(collection))
    for name, noise in {"c9": 2.0, "c10": 1.2, "c11": 0.8, "strong": 0.9}.items():
        queries = documents[gold] + chance.normal(scale=noise, size=(NUM_QUERIES, DIM))
        np.save(folder / f"{name}.d.npy", documents.astype(np.float16))
        np.save(folder / f"{name}.q.npy", queries.astype(np.float16))
    return folder


def rows(text: str, strategy: str) -> list[dict[str, str]]:
    """Of the tables of levels, then of the tables of intervals."""
    found, head = [], [""]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        head = cells if cells[0] == "budget" else head
        if len(cells) > 1 and cells[1] == strategy:
            found.append(dict(zip(head, cells, strict=True)))
    return found


def test_a_folder_of_vectors_becomes_tables_whatever_fits_into_memory(vectors: Path, tmp_path: Path) -> None:
    what = ["--runs", "bm25,strong", "--budgets", "0.01,0.3,1", "--draws", "3", "--metrics", "mrr@10,recall@10"]
    command = ["--vectors", str(vectors), "--work", str(tmp_path), *what]
    script = [
        sys.executable,
        "scripts/research/fidelity_study.py",
        *command,
        "--out",
        str(tmp_path / "tables.md"),
        "--jobs",
        "2",
    ]
    done = warm.run(script, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert (tmp_path / "tables.md").read_text() == text
    assert "600 documents, 12 queries, 12 judged documents, 3 checkpoints (c9 to c11)" in text
    error = re.search(r"differ by at most (\S+) on any query", text)
    assert error is not None and float(error[1]) <= 1e-12
    for strategy in ("random+gold", "bm25 top", "strong top", "stratified uncorrected"):
        biases = [float(row["bias"]) for row in rows(text, strategy)]
        assert len(biases) == 4 and min(biases) >= 0, "a sample can only lift a metric"
        assert biases[1] == biases[3] == 0, "nothing is left out"
    for row in rows(text, "stratified"):
        assert row["budget"] in ("30%", "100%")
        assert row["budget"] == "30%" or row.get("levels covered", "1.000") == "1.000"
    assert "- stratified at 1.000%: sampler.fraction: got 0.01" in text
    in_this_process = study(parse([*command, "--memory-gib", "0", "--jobs", "1"]))
    assert re.sub("commit .*", "", in_this_process) == re.sub("commit .*", "", text)


def test_an_online_study_corrects_with_the_earlier_checkpoints_only(vectors: Path) -> None:
    command = ["--vectors", str(vectors), "--budgets", "0.3", "--draws", "2", "--jobs", "1", "--strategies", "stratified"]
    command += ["--runs", "strong"]
    online, offline = (rows(study(parse([*command, *flag])), "stratified") for flag in (["--online"], []))
    assert len(online) == len(offline) == 2
    assert online[1]["H"] == offline[1]["H"], "the sample is the same"
    assert online[0]["bias"] != offline[0]["bias"]


def test_baselines_teach_the_other_checkpoints(vectors: Path) -> None:
    command = ["--vectors", str(vectors), "--budgets", "0.3", "--draws", "2", "--jobs", "1", "--strategies", "stratified"]
    command += ["--runs", "strong", "--metrics", "recall@100"]
    told, plain = (study(parse([*command, *flag])) for flag in (["--baselines", "c10"], []))
    assert "corrected with all checkpoints and full-corpus baselines of c10" in told
    assert rows(told, "stratified")[1]["H"] == rows(plain, "stratified")[1]["H"], "the sample is the same"
    assert rows(told, "stratified")[0]["bias"] != rows(plain, "stratified")[0]["bias"]


def test_vectors_that_a_full_run_has_kept_give_its_values(
    dr_validate: CommandLine, wide_collection: Path, write_checkpoint: Callable[..., Path]
) -> None:
    for step in (90, 100):
        write_checkpoint(dr_validate.folder / "output" / f"checkpoint-{step}", seed=step)
    encoder = ["encoder.pooling=mean", "encoder.normalize=true"]
    where = ["source.path=output", "dataset=beir", f"dataset.path={wide_collection}", "state_dir=state"]
    once = ["watch.mode=once", "tracker=none"]
    done = dr_validate(*where, *encoder, *once, "sampler=full", "metrics=[mrr@10]")
    assert done.returncode == 0, done.stderr
    state = dr_validate.folder / "state"
    before = {path: path.stat().st_mtime_ns for path in (state / "embeddings").rglob("*.vectors")}
    command = ["--state-dir", str(state), "--data", str(wide_collection), "--jobs", "1", "--draws", "2", "--budgets", "0.5"]
    text = study(parse([*command, *encoder]))
    values = [report["metrics"]["mrr@10"]["value"] for report in dr_validate.reports("state")]
    by_step = sorted(zip([report["checkpoint"]["step"] for report in dr_validate.reports("state")], values, strict=True))
    assert f"On the full corpus: {', '.join(f'{value:.4f}' for _, value in by_step)}\n" in text
    assert "2 checkpoints (checkpoint-90 to checkpoint-100)" in text
    assert {path: path.stat().st_mtime_ns for path in (state / "embeddings").rglob("*.vectors")} == before
    with pytest.raises(SetupError, match="under these encoder settings; state the encoder"):
        study(parse([*command, "encoder.pooling=cls", "encoder.normalize=true"]))
    with pytest.raises(SetupError, match="'c7' matches none of"):
        study(parse([*command, "--checkpoints", "c7", *encoder]))


def test_rankings_are_those_of_an_index_ties_included(vectors: Path) -> None:
    test_set = read_collection(vectors / "coll.json")
    chance = np.random.default_rng(1)
    few: Float32 = chance.integers(-1, 2, size=(NUM_DOCUMENTS, 4)).astype(np.float32)  # many equal scores
    encoded = Stored(name="few", queries=few[:NUM_QUERIES], array=few)
    ordinals = np.sort(chance.choice(NUM_DOCUMENTS, 200, replace=False))
    search = TorchIndex().open(encoded.queries, 21, test_set.corpus.tie_rank, "cpu")
    search.add(few[ordinals], ordinals)
    expected = search.top().documents
    test_set.own_documents[3] = expected[3, 2]
    kept = Rankings(test_set, 20)
    kept.load([encoded], 1e9)
    for ranking in (kept.of(0, ordinals), Rankings(test_set, 20).by(encoded, ordinals)):
        for query, documents in enumerate(expected.tolist()):
            own = int(test_set.own_documents[query])
            assert ranking.documents[query].tolist() == [each for each in documents if each != own][:20]


def test_names_are_in_natural_order_and_only_those_of_one_suffix(vectors: Path, tmp_path: Path) -> None:
    for name in ("c10.xd", "c10.xq", "c9.xd", "c9.xq", "c8.xd", "c10.d", "c10.q"):
        (tmp_path / f"{name}.npy").touch()
    assert in_folder(tmp_path, "x") == ["c9", "c10"]
    assert in_folder(tmp_path, "") == ["c10"]
    assert in_folder(vectors, "") == ["c9", "c10", "c11", "strong"]


def test_two_versions_of_a_study_stand_side_by_side() -> None:
    head = "| budget | strategy | bias | worst checkpoint | RMSE |\n| --- | --- | --- | --- | --- |\n"
    intervals_head = "| budget | strategy | levels covered | worst checkpoint | half width | worst pair | half width |\n"
    text = f"## mrr@10\n\n{head}| 5% | stratified | +0.0100 | +0.0200 | 0.0300 |\n\n{intervals_head}"
    text += "| 5% | stratified | 0.950 | 0.90 | 0.0400 | 0.80 | 0.0500 |\n"
    found = side_by_side(text, text.replace("0.0300", "0.0150").replace("0.0500", "0.0250")).splitlines()
    row = dict(zip(found[0].split(" | "), found[2].split(" | "), strict=True))
    assert (row["budget"], row["bias"], row["RMSE"]) == ("5%", "+0.0100 / +0.0100", "0.0300 / 0.0150")
    assert (row["worst checkpoint"], row["half width of levels"]) == ("0.90 / 0.90", "0.0400 / 0.0400")
    assert row["half width of differences |"] == "0.0500 / 0.0250 |"
    assert row["tau"] == "- / -"


def test_errors_of_levels_are_counted_by_hand() -> None:
    truth = np.array([0.1, 0.3, 0.2])
    values = np.array([[0.2, 0.3, 0.2], [0.2, 0.4, 0.4], [0.2, 0.3, 0.4]])  # the best tie in the second draw
    found = levels(values, truth)
    assert found.bias == pytest.approx(0.8 / 9)
    assert found.worst_bias == pytest.approx(0.4 / 3)
    assert found.rmse == pytest.approx(float(np.sqrt(0.12 / 9)))
    assert found.difference_rmse == pytest.approx(float(np.sqrt(0.1 / 9)))
    assert found.tau == pytest.approx(
        (2 * 2 / np.sqrt(2 * 3) + 1 / 3) / 3
    )  # a tied pair in two draws, a wrong one in the third
    assert found.regret == pytest.approx(0.2 / 3)


def test_coverage_and_decisions_are_counted_by_hand() -> None:
    truth = np.array([0.1, 0.3])
    right = corrected(low=[0.0, 0.2], high=[0.2, 0.4], difference=0.2, p=0.01)
    wrong = corrected(low=[0.2, 0.2], high=[0.3, 0.4], difference=-0.1, p=0.04)
    nothing = corrected(low=[0.0, 0.0], high=[0.4, 0.4], difference=0.1, p=np.nan)
    found = intervals([right, wrong, nothing], truth)
    assert found.coverage == pytest.approx(5 / 6) and found.worst_checkpoint == pytest.approx(2 / 3)
    assert found.difference_coverage == 0.5 and found.worst_pair == 0.5
    assert found.decided == 1 and found.wrong == 0.5
    assert found.uncorrected == pytest.approx(1 / 3)
    alone = intervals([nothing], truth)
    assert np.isnan(alone.difference_coverage) and np.isnan(alone.decided) and alone.uncorrected == 1


def corrected(low: list[float], high: list[float], difference: float, p: float) -> Corrected:
    """Of two checkpoints, the difference known to 0.15."""
    half = 0.15 if not np.isnan(p) else np.nan
    arrays: Mapping[str, list[float]] = {"low": low, "high": high, "value": high, "outranking": [1, 1], "p": [p]}
    return Corrected(
        **{name: np.array(values) for name, values in arrays.items()},
        difference=np.array([difference]),
        difference_low=np.array([difference - half]),
        difference_high=np.array([difference + half]),
    )
