"""Real weights on a real collection: the whole command against sentence-transformers, exact search and trec_eval."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

METRICS = {"ndcg@10": "ndcg_cut_10", "mrr@10": "recip_rank", "recall@100": "recall_100", "map@100": "map_cut_100"}
# all-MiniLM-L6-v2, float32, all 11,429 documents, titles empty, at most 256 tokens.
KNOWN = {"ndcg@10": 0.433508, "mrr@10": 0.677163, "recall@100": 0.607421, "map@100": 0.252828}


@pytest.fixture(scope="module")
def peers_values(vaswani: Path, minilm: Path) -> dict[str, float]:
    """sentence-transformers encodes, numpy searches exactly, trec_eval judges."""
    import gzip

    import pytrec_eval
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    with gzip.open(vaswani / "corpus.jsonl.gz", "rt") as stream:
        documents = {d["_id"]: d["text"] for d in map(json.loads, stream)}
    queries = {q["_id"]: q["text"] for q in map(json.loads, (vaswani / "queries.jsonl").read_text().splitlines())}
    qrels: dict[str, dict[str, int]] = {}
    for line in (vaswani / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, gain = line.split("\t")
        qrels.setdefault(query, {})[document] = int(gain)
    ids, judged = list(documents), [q for q in queries if q in qrels]
    vectors = model.encode(list(documents.values()), batch_size=64)
    scores = model.encode([queries[q] for q in judged]) @ vectors.T
    run, short = {}, {}
    for row, query in enumerate(judged):
        best = np.argsort(-scores[row], kind="stable")[:100]
        run[query] = {ids[n]: float(scores[row, n]) for n in best}
        short[query] = {ids[n]: float(scores[row, n]) for n in best[:10]}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(METRICS.values()) - {"recip_rank"})
    per_query = evaluator.evaluate(run)
    reciprocal = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(short)  # trec_eval's has no cutoff
    return {
        name: float(np.mean([(reciprocal if measure == "recip_rank" else per_query)[q][measure] for q in judged]))
        for name, measure in METRICS.items()
    }


@pytest.mark.slow
def test_every_metric_equals_sentence_transformers_with_exact_search_and_trec_eval(
    dr_validate: Any, vaswani: Path, minilm: Path, peers_values: dict[str, float]
) -> None:
    result = dr_validate(
        f"source.path={minilm}",
        "dataset=beir",
        f"dataset.path={vaswani}",
        "sampler=full",
        "tracker=none",
        "watch.mode=once",
        f"metrics=[{','.join(METRICS)}]",
        timeout_s=500,
    )
    assert result.returncode == 0, result.stderr
    (report,) = dr_validate.reports()
    ours = {name: estimate["value"] for name, estimate in report["metrics"].items()}
    assert ours == pytest.approx(peers_values, abs=1e-4)
    assert ours == pytest.approx(KNOWN, abs=1e-4)
