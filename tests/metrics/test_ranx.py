"""Parity with trec_eval, per query, on everything that tends to differ; metrics of other packages, and what is refused."""

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dr_validate.errors import DatasetError, SetupError
from dr_validate.metrics.gains import gains_retrieved
from dr_validate.metrics.ranx import RanxMetrics, own_values
from dr_validate.values import Float64, Int64, Qrels, Ranking, Scores
from tests.metrics.peer import NUM_QUERIES, TREC_EVAL, qrels_of, ranking_of, relevant, trec_eval

LEVELS = [name for name in TREC_EVAL if not name.startswith("ndcg")]
QRELS = Qrels(offsets=np.array([0, 2, 2, 3]), documents=np.array([7, 3, 5]), gains=np.array([1, 2, 3]))
RANKING = Ranking(
    documents=np.array([[3, 9, 7], [7, -1, -1], [4, 3, -1]]),
    scores=np.array([[3, 2, 1], [1, -np.inf, -np.inf], [2, 1, -np.inf]], dtype=np.float32),
)


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


def answers(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    monkeypatch.setitem(__import__("sys").modules, "a_package", SimpleNamespace(metric=lambda gains, qrels: answer, text="x"))


def test_each_document_has_the_grade_that_its_query_gives_it() -> None:
    assert gains_retrieved(RANKING.documents, QRELS, least=None).tolist() == [[2, 0, 1], [0, 0, 0], [0, 0, 0]]
    qrels, ranking = qrels_of(1), ranking_of(1)
    expected = [[dict(zip(*qrels.row(row), strict=True)).get(d, 0) for d in ranking.documents[row]] for row in range(60)]
    assert gains_retrieved(ranking.documents, qrels, least=None).tolist() == expected
    nothing = Qrels(offsets=np.zeros(4, dtype=int), documents=np.zeros(0, dtype=int), gains=np.zeros(0, dtype=int))
    assert not gains_retrieved(RANKING.documents, nothing, least=None).any()


def test_an_answer_counts_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, [0.5, float("nan"), 1])
    np.testing.assert_array_equal(own_values("a_package.metric@2", RANKING, QRELS), [0.5, np.nan, 1])


@pytest.mark.parametrize("answer", [[0.5, 0.5], 0.5, [0.5, 1.5, 0], [-0.1, 0, 0]])
def test_an_answer_of_another_shape_or_beyond_0_to_1_is_refused(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    answers(monkeypatch, answer)
    with pytest.raises(SetupError, match=r"a_package.metric@2 gave .* expected \(3,\), a number from 0 to 1 for each query"):
        own_values("a_package.metric@2", RANKING, QRELS)


@pytest.mark.parametrize("name", ["a_package.no_metric@2", "a_package.text@2", "no_package_at_all.metric@2"])
def test_what_is_no_function_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    answers(monkeypatch, None)
    with pytest.raises(SetupError, match=f"metrics: got '{name}', which (cannot be imported|is no function)"):
        own_values(name, RANKING, QRELS)
