from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from dr_validate.sampler.epochs import drift
from dr_validate.sampler.random import RandomSampler
from dr_validate.sampler.stratified import StratifiedSampler
from dr_validate.values import Ranking, Sample, TestSet


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where BM25 is kept between the tests."""
    return tmp_path_factory.mktemp("runs")


def baseline_of(test_set: TestSet) -> Ranking:
    documents = np.random.default_rng(4).permuted(np.tile(np.arange(600), (len(test_set.query_ids), 1)), axis=1)[:, :20]
    return Ranking(documents=documents, scores=np.zeros(documents.shape, dtype=np.float32))


def is_within(small: Sample, large: Sample) -> bool:
    return set(small.ordinals.tolist()) < set(large.ordinals.tolist())


@pytest.mark.parametrize(
    "sampler", [RandomSampler(fraction=0.5, decide="best"), StratifiedSampler(fraction=0.9, pool_share=0.6, precision=0.1)]
)
def test_levels_are_a_quarter_half_and_all_of_the_budget_each_within_the_next(
    medium: TestSet, cache: Path, sampler: RandomSampler | StratifiedSampler
) -> None:
    levels = sampler.draw_levels(medium, 13, cache)
    whole = sampler.draw(medium, 13, cache)
    number = len(whole.ordinals)
    assert {level: len(sample.ordinals) for level, sample in levels.items()} == {1: number // 4, 2: number // 2, 3: number}
    assert is_within(levels[1], levels[2])
    assert is_within(levels[2], levels[3])
    np.testing.assert_array_equal(levels[3].ordinals, whole.ordinals)
    assert levels[3].fingerprint == whole.fingerprint  # what ends a checkpoint early is no matter of the sample
    for sample in levels.values():
        assert (1 / sample.inclusion).sum() == pytest.approx(600)


def test_a_level_that_cannot_be_drawn_is_left_out_and_named(
    medium: TestSet, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dr_validate")
    # A quarter of 0.4 is 60 documents of which 13 are judged: a pool of 32 leaves 15, half leaves 33 of 107.
    assert list(StratifiedSampler(fraction=0.4, precision=0.1).draw_levels(medium, 13, cache)) == [3]
    assert list(StratifiedSampler(fraction=0.6, precision=0.1).draw_levels(medium, 13, cache)) == [2, 3]
    assert list(RandomSampler(fraction=0.05, precision=0.1).draw_levels(medium, 13, cache)) == [2, 3]  # 30, 15 and 8 of 13
    named = [message for message in caplog.messages if message.startswith("no early decision")]
    assert named[-1] == "no early decision at 0.25 of the documents, which are too few for this sampler"
    assert len(named) == 4


def test_by_default_there_is_one_level_and_no_rule(medium: TestSet, cache: Path) -> None:
    for sampler in (RandomSampler(fraction=0.9), StratifiedSampler(fraction=0.9)):
        levels = sampler.draw_levels(medium, 13, cache)
        assert list(levels) == [3]
        assert levels[3].fingerprint == sampler.draw(medium, 13, cache).fingerprint
        assert sampler.rules() == {}


def test_each_rule_that_is_set_is_part_of_the_spec() -> None:
    assert RandomSampler(fraction=0.5, precision=0.01, decide="best").rules() == {"precision": 0.01, "decide": "best"}
    assert StratifiedSampler(decide="best").rules() == {"decide": "best"}
    assert StratifiedSampler(epochs="drift", drift=0.2).rules() == {"epochs": "drift", "drift": 0.2}


def test_the_deepest_level_of_an_epoch_is_its_sample(medium: TestSet, cache: Path) -> None:
    baseline = baseline_of(medium)
    sampler = StratifiedSampler(fraction=0.9, pool_share=0.6, precision=0.1, epochs="drift")
    levels = sampler.redraw_levels(medium, 13, cache, baseline, epoch=2)
    assert levels[3].fingerprint == sampler.redraw(medium, 13, cache, baseline, epoch=2).fingerprint
    assert is_within(levels[1], levels[2])
    assert is_within(levels[2], levels[3])


def test_only_a_drift_beyond_the_limit_calls_for_a_new_epoch(medium: TestSet, cache: Path) -> None:
    baseline = baseline_of(medium)
    sample = StratifiedSampler(fraction=0.4).draw(medium, 13, cache)
    found = drift(sample, baseline)
    assert 0.1 < found < 0.99
    assert StratifiedSampler(epochs="drift", drift=found - 0.01).drifted(sample, baseline) == found
    assert StratifiedSampler(epochs="drift", drift=found).drifted(sample, baseline) is None
    assert StratifiedSampler().drifted(sample, baseline) is None


def test_a_limit_that_has_no_effect_is_refused() -> None:
    with pytest.raises(ValidationError, match="drift: got 0.2, which has no effect with epochs=never; set epochs=drift"):
        StratifiedSampler(drift=0.2)
