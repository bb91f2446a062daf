"""Numbers as the page writes them."""

import pytest

from dr_validate.report import words
from dr_validate.values import Estimate
from tests.report.training import bound, exact, within


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (words.number(0.31249), "0.3125"),
        (words.number(-0.002, 3), "\u22120.002"),
        (words.number(float("nan")) + words.number(None), ""),
        (words.signed(0.25), "+0.2500"),
        (words.signed(-0.25), "\u22120.2500"),
        (words.signed(0.0), "0.0000"),
        (words.percent(0.0345), "3.5%"),
        (words.percent(0.20002), "20%"),
        (words.percent(0.0005), "0.05%"),
        (words.percent(1.0), "100%"),
        (words.duration(0.44), "0.4 s"),
        (words.duration(61), "61 s"),
        (words.duration(720), "12 min"),
        (words.duration(3 * 3600 + 300), "3 h 05 min"),
        (words.duration(52 * 3600), "2 d 4 h"),
        (words.count(1, "query") + words.count(2, "query"), "1 query2 queries"),
        (words.count(1200, "checkpoint"), "1,200 checkpoints"),
        (words.steps_in_words([500]), "step 500"),
        (words.steps_in_words([500, 1000]), "steps 500 and 1,000"),
        (words.steps_in_words([1, 2, 3, 4]), "steps 1, 2, 3 and 4"),
        (words.steps_in_words([1, 2, 3, 4, 5]), "steps 1, 2, 3 and 2 more"),
        (words.axis_number(20_000), "20k"),
        (words.axis_number(1_500_000), "1.5M"),
        (words.axis_number(0.25), "0.25"),
    ],
)
def test_numbers_are_written_in_one_way(written: str, meant: str) -> None:
    assert written == meant


def test_an_estimate_says_what_it_is() -> None:
    assert words.with_interval(exact(0.3)) == "0.300"
    assert words.with_interval(within(0.312, 0.01)) == "0.312 [0.302, 0.322]"
    assert words.with_interval(bound(0.331)) == "at most 0.331"
    assert words.with_interval(exact(0.0)) == "0.000"  # an upper bound of zero leaves nothing open


def test_an_interval_from_zero_with_an_estimate_below_its_end_is_an_interval() -> None:
    assert words.with_interval(Estimate(value=0.01, low=0.0, high=0.03, naive=0.05)) == "0.010 [0.000, 0.030]"
