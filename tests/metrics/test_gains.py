"""Names of metrics; and with everything included an estimate is the metric itself: ranx's and trec_eval's, query by query."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dr_validate.errors import DrValidateError
from dr_validate.estimator.estimate import estimate
from dr_validate.estimator.evidence import RankEvidence, can_be_estimated, rank_evidence
from dr_validate.metrics.gains import deepest_cutoff, means, parse
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.values import Float64, Qrels, Ranking, Sample
from tests.estimator.synthetic import everything
from tests.metrics.peer import NUM_DOCUMENTS, NUM_QUERIES, TOP_K, TREC_EVAL, qrels_of, ranking_of, relevant, trec_eval

WITHOUT_LEVELS = ("ndcg@10", "ndcg")
WITH_LEVELS = ("mrr@10", "mrr", "recall@100", "recall@10", "precision@10", "hit_rate@10", "map@100", "map", "r-precision")
NAMES = (*WITHOUT_LEVELS, *WITH_LEVELS, *(f"{name}-l2" for name in WITH_LEVELS))


def certain(ranking: Ranking, qrels: Qrels, sample: Sample) -> RankEvidence:
    id_hash = np.random.default_rng(7).integers(0, 2**63, len(sample.ordinals)).astype(np.uint64)
    return rank_evidence(ranking, qrels, sample, id_hash)


def without_the_odd(ranking: Ranking, qrels: Qrels) -> tuple[Ranking, Sample]:
    """Only the judged documents and those with an even ordinal, all for certain, as if no others existed."""
    kept = np.unique(np.concatenate([qrels.documents, np.arange(0, NUM_DOCUMENTS, 2)]))
    left_out = ~np.isin(ranking.documents, kept)
    order = np.argsort(left_out, axis=1, kind="stable")  # the others move up
    documents = np.take_along_axis(np.where(left_out, -1, ranking.documents), order, axis=1)
    scores = np.take_along_axis(np.where(left_out, -np.inf, ranking.scores), order, axis=1).astype(np.float32)
    sample = Sample(ordinals=kept, inclusion=np.ones(len(kept)), num_documents=NUM_DOCUMENTS, fingerprint="even")
    return Ranking(documents=documents, scores=scores), sample


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_estimate_of_everything_is_ranxs_metric_for_every_query_and_in_the_mean(seed: int) -> None:
    ranking, qrels = ranking_of(seed), qrels_of(seed)
    scores = RanxMetrics(names=NAMES).score(ranking, qrels)
    known = certain(ranking, qrels, everything(NUM_DOCUMENTS))
    for name in NAMES:
        (estimated,) = estimate([known], qrels, name, TOP_K)
        assert_allclose(estimated.per_query, scores.per_query[name], rtol=0, atol=1e-12, err_msg=name)
        assert estimated.value == pytest.approx(scores.mean(name), abs=1e-12), name
        assert estimated.interval == (estimated.value, estimated.value) == (estimated.naive, estimated.naive), name
        assert estimated.outranking == 0
    assert means(NAMES, ranking.documents, qrels) == pytest.approx({name: scores.mean(name) for name in NAMES}, abs=1e-12)
    varied = {name: np.nanstd(scores.per_query[name]) for name in NAMES}
    assert min(varied.values()) > 0, varied  # constants would prove nothing


def test_an_estimate_of_everything_is_trec_evals_metric_for_every_query() -> None:
    ranking, qrels = ranking_of(4), qrels_of(4)
    known = certain(ranking, qrels, everything(NUM_DOCUMENTS))
    for level in (1, 2):
        expected = trec_eval(ranking, qrels, level)
        kept = relevant(qrels, level) > 0
        for name in NAMES:
            measure = "map" if name.startswith("map@100") else TREC_EVAL.get(name.removesuffix("-l2"))  # TOP_K is under 100
            if measure is None or name.endswith("-l2") != (level == 2):
                continue
            values: Float64 = np.array([expected[str(row)][measure] for row in range(NUM_QUERIES)])
            found = estimate([known], qrels, name, TOP_K)[0].per_query
            np.testing.assert_array_equal(np.isnan(found), ~kept, err_msg=name)
            assert_allclose(found[kept], values[kept], rtol=0, atol=1e-6, err_msg=name)


def test_a_sample_without_chance_is_estimated_at_its_sampled_value() -> None:
    qrels = qrels_of(5)
    ranking, sample = without_the_odd(ranking_of(5), qrels)
    assert not can_be_estimated(sample)
    scores = RanxMetrics(names=NAMES).score(ranking, qrels)
    for name in NAMES:
        (estimated,) = estimate([certain(ranking, qrels, sample)], qrels, name, TOP_K)
        assert_allclose(estimated.per_query, scores.per_query[name], rtol=0, atol=1e-12, err_msg=name)
        assert estimated.interval == (estimated.naive, estimated.naive)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("ndcg@10", ("ndcg", 10, 1)),
        ("mrr", ("mrr", None, 1)),
        ("map@1000", ("map", 1000, 1)),
        ("hit_rate@5", ("hit_rate", 5, 1)),
        ("r-precision", ("r-precision", None, 1)),
        ("recall@100-l2", ("recall", 100, 2)),
        ("my_package.metrics.best@5", ("my_package.metrics.best", 5, 1)),
    ],
)
def test_a_name_is_a_base_and_a_cutoff(name: str, parsed: tuple[str, int | None, int]) -> None:
    assert parse(name) == parsed


@pytest.mark.parametrize(
    "name",
    ["", "nDCG@10", "ndgc@10", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@1.5", "recall", "precision", "r-precision@5"]
    + [
        "bpref",
        "ndcg@10-l2",
        "recall@10-l",
        "recall@10-l0",
        "recall-l2@10",
        "recall@\u0661",
        "mrr@10 ",
        "my_package.best",
        "my_package..best@5",
    ],
)
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(DrValidateError, match=r"got .* expected one of ndcg, ndcg@K, mrr"):
        parse(name)


def test_the_deepest_cutoff_is_that_of_the_deepest_name() -> None:
    assert deepest_cutoff(["mrr@10", "recall@100-l2", "map", "ndcg@20"]) == 100
    assert deepest_cutoff(["map", "r-precision"]) == 0


def test_metrics_refuse_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="got 'ndcg@ten'"):
        RanxMetrics(names=("mrr@10", "ndcg@ten"))


def test_importing_the_metrics_loads_neither_ranx_nor_numba() -> None:
    code = "import sys, dr_validate.metrics.ranx; print(sorted({'ranx', 'numba', 'scipy'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
