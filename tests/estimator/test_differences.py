"""Intervals and paired differences, against numbers worked out by hand (with a table of the normal distribution)."""

import math

import numpy as np
import pytest

from dr_validate.estimator.estimate import Estimated, differences


def estimated(value: float, error: float, per_query: list[float], naive: float = 0.9) -> Estimated:
    """One that is alone on its sample."""
    return beside(value, [error**2], 0, per_query, naive)


def beside(value: float, covariance: list[float], place: int, per_query: list[float], naive: float = 0.9) -> Estimated:
    return Estimated(
        value=value, naive=naive, place=place, covariance=np.array(covariance), per_query=np.array(per_query), outranking=10
    )


def test_the_half_width_of_an_interval_is_1_96_standard_deviations() -> None:
    one = estimated(0.6, 0.05, [0.4, 0.8, math.nan])
    assert one.interval == pytest.approx((0.502, 0.698), abs=1e-12)
    # of the two queries that count: variance 0.08, of their mean 0.04; sqrt(0.0025 + 0.04) = 0.2061553, times 1.96 = 0.4040643
    assert one.population_interval == pytest.approx((0.1959357, 1.0), abs=1e-7)  # 1.0040643 is no value of a metric
    narrow = estimated(0.6, 0.05, [0.55, 0.60, 0.65])
    # variance 0.0025, of the mean 0.0008333; sqrt(0.0033333) = 0.0577350, times 1.96 = 0.1131607
    assert narrow.population_interval == pytest.approx((0.4868393, 0.7131607), abs=1e-7)


def test_an_interval_ends_at_zero_and_at_the_sampled_value() -> None:
    assert estimated(0.05, 0.05, [0.05], naive=0.1).interval == (0.0, 0.1)
    assert estimated(0.05, 0.0, [0.05], naive=0.1).interval == (0.05, 0.05)
    assert estimated(0.5, 0.05, [0.5]).population_interval == pytest.approx((0.402, 0.598))  # one query has no spread


def test_a_difference_and_its_intervals_are_those_of_a_hand_calculation() -> None:
    # errors of 0.05 and 0.04, half of which is the same: 0.0025 + 0.0016 - 2 * 0.0006 = 0.0029
    one = beside(0.6, [0.0025, 0.0006], 0, [0.7, 0.5, 0.6, math.nan])
    other = beside(0.5, [0.0006, 0.0016], 1, [0.5, 0.5, 0.5, math.nan])
    (found,) = differences(one, [other])
    # 1.96 * 0.0538516 = 0.1055492
    assert (found.value, found.low, found.high) == pytest.approx((0.1, -0.0055492, 0.2055492), abs=1e-7)
    # changes 0.2, 0.0, 0.1: variance 0.01, of the mean 0.0033333; 1.96 * sqrt(0.0062333) = 0.1547449
    assert (found.population_low, found.population_high) == pytest.approx((-0.0547449, 0.2547449), abs=1e-7)
    assert found.p == pytest.approx(0.0633178, abs=1e-6)  # two-sided, of 0.1 / 0.0538516 = 1.8569534 standard deviations
    (turned,) = differences(other, [one])
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert turned.p == pytest.approx(found.p)


def at(deviations: float, error: float = 0.01) -> Estimated:
    """One that lies so many standard deviations below 0.5, which is known without an error."""
    return beside(0.5 - deviations * error, [0.0, error**2], 1, [0.5, 0.5, 0.5])


CERTAIN = beside(0.5, [0.0, 0.0], 0, [0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("deviations", "expected"),
    [
        # alone 0.0455003, 0.0026998, 0.3173105, 0.0124193: the smallest times 4, the next times 3, and so on
        ([2.0, 3.0, 1.0, 2.5], [0.0910005, 0.0107992, 0.3173105, 0.0372579]),
        # alone 0.0300000, 0.0310001: 2 * 0.03 = 0.06, and the other one is not less
        ([2.1700904, 2.1570739], [0.06, 0.06]),
        ([-2.0], [0.0455003]),
        ([0.25, 0.125], [1.0, 1.0]),
    ],
)
def test_each_p_is_multiplied_by_the_number_of_those_not_smaller_and_none_falls(
    deviations: list[float], expected: list[float]
) -> None:
    assert [one.p for one in differences(CERTAIN, [at(each) for each in deviations])] == pytest.approx(expected, abs=1e-6)


def test_without_error_a_difference_is_certain_or_none() -> None:
    none, some = differences(CERTAIN, [at(0.0, 0.0), beside(0.4, [0.0, 0.0], 1, [0.4, 0.4, 0.4])])
    assert (none.p, none.low, none.high) == (1.0, 0.0, 0.0)
    assert (some.p, some.low, some.high) == pytest.approx((0.0, 0.1, 0.1))
