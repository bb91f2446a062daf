import numpy as np
import pytest

from dr_validate.sampler.drawing import epoch_seed
from dr_validate.sampler.epochs import content_of, drift, run_of
from dr_validate.values import Ranking, Sample


def ranking(*rows: list[int]) -> Ranking:
    documents = np.array(rows)
    return Ranking(documents=documents, scores=np.where(documents >= 0, 1, -np.inf).astype(np.float32))


SAMPLE = Sample(ordinals=np.array([1, 2, 5, 7]), inclusion=np.array([1, 0.5, 1, 0.1]), num_documents=9, fingerprint="x")


@pytest.mark.parametrize(
    ("rows", "depth", "expected"),
    [
        (([1, 5, 8],), 2, 0.0),  # both certain
        (([1, 5, 8],), 3, 1 / 3),  # 8 is not in the sample
        (([2, 7, 1],), 2, 1.0),  # in the sample, but by chance
        (([1, 2, 8], [1, -1, -1]), 3, 0.5),  # four places, empty ones do not count
        (([-1, -1, -1],), 10, 0.0),
    ],
)
def test_drift_is_the_share_of_top_places_that_are_not_certain(
    rows: tuple[list[int], ...], depth: int, expected: float
) -> None:
    assert drift(SAMPLE, ranking(*rows), depth=depth) == pytest.approx(expected)


def test_nothing_drifts_from_a_full_sample() -> None:
    full = Sample(ordinals=np.arange(9), inclusion=np.ones(9), num_documents=9, fingerprint="x")
    assert drift(full, ranking([8, 0, 3], [1, 2, -1])) == 0.0


def test_a_ranking_is_a_run_without_its_empty_places() -> None:
    run = run_of(ranking([4, 2, -1], [-1, -1, -1], [7, 4, 0]))
    assert run.rows.tolist() == [0, 0, 2, 2, 2]
    assert run.documents.tolist() == [4, 2, 7, 4, 0]
    assert run.ranks.tolist() == [0, 1, 0, 1, 2]


def test_the_content_of_a_baseline_is_who_is_retrieved_where() -> None:
    assert content_of(ranking([4, 2, -1])) == content_of(ranking([4, 2, -1])) != content_of(ranking([2, 4, -1]))


def test_every_epoch_of_every_run_has_a_seed_of_its_own_and_the_first_that_of_the_run() -> None:
    seeds = [epoch_seed(seed, epoch) for seed in (13, 14, 131) for epoch in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [epoch_seed(seed, epoch) for seed in (13, 14, 131) for epoch in range(4)]
    assert seeds[0] == 13
