from pathlib import Path

import numpy as np
import pytest

from dr_validate.errors import SetupError
from dr_validate.sampler.full import FullSampler
from dr_validate.sampler.random import RandomSampler
from dr_validate.values import Sample, TestSet


def ids(test_set: TestSet, sample: Sample) -> set[str]:
    return set(test_set.corpus.ids(sample.ordinals))


def test_the_full_sample_holds_every_document_with_certainty(small: TestSet, tmp_path: Path) -> None:
    sample = FullSampler().draw(small, 13, tmp_path)
    np.testing.assert_array_equal(sample.ordinals, np.arange(200))
    assert sample.is_full
    assert np.all(sample.inclusion == 1)
    assert sample.fingerprint == FullSampler().draw(small, 14, tmp_path).fingerprint


@pytest.mark.parametrize(("fraction", "documents"), [(0.065, 13), (0.07, 14), (0.1, 20), (0.1001, 21), (0.55, 110), (1, 200)])
def test_a_fraction_is_of_the_whole_corpus_with_the_judged_documents_in(
    small: TestSet, tmp_path: Path, fraction: float, documents: int
) -> None:
    sample = RandomSampler(fraction=fraction).draw(small, 13, tmp_path)
    assert len(sample.ordinals) == documents
    judged = np.isin(sample.ordinals, small.judged)
    assert np.count_nonzero(judged) == len(small.judged) == 13
    assert np.all(sample.inclusion[judged] == 1)
    assert sample.inclusion[~judged] == pytest.approx((documents - 13) / 187)


def test_the_samples_of_one_seed_are_nested(small: TestSet, tmp_path: Path) -> None:
    drawn = [ids(small, RandomSampler(fraction=fraction).draw(small, 13, tmp_path)) for fraction in (0.07, 0.1, 0.3, 0.9, 1.0)]
    assert all(less < more for less, more in zip(drawn, drawn[1:], strict=False))


def test_the_order_of_the_corpus_plays_no_part(small: TestSet, reordered: TestSet, tmp_path: Path) -> None:
    sampler = RandomSampler(fraction=0.3)
    assert ids(small, sampler.draw(small, 13, tmp_path)) == ids(reordered, sampler.draw(reordered, 13, tmp_path))


def test_another_seed_draws_other_documents_and_the_same_seed_the_same(small: TestSet, tmp_path: Path) -> None:
    sampler = RandomSampler(fraction=0.3)
    first, again, other = (sampler.draw(small, seed, tmp_path) for seed in (13, 13, 14))
    np.testing.assert_array_equal(first.ordinals, again.ordinals)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert ids(small, first) != ids(small, other)


def test_every_document_comes_in_as_often_as_its_inclusion_probability_says(small: TestSet, tmp_path: Path) -> None:
    sampler, draws = RandomSampler(fraction=0.3), 400
    counts = np.zeros(200)
    for seed in range(draws):
        counts[sampler.draw(small, seed, tmp_path).ordinals] += 1
    inclusion = (60 - 13) / 187
    rest = np.delete(counts, small.judged) / draws
    assert rest.mean() == pytest.approx(inclusion)
    assert np.abs(rest - inclusion).max() < 4.5 * (inclusion * (1 - inclusion) / draws) ** 0.5


def test_too_small_a_fraction_is_an_error_that_names_one_that_works(small: TestSet, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"got 0\.01, which is 2 of 200 .* 13 judged .* set sampler\.fraction=0\.065 or more"):
        RandomSampler(fraction=0.01).draw(small, 13, tmp_path)
    assert len(RandomSampler(fraction=0.065).draw(small, 13, tmp_path).ordinals) == 13


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        RandomSampler(fraction=fraction)


def test_a_sample_too_small_to_correct_values_by_says_so_and_from_when_on_it_is_large_enough(
    small: TestSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RandomSampler(fraction=0.1).draw(small, 13, tmp_path)
    assert "leaves 7 documents beside the judged ones" in caplog.text
    assert "set sampler.fraction=0.265 or more" in caplog.text
    caplog.clear()
    RandomSampler(fraction=0.265).draw(small, 13, tmp_path)
    RandomSampler(fraction=1.0).draw(small, 13, tmp_path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
