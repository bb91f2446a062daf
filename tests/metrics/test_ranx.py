"""Parity with trec_eval, per query, on everything that tends to differ."""

import contextlib
import threading
from typing import Any

import numpy as np
import pytest

from dr_validate.errors import DatasetError
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.values import Float64, Int64, Qrels, Ranking, Scores
from tests.metrics.peer import NUM_QUERIES, TREC_EVAL, qrels_of, ranking_of, relevant, trec_eval

LEVELS = [name for name in TREC_EVAL if not name.startswith("ndcg")]


@pytest.fixture(scope="module")
def metrics() -> RanxMetrics:
    metrics = RanxMetrics(names=(*TREC_EVAL, "mrr@10", *(f"{name}-l2" for name in LEVELS)))
    metrics.warm_up()
    return metrics


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


def test_two_collections_are_never_scored_at_once_which_would_end_the_process(
    metrics: RanxMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = threading.Barrier(2)

    def score(judged: Float64, *_: Any) -> Float64:
        with contextlib.suppress(threading.BrokenBarrierError):
            met.wait(0.2)
        return np.zeros(len(judged))

    monkeypatch.setattr("ranx.metrics.metric_switch", lambda name: score)
    threads = [threading.Thread(target=metrics.warm_up) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met.broken  # nobody met anybody
