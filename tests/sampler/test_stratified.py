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
from dr_validate.sampler.epochs import drift
from dr_validate.sampler.fusion import candidates
from dr_validate.sampler.stratified import StratifiedSampler
from dr_validate.values import Ranking, Sample, TestSet

WriteRun = Callable[[str, str], Path]

# At 0.4 of 600 documents: 13 judged, 158 in the pool, 23 of 69 in the ring, 46 of the other 360.
SAMPLER = StratifiedSampler(fraction=0.4, ring_share=0.1)


def ringed(**values: Any) -> StratifiedSampler:
    """With a ring, which the default leaves out."""
    return StratifiedSampler(**{"ring_share": 0.1, **values})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where BM25 is kept between the tests."""
    return tmp_path_factory.mktemp("runs")


def with_odds(sample: Sample, low: float, high: float) -> set[int]:
    return set(sample.ordinals[(sample.inclusion >= low) & (sample.inclusion <= high)].tolist())


def certain(sample: Sample) -> set[int]:
    return with_odds(sample, 1, 1)


def by_odds(test_set: TestSet, sample: Sample) -> list[tuple[str, float]]:
    return sorted(zip(test_set.corpus.ids(sample.ordinals), sample.inclusion.tolist(), strict=True))


def pool_order(test_set: TestSet, cache: Path) -> list[int]:
    found = candidates([bm25_run(test_set, 1000, cache)], test_set)
    return [int(ordinal) for ordinal in found.best(600, test_set.corpus.id_hash[found.documents])]


def test_the_pool_is_certain_the_ring_and_the_rest_have_known_odds(medium: TestSet, cache: Path) -> None:
    sample = SAMPLER.draw(medium, 13, cache)
    order = pool_order(medium, cache)
    assert certain(sample) == {*medium.judged.tolist(), *order[:158]}
    ring, rest = with_odds(sample, 23 / 69, 23 / 69), with_odds(sample, 46 / 360, 46 / 360)
    assert (len(ring), len(rest), len(sample.ordinals)) == (23, 46, 240)
    assert ring < set(order[158:227])
    assert not rest & {*order[:227], *medium.judged.tolist()}


@settings(max_examples=25)
@given(number=st.integers(209, 600), seed=st.integers(0, 1000))
def test_the_budget_is_filled_exactly_and_the_sample_stands_for_the_whole_corpus(
    medium: TestSet, cache: Path, number: int, seed: int
) -> None:
    sample = ringed(fraction=number / 600).draw(medium, seed, cache)
    assert len(sample.ordinals) == number
    assert np.all(np.isin(medium.judged, list(certain(sample))))
    assert (1 / sample.inclusion).sum() == pytest.approx(600)  # n documents with odds n/N stand for N
    assert len(np.unique(sample.inclusion)) <= 3


def test_every_document_comes_in_as_often_as_its_odds_say(medium: TestSet, cache: Path) -> None:
    draws, order = 150, pool_order(medium, cache)
    counts, odds = np.zeros(600), np.full(600, 46 / 360)
    odds[order[158:227]] = 23 / 69
    odds[[*order[:158], *medium.judged]] = 1
    for seed in range(draws):
        sample = SAMPLER.draw(medium, seed, cache)
        np.testing.assert_array_equal(sample.inclusion, odds[sample.ordinals])
        counts[sample.ordinals] += 1
    z = (counts - draws * odds) / np.sqrt(draws * np.where(odds < 1, odds * (1 - odds), 1))
    assert np.abs(z).max() < 4.5
    assert 0.8 < z[odds < 1].var() < 1.2  # 429 documents: neither favoured by their numbers nor held evenly
    assert np.all(z[odds == 1] == 0)


def test_equal_settings_draw_the_same_whatever_the_order_of_the_corpus(
    medium: TestSet, reordered_medium: TestSet, cache: Path, tmp_path: Path
) -> None:
    first, again, other = (SAMPLER.draw(medium, seed, cache) for seed in (13, 13, 14))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    elsewhere = SAMPLER.draw(reordered_medium, 13, tmp_path)
    assert by_odds(medium, first) == by_odds(medium, again) == by_odds(reordered_medium, elsewhere)
    assert certain(first) == certain(other)
    assert with_odds(first, 0, 0.99) != with_odds(other, 0, 0.99)


@settings(max_examples=25)
@given(less=st.integers(209, 313), step=st.integers(1, 60), seed=st.integers(0, 1000))  # from 374 on the rest has above 0.32
def test_pool_and_rest_are_nested_over_budgets(medium: TestSet, cache: Path, less: int, step: int, seed: int) -> None:
    small, large = (ringed(fraction=n / 600).draw(medium, seed, cache) for n in (less, less + step))
    reached_by_the_ring = set(pool_order(medium, cache)[: less + step - 13])  # by default, pool and ring are that many
    assert certain(small) <= certain(large)
    rest = with_odds(small, 0, 0.32)  # the ring has 0.333; at 370 documents the rest has 0.313
    assert rest
    assert rest - reached_by_the_ring <= certain(large) | with_odds(large, 0, 0.32)


def test_without_a_ring_all_is_nested(medium: TestSet, cache: Path) -> None:
    samplers = [ringed(fraction=n / 600, ring_share=0) for n in (150, 151, 200, 300, 500, 599, 600)]
    drawn = [set(sampler.draw(medium, 13, cache).ordinals.tolist()) for sampler in samplers]
    assert all(less < more for less, more in zip(drawn, drawn[1:], strict=False))


def test_the_whole_corpus_is_a_full_sample(medium: TestSet, cache: Path) -> None:
    sample = ringed(fraction=1).draw(medium, 13, cache)
    assert sample.is_full
    assert np.all(sample.inclusion == 1)


def test_runs_are_fused_and_what_they_cannot_fill_goes_to_the_rest(
    medium: TestSet, cache: Path, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_run("first.trec", "".join(f"q0 Q0 d{n} 1 {999 - n} t\n" for n in range(100, 180)))
    second = write_run("second.tsv", "".join(f"q1\td{n}\t{n}\n" for n in range(200, 210)))
    sampler = ringed(fraction=0.4, pool=(str(first), str(second)))
    sample = sampler.draw(medium, 13, cache)
    named = set(medium.corpus.find([f"d{n}" for n in (*range(100, 180), *range(200, 210))]).tolist())
    assert certain(sample) == named | set(medium.judged.tolist())
    assert len(sample.ordinals) == 240
    assert "end in pool or ring, after 90 documents that are not judged" in caplog.text


def test_the_smallest_fraction_that_works_is_named(medium: TestSet, cache: Path, write_run: WriteRun) -> None:
    message = r"sampler\.fraction: got {}, which is {} of 600 .* 13 judged .* at least 40 .* set sampler\.fraction=0\.346667 or"
    for fraction, documents in ((0.01, 6), (0.3, 180)):
        with pytest.raises(SetupError, match=message.format(fraction, documents)):
            ringed(fraction=fraction).draw(medium, 13, cache)
    least = ringed(fraction=0.346667).draw(medium, 13, cache)
    assert len(with_odds(least, 0, 0.32)) == 40
    with pytest.raises(SetupError, match=r"set sampler\.fraction=0\.346667"):
        ringed(fraction=208 / 600).draw(medium, 13, cache)
    short = str(write_run("short", "q0 Q0 d100 1 1 t\n"))  # one document in the pool: 40 of the rest come sooner
    with pytest.raises(SetupError, match=r"set sampler\.fraction=0\.088334 or more"):
        ringed(fraction=0.05, pool=(short,)).draw(medium, 13, cache)
    assert len(ringed(fraction=0.088334, pool=(short,)).draw(medium, 13, cache).ordinals) == 54


def test_a_run_that_cannot_be_read_is_named_with_its_key(medium: TestSet, cache: Path, write_run: WriteRun) -> None:
    with pytest.raises(
        SetupError, match=r"^sampler\.pool: got 'absent', which is no file; give the path of a run, ranxhub:ID or"
    ):
        ringed(fraction=0.4, pool=("bm25", "absent")).draw(medium, 13, cache)
    other = str(write_run("other", "x Q0 y 1 1 t\n"))
    with pytest.raises(SetupError, match=r"^sampler\.pool: .*other has 1 lines, and none of them names both"):
        ringed(fraction=0.4, pool=(other,)).draw(medium, 13, cache)


def test_the_fingerprint_follows_contents_and_every_number(write_run: WriteRun) -> None:
    run = "q0 Q0 d100 1 1 t\n"
    a, moved, b = (str(write_run(*pair)) for pair in (("a", run), ("moved", run), ("b", run + run)))
    settings: list[dict[str, Any]] = [{"pool": (a,)}, {"pool": (b,)}, {"pool": (a, "bm25")}, {}]
    settings += [{"fraction": 0.02}, {"pool_share": 0.6}, {"ring_share": 0.05}, {"ring_inclusion": 0.5}]
    prints = [ringed(**each).fingerprint() for each in settings]
    assert all(prints[i] != prints[j] for i in range(len(prints)) for j in range(i))
    assert ringed(pool=(moved,)).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pool_share": 0.9, "ring_share": 0.1}, "got 0.9 and 0.1, which leaves nothing for the rest"),
        ({"pool": ("bm25", "bm25")}, "name each run once"),
        ({"pool": ()}, "pool"),
        ({"pool": ("",)}, "pool"),
        ({"pool_share": 0}, "pool_share"),
        ({"ring_inclusion": 1}, "ring_inclusion"),
        ({"fraction": 0}, "fraction"),
    ],
)
def test_settings_that_make_no_design_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ringed(**values)


@pytest.fixture(scope="module")
def baseline(medium: TestSet, cache: Path) -> Ranking:
    """A model that retrieves what BM25 finds last: ten documents a query."""
    found = np.array(pool_order(medium, cache)[-60:]).reshape(6, 10)
    return Ranking(documents=found, scores=np.tile(np.arange(10, 0, -1, dtype=np.float32), (6, 1)))


def test_a_baseline_joins_the_pool_of_a_later_epoch(medium: TestSet, cache: Path, baseline: Ranking) -> None:
    before, after = SAMPLER.draw(medium, 13, cache), SAMPLER.redraw(medium, 13, cache, baseline)
    assert drift(before, baseline) == 1.0
    assert drift(after, baseline) == 0.0
    assert len(after.ordinals) == len(before.ordinals)
    assert (1 / after.inclusion).sum() == pytest.approx(600)


def test_every_epoch_is_a_draw_of_its_own(medium: TestSet, cache: Path, baseline: Ranking) -> None:
    first, again = SAMPLER.redraw(medium, 13, cache, baseline), SAMPLER.redraw(medium, 13, cache, baseline, epoch=1)
    second, other_run = SAMPLER.redraw(medium, 13, cache, baseline, epoch=2), SAMPLER.redraw(medium, 14, cache, baseline)
    assert first.fingerprint == again.fingerprint
    assert len({SAMPLER.draw(medium, 13, cache).fingerprint, *(s.fingerprint for s in (first, second, other_run))}) == 4
    assert certain(first) == certain(second) == certain(other_run)
    rests = [with_odds(sample, 0, 0.32) for sample in (first, second, other_run)]
    assert all(len(rest) == 46 for rest in rests)
    assert all(len(rests[i] & rests[j]) < 23 for i, j in ((0, 1), (0, 2), (1, 2)))  # by chance 46 * 46 / 360, near 6


def test_the_sizes_of_the_strata_are_told(medium: TestSet, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    SAMPLER.draw(medium, 13, cache)
    assert "13 judged documents, a pool of 158, 23 of 69 around it, 46 of the other 360" in caplog.text
