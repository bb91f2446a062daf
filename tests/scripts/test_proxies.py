"""Proxies of full validation as their command runs them, against rankings by hand."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dr_validate.errors import SetupError
from dr_validate.values import Float64
from scripts.research.proxies import parse, proxies, written
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
NUM_DOCUMENTS, NUM_QUERIES, DIM, DEPTH = 600, 12, 16, 5
WORDS = [f"word{number}" for number in range(30)]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four checkpoints, the later the better."""
    folder, chance = tmp_path_factory.mktemp("vectors"), np.random.default_rng(5)
    documents = chance.normal(size=(NUM_DOCUMENTS, DIM))
    gold = chance.choice(NUM_DOCUMENTS, NUM_QUERIES, replace=False)
    texts = [" ".join(chance.choice(WORDS, 6)) for _ in range(NUM_DOCUMENTS)]
    collection = {"docs": texts, "queries": [texts[place] for place in gold], "gold": gold.tolist()}
    (folder / "coll.json").write_text(json.dumps(collection))
    for number, noise in enumerate((3.0, 2.0, 1.4, 0.9)):
        queries = documents[gold] + chance.normal(scale=noise, size=(NUM_QUERIES, DIM))
        np.save(folder / f"c{number}.d.npy", documents)
        np.save(folder / f"c{number}.q.npy", queries)
    return folder


def mrr(folder: Path, allowed: list[set[int]], rows: list[int]) -> Float64:
    """(num_checkpoints,) mrr@10 where a query may only find some documents."""
    gold = json.loads((folder / "coll.json").read_text())["gold"]
    values = []
    for number in range(4):
        documents, queries = (np.load(folder / f"c{number}.{side}.npy").astype(np.float32) for side in ("d", "q"))
        scores = queries.astype(np.float64) @ documents.T.astype(np.float64)
        found = [sorted(allowed[row], key=lambda place: -scores[row, place])[:10] for row in rows]
        ranks = [hits.index(gold[row]) + 1 if gold[row] in hits else 0 for row, hits in zip(rows, found, strict=True)]
        values.append(np.mean([1 / rank if rank else 0.0 for rank in ranks]))
    return np.array(values)


def tau_and_regret(values: Float64, truth: Float64) -> tuple[float, float]:
    pairs = [(i, j) for i in range(len(truth)) for j in range(i)]
    signs = [(np.sign(values[i] - values[j]), np.sign(truth[i] - truth[j])) for i, j in pairs]
    untied = sum(one != 0 for one, _ in signs) * sum(other != 0 for _, other in signs)
    best = min(truth[values == values.max()])
    return sum(one * other for one, other in signs) / untied**0.5, float(truth.max() - best)


def rows(text: str) -> dict[str, dict[str, str]]:
    head, _, *others = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in others}


def bm25(folder: Path) -> list[list[int]]:
    """The first documents that the run in `work` has for each query."""
    from dr_validate.sampler.runs import NamedRun
    from scripts.research.study.collection import read_collection

    run = NamedRun(name="bm25", key="bm25").read(read_collection(folder / "coll.json"), folder / "work").first(DEPTH)
    return [run.documents[run.rows == row].tolist() for row in range(NUM_QUERIES)]


def options(folder: Path, *more: str) -> list[str]:
    what = ["--draws", "3", "--depth", str(DEPTH), "--nano-queries", "4", "--jobs", "1", "--work", str(folder / "work")]
    return ["--vectors", str(folder), "--checkpoints", "c*", *what, *more]


def test_the_command_writes_one_table_and_one_picture(vectors: Path, tmp_path: Path) -> None:
    picture = tmp_path / "proxies.png"
    script = [
        sys.executable,
        "scripts/research/proxies.py",
        *options(vectors, "--figure", str(picture), "--fractions", "0.01,0.3"),
    ]
    done = warm.run(script, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = rows(done.stdout)
    names = [
        "full corpus",
        "30% sample, corrected",
        "30% sample, uncorrected",
        "like NanoBEIR, 4 queries",
        "BM25 top 5 re-ranked",
    ]
    assert list(found) == names
    assert found["30% sample, uncorrected"]["documents"] == "180" and found["30% sample, uncorrected"]["share"] == "30.0%"
    assert float(found["30% sample, uncorrected"]["bias"]) >= 0, "a sample can only lift a metric"
    assert "Left out: a sample of 1%: sampler.fraction: got 0.01" in done.stdout


def test_metrics_are_written_as_papers_do() -> None:
    assert [written(name) for name in ("mrr@10", "ndcg@10", "hit_rate@5", "map")] == ["MRR@10", "nDCG@10", "hit_rate@5", "MAP"]


def test_re_ranking_is_that_of_each_query_s_own_list(vectors: Path) -> None:
    found = rows(proxies(parse(options(vectors, "--fractions", "0.3"))))["BM25 top 5 re-ranked"]
    lists, every = bm25(vectors), list(range(NUM_QUERIES))
    truth = mrr(vectors, [set(range(NUM_DOCUMENTS))] * NUM_QUERIES, every)
    values = mrr(vectors, [set(hits) for hits in lists], every)
    tau, regret = tau_and_regret(values, truth)
    assert (found["tau (5% below)"], found["regret (5% above)"]) == (f"{tau:.2f}", f"{regret:.4f}")
    assert float(found["bias"]) == pytest.approx(float((values - truth).mean()), abs=6e-4)
    assert int(found["documents"]) == len({document for hits in lists for document in hits})


def test_a_subset_has_some_queries_and_what_is_around_them_and_is_held_against_all(vectors: Path) -> None:
    found = rows(proxies(parse(options(vectors, "--fractions", "0.3", "--draws", "2"))))["like NanoBEIR, 4 queries"]
    gold = json.loads((vectors / "coll.json").read_text())["gold"]
    lists = bm25(vectors)
    truth = mrr(vectors, [set(range(NUM_DOCUMENTS))] * NUM_QUERIES, list(range(NUM_QUERIES)))
    sizes, judged = [], []
    for seed in (0, 1):
        drawn = sorted(np.random.default_rng(seed).choice(NUM_QUERIES, 4, replace=False).tolist())
        corpus = {document for row in drawn for document in [*lists[row], gold[row]]}
        sizes.append(len(corpus))
        judged.append(tau_and_regret(mrr(vectors, [corpus] * NUM_QUERIES, drawn), truth))
    assert found["documents"] == f"{np.mean(sizes):.0f}" and found["queries"] == "4"
    tau, regret = np.array(judged).T
    assert found["tau (5% below)"] == f"{tau.mean():.2f} ({np.quantile(tau, 0.05):.2f})"
    assert found["regret (5% above)"] == f"{regret.mean():.4f} ({np.quantile(regret, 0.95):.4f})"


def test_without_enough_queries_for_a_subset_there_is_none_and_it_is_said(vectors: Path) -> None:
    text = proxies(parse(options(vectors, "--fractions", "0.3", "--nano-queries", "12")))
    assert not [name for name in rows(text) if name.startswith("like NanoBEIR")]
    assert "Left out: like NanoBEIR: there are only 12 queries" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, value) for key in ("draws", "jobs", "queries", "depth", "nano-queries") for value in ("0", "-1", "two")],
        *[("fractions", value) for value in ("2", "0.1,0", "nan", "few", "")],
        *[("figure", value) for value in ("proxies.foo", "proxies")],
    ],
)
def test_a_value_that_cannot_be_is_refused_before_any_work(key: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--vectors", "vectors", f"--{key}={value}"])
    assert caught.value.code == 2 and f"argument --{key}: got {value!r}, expected " in capsys.readouterr().err


def test_a_state_dir_that_does_not_exist_is_refused_and_not_made(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(SetupError, match="elsewhere/ledger.db: no such ledger"):
        proxies(parse(["--state-dir", str(elsewhere), "--dataset", "pydoc", "dataset.num_queries=3"]))
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--dataset", "bier"], "dataset: got 'bier', expected one of .*did you mean beir\\?"),
        (["encoder.poling=cls"], "encoder.poling: .*did you mean encoder.pooling\\?"),
        (["encoder.pooling=a,b"], "encoder.pooling: got a,b, which is several values"),
    ],
)
def test_what_does_not_compose_is_one_message_as_on_the_command_line(tmp_path: Path, typed: list[str], said: str) -> None:
    with pytest.raises(SetupError, match=said) as caught:
        proxies(parse(["--state-dir", str(tmp_path), "--data", "nq", *typed]))
    assert re.search("problems? in the configuration", str(caught.value)) and "Traceback" not in str(caught.value)
