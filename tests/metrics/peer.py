"""Random judgements and rankings on which trec_eval and others tend to differ, and what trec_eval says of them."""

from collections.abc import Mapping

import numpy as np
import pytrec_eval

from dr_validate.values import Int64, Qrels, Ranking

TREC_EVAL = {
    "ndcg@10": "ndcg_cut_10",
    "ndcg@100": "ndcg_cut_100",
    "ndcg": "ndcg",
    "mrr": "recip_rank",
    "map@10": "map_cut_10",
    "map": "map",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "precision@10": "P_10",
    "precision@100": "P_100",
    "hit_rate@10": "success_10",
    "r-precision": "Rprec",
}
NUM_QUERIES, NUM_DOCUMENTS, TOP_K = 60, 400, 50  # cutoffs of 100 look past the end
IDS = [f"d{number}" for number in np.random.default_rng(0).permutation(NUM_DOCUMENTS)]
# The premise of every test here: ranks among equal scores are by descending id, as in trec_eval.
TIE_RANK = np.argsort(np.argsort([-sorted(IDS).index(document) for document in IDS]))


def qrels_of(seed: int) -> Qrels:
    rng = np.random.default_rng(seed)
    rows = [rng.choice(NUM_DOCUMENTS, rng.integers(1, 90), replace=False) for _ in range(NUM_QUERIES)]
    gains = [rng.integers(-1, 4, len(row)) for row in rows]
    gains[0][:] = 0
    gains[1][:] = -1
    gains[2] = np.minimum(gains[2], 1)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Qrels(offsets=offsets, documents=np.concatenate(rows), gains=np.concatenate(gains))


def ranking_of(seed: int) -> Ranking:
    """Few distinct scores, so ties cross every cutoff; some queries with few hits, one with none."""
    rng = np.random.default_rng(seed)
    documents = np.full((NUM_QUERIES, TOP_K), -1)
    scores = np.full((NUM_QUERIES, TOP_K), -np.inf, dtype=np.float32)
    for row in range(NUM_QUERIES):
        hits = {3: 0, 4: 1, 5: 7}.get(row, TOP_K)
        found = rng.choice(NUM_DOCUMENTS, hits, replace=False)
        score = rng.integers(0, 5, hits).astype(np.float32)
        order = np.lexsort((TIE_RANK[found], -score))
        documents[row, :hits], scores[row, :hits] = found[order], score[order]
    return Ranking(documents=documents, scores=scores)


def trec_eval(ranking: Ranking, qrels: Qrels, level: int = 1) -> Mapping[str, Mapping[str, float]]:
    judgements, run = {}, {}
    for row in range(NUM_QUERIES):
        judged, gains = qrels.row(row)
        judgements[str(row)] = {IDS[d]: int(g) for d, g in zip(judged, gains, strict=True)}
        hits = zip(ranking.documents[row], ranking.scores[row], strict=True)
        run[str(row)] = {IDS[d]: float(s) for d, s in hits if d >= 0} or {"nothing": 0.0}
    measures = {"ndcg_cut.10,100", "ndcg", "recip_rank", "map_cut.10", "map", "recall.10,100", "P.10,100", "success.10"}
    evaluator = pytrec_eval.RelevanceEvaluator(judgements, {*measures, "Rprec"}, relevance_level=level)
    found: Mapping[str, Mapping[str, float]] = evaluator.evaluate(run)
    return found


def relevant(qrels: Qrels, level: int) -> Int64:
    return np.array([np.count_nonzero(qrels.row(row)[1] >= level) for row in range(NUM_QUERIES)])
