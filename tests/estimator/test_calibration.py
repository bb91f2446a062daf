"""The model by numbers worked out by hand (README.md beside the code), and golden values of one small sample."""

from dataclasses import replace

import numpy as np
import pytest

from dr_validate.estimator.estimate import added, calibrate, estimate, negative_binomial, similarity, spread, unsampled_given
from dr_validate.estimator.evidence import RankEvidence, rank_evidence
from dr_validate.estimator.priors import PRIORS, Priors
from dr_validate.values import Float64, Qrels, Ranking
from tests.estimator.synthetic import collection, history_of, pool_and_rest, sample_of, training


def one(value: float) -> Float64:
    return np.array([value])


def test_the_query_of_the_readme_is_worth_what_the_readme_says() -> None:
    """Tails of 1 and e^-1 documents, a mean tail of 2; one document in fifty is drawn, none of the fold is above."""
    mean = np.exp(one(np.dot([1, 0, -1, 2], PRIORS.mean)))
    assert mean[0] == pytest.approx(0.19205, abs=1e-5)
    assert spread(mean)[0] == pytest.approx(0.11943, abs=1e-5)
    unsampled, form = unsampled_given(mean, 0.02, one(0.0))
    assert (unsampled[0], form[0]) == pytest.approx((0.18671, 0.11943), abs=1e-5)
    chances = negative_binomial(unsampled, form, 10)[0]
    assert chances[:3] == pytest.approx([0.89367, 0.06509, 0.02222], abs=1e-5)
    assert float(chances @ (1 / np.arange(1, 11))) == pytest.approx(0.93761, abs=1e-5)


def test_a_sampled_document_above_raises_what_is_expected_of_the_others() -> None:
    """Gamma and Poisson: shape 0.11943 + 1, mean 0.98 * 1.11943 / (0.11943 / 0.19205 + 0.02 / 4) = 1.74999."""
    unsampled, form = unsampled_given(one(0.19205), 0.02, one(1.0))
    assert (unsampled[0], form[0]) == pytest.approx((1.74999, 1.11943), abs=1e-4)
    chances = negative_binomial(unsampled, form, 9)[0]
    assert float(chances @ (1 / np.arange(2, 11))) == pytest.approx(0.33284, abs=1e-4)


def use(monkeypatch: pytest.MonkeyPatch, priors: Priors) -> None:
    """For the calibration alone: tails are read as always."""
    monkeypatch.setattr("dr_validate.estimator.estimate.PRIORS", priors)


def test_the_shape_is_a_constant_times_a_power_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, replace(PRIORS, shape=(np.log(0.6), 0.5)))
    assert spread(np.array([0.25, 1.0, 4.0])) == pytest.approx([0.3, 0.6, 1.2])


def test_variances_of_strata_add_up() -> None:
    """1 + 1 / 2 and 3 + 9 / 3: mean 4, variance beyond Poisson's 3.5, so that the shape is 16 / 3.5."""
    mean, form = added(np.array([[1.0], [3.0]]), np.array([[2.0], [3.0]]))
    assert (mean[0], form[0]) == pytest.approx((4.0, 16 / 3.5))


def test_a_constant_is_learnt_from_counts_where_its_prior_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all slopes at 0 the mean number above is what the counts say: 4 folds with 0.125 of the stratum each show a half."""
    given = collection(6, num_documents=600, num_queries=40)
    history = history_of(given, training(given, 2), pool_and_rest(given, 300, seed=0))
    free = replace(
        PRIORS, mean=(0.0, 0.0, 0.0, 0.0), sd=(10.0, 1e-6, 1e-6, 1e-6), shape=(30.0, 0.0), reach=1e9, weight_of_others=1e9
    )
    use(monkeypatch, free)
    coefficients, _ = calibrate(history, 10, np.eye(2))
    counted = np.concatenate([each.outranking[0][:, each.rank < 10].ravel() for each in history])
    assert np.exp(coefficients[0, 0]) == pytest.approx(counted.mean() * 4 / history[0].inclusion[0], rel=1e-3)


def small() -> tuple[list[RankEvidence], Qrels]:
    given = collection(7, num_documents=500, num_queries=12)
    return history_of(given, training(given, 3), pool_and_rest(given, 200, seed=0), 100), given.qrels


GOLDEN = {
    "mrr@10": [0.142697, 0.469333, 0.811642],
    "ndcg@10": [0.095591, 0.399648, 0.697474],
    "recall@10": [0.19333, 0.580066, 0.79589],
    "map": [0.114334, 0.396001, 0.660804],
}


@pytest.mark.parametrize("name", list(GOLDEN))
def test_values_of_a_small_sample_with_grades_stay_what_they_are(name: str) -> None:
    """A change here changes what users have seen: raise `evidence.FORMAT` with it, so that old and new are never mixed."""
    history, qrels = small()
    made = estimate(history, qrels, name, 100)
    assert [each.value for each in made] == pytest.approx(GOLDEN[name], abs=1e-6)


def test_one_query_over_a_tiny_sample_is_estimated_within_its_bounds() -> None:
    """One relevant document at rank 2 of five, one of the others drawn by chance: nothing can be learnt, nothing breaks."""
    inclusion = np.array([1.0, 1.0, 0.25, 1.0, 1.0])
    qrels = Qrels(offsets=np.array([0, 1]), documents=np.array([1]), gains=np.array([3]))
    ranking = Ranking(documents=np.arange(5)[None], scores=np.array([[5, 4, 3, 2, 1]], dtype=np.float32))
    evidence = rank_evidence(ranking, qrels, sample_of(inclusion), np.arange(5, dtype=np.uint64))
    for name, naive in (("mrr@10", 0.5), ("ndcg@10", 1 / np.log2(3)), ("recall@100", 1.0), ("map", 0.5)):
        (made,) = estimate([evidence], qrels, name, 5)
        assert made.naive == pytest.approx(naive)
        assert 0 <= made.interval[0] <= made.value <= made.interval[1] <= made.naive
    assert similarity([evidence]).tolist() == [[1.0]]
