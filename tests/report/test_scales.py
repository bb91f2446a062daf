"""Scales: round ticks inside the range, ranges that hold all values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_validate.report.markup import Scale, around, around_on_log, log_ticks, nice_ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_round_even_and_inside(low: float, width: float, wanted: int) -> None:
    high = low + width
    ticks = nice_ticks(low, high, wanted)
    assert 1 <= len(ticks) <= wanted + 1
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in ticks)
    gaps = [second - first for first, second in zip(ticks, ticks[1:], strict=False)]
    assert all(math.isclose(gap, gaps[0], rel_tol=1e-6) for gap in gaps)


def test_ticks_of_usual_ranges_are_what_one_would_write() -> None:
    assert nice_ticks(0.09, 0.31, 5) == [0.1, 0.15, 0.2, 0.25, 0.3]
    assert nice_ticks(0, 4000, 4) == [0, 1000, 2000, 3000, 4000]
    assert log_ticks(3, 60) == [5, 10, 20, 50]
    assert log_ticks(1, 100_000) == [1, 10, 100, 1000, 10_000, 100_000]


@pytest.mark.parametrize("values", [[0.2], [0.0, 0.0], [0.1, 0.3], [1e9, 1e9], [-2, 5], [float("nan"), 0.5, float("inf")]])
def test_a_range_holds_every_finite_value_with_room_on_both_sides(values: list[float]) -> None:
    low, high = around(values)
    assert all(low < value < high for value in values if math.isfinite(value))


def test_a_range_of_nothing_is_a_range_and_small_differences_are_not_blown_up() -> None:
    assert around([]) == (0.0, 1.0)
    low, high = around([0.3000, 0.3001], least=0.01)
    assert high - low == pytest.approx(0.01, rel=0.03)


def test_a_logarithmic_scale_puts_factors_at_equal_distances() -> None:
    low, high = around_on_log([10, 1000])
    scale = Scale(low=low, high=high, start=0, end=100, log=True)
    assert low < 10 < 1000 < high
    assert scale(100) - scale(10) == pytest.approx(scale(1000) - scale(100))
    assert scale(low) == 0 and scale(high) == pytest.approx(100)
