"""Parity with trec_eval, per query, on everything that tends to differ."""

import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import pytrec_eval

from dr_validate.errors import DatasetError
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.values import Float64, Int64, Qrels, Ranking, Scores

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
LEVELS = [name for name in TREC_EVAL if not name.startswith("ndcg")]
NUM_QUERIES, NUM_DOCUMENTS, TOP_K = 60, 400, 50  # cutoffs of 100 look past the end
IDS = [f"d{number}" for number in np.random.default_rng(0).permutation(NUM_DOCUMENTS)]
# The premise of every test here: ranks among equal scores are by descending id, as in trec_eval.
TIE_RANK = np.argsort(np.argsort([-sorted(IDS).index(document) for document in IDS]))


@pytest.fixture(scope="module")
def metrics() -> RanxMetrics:
    metrics = RanxMetrics(names=(*TREC_EVAL, "mrr@10", *(f"{name}-l2" for name in LEVELS)))
    metrics.warm_up()
    return metrics


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


def assert_equal(scores: Scores, name: str, expected: Float64, num_relevant: Int64) -> None:
    found = scores.per_query[name]
    np.testing.assert_array_equal(np.isnan(found), num_relevant == 0, err_msg=name)
    kept = num_relevant > 0
    np.testing.assert_allclose(found[kept], expected[kept], atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_metric_equals_trec_eval_for_every_query(metrics: RanxMetrics, seed: int) -> None:
    ranking, qrels = ranking_of(seed), qrels_of(seed)
    scores = metrics.score(ranking, qrels)
    for level, names in ((1, list(TREC_EVAL)), (2, LEVELS)):
        expected = trec_eval(ranking, qrels, level)
        for name in names:
            values = np.array([expected[str(row)][TREC_EVAL[name]] for row in range(NUM_QUERIES)])
            assert_equal(scores, name if level == 1 else f"{name}-l{level}", values, relevant(qrels, level))


def test_mrr_with_a_cutoff_is_trec_evals_over_the_cut_ranking(metrics: RanxMetrics) -> None:
    ranking, qrels = ranking_of(4), qrels_of(4)
    cut = Ranking(documents=ranking.documents[:, :10], scores=ranking.scores[:, :10])
    expected = trec_eval(cut, qrels)
    values = np.array([expected[str(row)]["recip_rank"] for row in range(NUM_QUERIES)])
    assert_equal(metrics.score(ranking, qrels), "mrr@10", values, relevant(qrels, 1))


def test_queries_without_a_relevant_document_are_left_out_of_the_mean(metrics: RanxMetrics) -> None:
    scores = metrics.score(ranking_of(1), qrels_of(1))
    per_query = scores.per_query["ndcg@10"]
    counted = relevant(qrels_of(1), 1) > 0
    assert not counted[0]
    assert not counted[1]
    np.testing.assert_array_equal(np.isfinite(per_query), counted)
    assert scores.mean("ndcg@10") == pytest.approx(per_query[counted].mean())


def test_a_metric_that_no_query_counts_for_is_refused() -> None:
    qrels = Qrels(offsets=np.array([0, 2]), documents=np.array([3, 5]), gains=np.array([1, 0]))
    RanxMetrics(names=("mrr@10", "recall@10")).check(qrels, "small")
    with pytest.raises(DatasetError, match=r"^metrics: got recall@10-l2, but no judgement of small has a grade above 1, "):
        RanxMetrics(names=("mrr@10", "recall@10-l2")).check(qrels, "small")


def test_one_metric_alone_gives_the_same_values(metrics: RanxMetrics) -> None:
    alone = RanxMetrics(names=("recall@10",)).score(ranking_of(6), qrels_of(6)).per_query["recall@10"]
    np.testing.assert_array_equal(alone, metrics.score(ranking_of(6), qrels_of(6)).per_query["recall@10"])


@pytest.mark.slow
def test_scoring_imports_only_the_metrics_of_ranx_and_leaves_the_package_to_others() -> None:
    code = """if True:
        import sys
        from dr_validate.metrics.ranx import RanxMetrics
        RanxMetrics(names=("mrr@10",)).warm_up()
        for module in list(sys.modules.values()):
            hasattr(module, "__warningregistry__")  # as inspect does
        heavy = {"pandas", "matplotlib", "seaborn", "ir_datasets", "scipy.stats"} & set(sys.modules)
        assert not heavy, heavy
        import ranx
        from ranx import Run
        # The real ones; to use them would compile for half a minute.
        assert (Run.__module__, ranx.evaluate.__module__) == ("ranx.data_structures.run", "ranx.meta.evaluate")
    """
    subprocess.run([sys.executable, "-c", code], check=True)
