"""Real weights on a real collection: the whole command against sentence-transformers, exact search and trec_eval."""

import gzip
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

METRICS = {"ndcg@10": "ndcg_cut_10", "mrr@10": "recip_rank", "recall@100": "recall_100", "map@100": "map_cut_100"}
# float32, all 11,429 documents, by how many of all-MiniLM-L6-v2's layers encode, at most so many tokens. sentence-transformers
# 6.2, exact search in numpy and trec_eval give the same to 1e-4: `DR_VALIDATE_ALL_PEERS=1 pytest tests/command/test_parity.py`
# measures that again, for both, in six minutes.
MAX_TOKENS = {1: 12, 6: 256}
KNOWN = {
    1: {"ndcg@10": 0.178341, "mrr@10": 0.383453, "recall@100": 0.239247, "map@100": 0.070773},
    6: {"ndcg@10": 0.433508, "mrr@10": 0.677163, "recall@100": 0.607421, "map@100": 0.252828},
}
ALL_PEERS = os.environ.get("DR_VALIDATE_ALL_PEERS")
NUM_QUERIES, NUM_OTHERS = 3, 40  # of the small collection: queries, and documents beside those judged for them

Qrels = Mapping[str, Mapping[str, int]]


def read_documents(vaswani: Path) -> list[dict[str, str]]:
    with gzip.open(vaswani / "corpus.jsonl.gz", "rt") as stream:
        return [json.loads(line) for line in stream]


def read_qrels(vaswani: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for line in (vaswani / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, gain = line.split("\t")
        qrels.setdefault(query, {})[document] = int(gain)
    return qrels


def peers_values(documents: Sequence[Mapping[str, str]], folder: Path, minilm: Path, max_tokens: int = 256) -> dict[str, float]:
    """sentence-transformers encodes, numpy searches exactly, trec_eval judges."""
    import pytrec_eval
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    model.max_seq_length = max_tokens
    lines = (folder / "queries.jsonl").read_text().splitlines()
    qrels = read_qrels(folder)
    queries = {query["_id"]: query["text"] for query in map(json.loads, lines) if query["_id"] in qrels}
    scores = model.encode(list(queries.values())) @ model.encode([d["text"] for d in documents], batch_size=64).T
    run, short = {}, {}
    for row, query in enumerate(queries):
        best = np.argsort(-scores[row], kind="stable")[:100]
        run[query] = {documents[n]["_id"]: float(scores[row, n]) for n in best}
        short[query] = dict(list(run[query].items())[:10])
    per_query = pytrec_eval.RelevanceEvaluator(qrels, set(METRICS.values()) - {"recip_rank"}).evaluate(run)
    reciprocal = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(short)  # trec_eval's has no cutoff
    return {
        name: float(np.mean([(reciprocal if measure == "recip_rank" else per_query)[q][measure] for q in queries]))
        for name, measure in METRICS.items()
    }


def our_values(dr_validate: Any, dataset: Path, minilm: Path, max_tokens: int = 256) -> dict[str, float]:
    result = dr_validate(
        f"encoder.query_max_length={max_tokens}",
        f"encoder.document_max_length={max_tokens}",
        f"source.path={minilm}",
        "dataset=beir",
        f"dataset.path={dataset}",
        "sampler=full",
        "tracker=none",
        "watch.mode=once",
        f"metrics=[{','.join(METRICS)}]",
    )
    assert result.returncode == 0, result.stderr
    (report,) = dr_validate.reports()
    return {name: estimate["value"] for name, estimate in report["metrics"].items()}


def test_every_metric_of_a_part_equals_sentence_transformers_with_exact_search_and_trec_eval(
    dr_validate: Any, vaswani: Path, minilm: Path, tmp_path: Path
) -> None:
    qrels = dict(list(read_qrels(vaswani).items())[:NUM_QUERIES])
    judged = {document for gains in qrels.values() for document in gains}
    documents = read_documents(vaswani)
    others = [d for d in documents if d["_id"] not in judged][:NUM_OTHERS]
    part = [d for d in documents if d["_id"] in judged] + others
    folder = tmp_path / "part"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in part))
    (folder / "queries.jsonl").write_bytes((vaswani / "queries.jsonl").read_bytes())
    rows = [f"{query}\t{document}\t{gain}\n" for query, gains in qrels.items() for document, gain in gains.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    assert our_values(dr_validate, folder, minilm) == pytest.approx(peers_values(part, folder, minilm), abs=1e-4)


@pytest.fixture
def first_layer(minilm: Path, tmp_path: Path) -> Path:
    """MiniLM of which only the first layer is left: a sixth of the work, and real weights."""
    folder = tmp_path / "first_layer"
    shutil.copytree(minilm, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "encoder.layer." not in name or "encoder.layer.0." in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("num_layers", [1, pytest.param(6, marks=pytest.mark.skipif(not ALL_PEERS, reason="takes minutes"))])
def test_every_metric_of_the_whole_collection_is_the_one_that_the_peers_give(
    dr_validate: Any, vaswani: Path, minilm: Path, first_layer: Path, num_layers: int
) -> None:
    checkpoint = minilm if num_layers == 6 else first_layer
    max_tokens = MAX_TOKENS[num_layers]
    ours = our_values(dr_validate, vaswani, checkpoint, max_tokens)
    if ALL_PEERS:
        assert ours == pytest.approx(peers_values(read_documents(vaswani), vaswani, checkpoint, max_tokens), abs=1e-4)
    assert ours == pytest.approx(KNOWN[num_layers], abs=1e-4)
