import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_validate.errors import SetupError
from dr_validate.sampler.bm25 import bm25_run
from dr_validate.sampler.runs import candidates
from dr_validate.sampler.stratified import StratifiedSampler
from dr_validate.values import Sample, TestSet

WriteRun = Callable[[str, str], Path]

# At 0.4 of 600 documents: 13 judged, 158 in the pool, 69 of the other 429.
SAMPLER = StratifiedSampler(fraction=0.4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where BM25 is kept between the tests."""
    return tmp_path_factory.mktemp("runs")


def with_inclusion(sample: Sample, low: float, high: float) -> set[int]:
    return set(sample.ordinals[(sample.inclusion >= low) & (sample.inclusion <= high)].tolist())


def certain(sample: Sample) -> set[int]:
    return with_inclusion(sample, 1, 1)


def by_inclusion(test_set: TestSet, sample: Sample) -> list[tuple[str, float]]:
    return sorted(zip(test_set.corpus.ids(sample.ordinals), sample.inclusion.tolist(), strict=True))


def pool_order(test_set: TestSet, cache: Path) -> list[int]:
    found = candidates([bm25_run(test_set, 1000)], test_set)
    return [int(ordinal) for ordinal in found.best(600, test_set.corpus.id_hash[found.documents])]


def test_the_pool_is_certain_and_the_rest_has_one_inclusion_probability(medium: TestSet, cache: Path) -> None:
    sample = SAMPLER.draw(medium, 13, cache)
    order = pool_order(medium, cache)
    assert certain(sample) == {*medium.judged.tolist(), *order[:158]}
    rest = with_inclusion(sample, 69 / 429, 69 / 429)
    assert (len(rest), len(sample.ordinals)) == (69, 240)
    assert not rest & {*order[:158], *medium.judged.tolist()}


@settings(max_examples=25)
@given(number=st.integers(147, 600), seed=st.integers(0, 1000))
def test_the_budget_is_filled_exactly_and_the_sample_stands_for_the_whole_corpus(
    medium: TestSet, cache: Path, number: int, seed: int
) -> None:
    sample = StratifiedSampler(fraction=number / 600).draw(medium, seed, cache)
    assert len(sample.ordinals) == number
    assert np.all(np.isin(medium.judged, list(certain(sample))))
    assert (1 / sample.inclusion).sum() == pytest.approx(600)  # n documents, each with probability n/N, stand for N
    assert len(np.unique(sample.inclusion)) <= 2


def test_every_document_comes_in_as_often_as_its_inclusion_probability_says(medium: TestSet, cache: Path) -> None:
    draws, order = 150, pool_order(medium, cache)
    counts, expected = np.zeros(600), np.full(600, 69 / 429)
    expected[[*order[:158], *medium.judged]] = 1
    for seed in range(draws):
        sample = SAMPLER.draw(medium, seed, cache)
        np.testing.assert_array_equal(sample.inclusion, expected[sample.ordinals])
        counts[sample.ordinals] += 1
    z = (counts - draws * expected) / np.sqrt(draws * np.where(expected < 1, expected * (1 - expected), 1))
    assert np.abs(z).max() < 4.5
    assert 0.8 < z[expected < 1].var() < 1.2  # 429 documents: neither favoured by their numbers nor held evenly
    assert np.all(z[expected == 1] == 0)


def test_equal_settings_draw_the_same_whatever_the_order_of_the_corpus(
    medium: TestSet, reordered_medium: TestSet, cache: Path, tmp_path: Path
) -> None:
    first, again, other = (SAMPLER.draw(medium, seed, cache) for seed in (13, 13, 14))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    elsewhere = SAMPLER.draw(reordered_medium, 13, tmp_path)
    assert by_inclusion(medium, first) == by_inclusion(medium, again) == by_inclusion(reordered_medium, elsewhere)
    assert certain(first) == certain(other)
    assert with_inclusion(first, 0, 0.99) != with_inclusion(other, 0, 0.99)


@settings(max_examples=25)
@given(less=st.integers(147, 540), step=st.integers(1, 60), seed=st.integers(0, 1000))
def test_a_smaller_sample_lies_within_a_larger_one(medium: TestSet, cache: Path, less: int, step: int, seed: int) -> None:
    small, large = (StratifiedSampler(fraction=n / 600).draw(medium, seed, cache) for n in (less, less + step))
    assert certain(small) <= certain(large)
    assert set(small.ordinals.tolist()) < set(large.ordinals.tolist())


def test_the_whole_corpus_is_a_full_sample(medium: TestSet, cache: Path) -> None:
    sample = StratifiedSampler(fraction=1).draw(medium, 13, cache)
    assert sample.is_full
    assert np.all(sample.inclusion == 1)


def test_runs_are_fused_and_what_they_cannot_fill_goes_to_the_rest(
    medium: TestSet, cache: Path, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_run("first.trec", "".join(f"q0 Q0 d{n} 1 {999 - n} t\n" for n in range(100, 180)))
    second = write_run("second.tsv", "".join(f"q1\td{n}\t{n}\n" for n in range(200, 210)))
    sampler = StratifiedSampler(fraction=0.4, pool=(str(first), str(second)))
    sample = sampler.draw(medium, 13, cache)
    named = set(medium.corpus.find([f"d{n}" for n in (*range(100, 180), *range(200, 210))]).tolist())
    assert certain(sample) == named | set(medium.judged.tolist())
    assert len(sample.ordinals) == 240
    assert "end in the pool, after 90 documents that are not judged" in caplog.text


def test_the_smallest_fraction_that_works_is_named(medium: TestSet, cache: Path, write_run: WriteRun) -> None:
    message = r"sampler\.fraction: got {}, which is {} of 600 .* 13 judged .* at least 40 .* set sampler\.fraction=0\.238334 or"
    for fraction, documents in ((0.01, 6), (0.2, 120)):
        with pytest.raises(SetupError, match=message.format(fraction, documents)):
            StratifiedSampler(fraction=fraction).draw(medium, 13, cache)
    least = StratifiedSampler(fraction=0.238334).draw(medium, 13, cache)
    assert len(with_inclusion(least, 0, 0.32)) == 40
    with pytest.raises(SetupError, match=r"set sampler\.fraction=0\.238334"):
        StratifiedSampler(fraction=142 / 600).draw(medium, 13, cache)
    short = str(write_run("short", "q0 Q0 d100 1 1 t\n"))  # one document in the pool: 40 of the rest come sooner
    with pytest.raises(SetupError, match=r"set sampler\.fraction=0\.088334 or more"):
        StratifiedSampler(fraction=0.05, pool=(short,)).draw(medium, 13, cache)
    assert len(StratifiedSampler(fraction=0.088334, pool=(short,)).draw(medium, 13, cache).ordinals) == 54


def test_a_run_that_cannot_be_read_is_named_with_its_key(medium: TestSet, cache: Path, write_run: WriteRun) -> None:
    with pytest.raises(
        SetupError,
        match=r"^sampler\.pool: got 'absent', which is no file; give the path of a run, ranxhub:ID, shipped, baseline or",
    ):
        StratifiedSampler(fraction=0.4, pool=("bm25", "absent")).draw(medium, 13, cache)
    other = str(write_run("other", "x Q0 y 1 1 t\n"))
    with pytest.raises(SetupError, match=r"^sampler\.pool: .*other has 1 lines, and none of them names both"):
        StratifiedSampler(fraction=0.4, pool=(other,)).draw(medium, 13, cache)


def test_the_fingerprint_follows_contents_and_every_number(write_run: WriteRun) -> None:
    run = "q0 Q0 d100 1 1 t\n"
    a, moved, b = (str(write_run(*pair)) for pair in (("a", run), ("moved", run), ("b", run + run)))
    settings: list[dict[str, Any]] = [{"pool": (a,)}, {"pool": (b,)}, {"pool": (a, "bm25")}, {}]
    settings += [{"fraction": 0.02}, {"pool_share": 0.6}]
    prints = [StratifiedSampler(**each).fingerprint() for each in settings]
    assert all(prints[i] != prints[j] for i in range(len(prints)) for j in range(i))
    assert StratifiedSampler(pool=(moved,)).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pool": ("bm25", "bm25")}, "name each run once"),
        ({"pool": ()}, "pool"),
        ({"pool": ("",)}, "pool"),
        ({"pool_share": 0}, "pool_share"),
        ({"pool_share": 1}, "pool_share"),
        ({"fraction": 0}, "fraction"),
    ],
)
def test_settings_that_make_no_design_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StratifiedSampler(**values)


def test_the_sizes_of_the_strata_are_told(medium: TestSet, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    SAMPLER.draw(medium, 13, cache)
    assert "13 judged documents, a pool of 158, 69 of the other 429" in caplog.text
