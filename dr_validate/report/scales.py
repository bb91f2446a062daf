"""From values to places on a chart, and the round numbers between."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

MARGIN = 0.06  # of the range, left free on both sides of the values
ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps `low`..`high` to `start`..`end` (pixels), on a logarithmic axis if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __post_init__(self) -> None:
        assert self.low < self.high, f"scale: nothing between {self.low} and {self.high}"
        assert not self.log or self.low > 0, f"scale: no logarithm of {self.low}"

    def __call__(self, value: float) -> float:
        share = (self._warped(value) - self._warped(self.low)) / (self._warped(self.high) - self._warped(self.low))
        return self.start + share * (self.end - self.start)

    def _warped(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, wanted: int) -> list[float]:
        """Round values inside the range, about `wanted` of them."""
        return log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high, wanted)


def nice_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten in low..high: at most `wanted` + 1, at least one."""
    step = nice_step((high - low) / wanted)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def nice_step(least: float) -> float:
    """The smallest round number that is at least `least`."""
    assert least > 0, f"no step of {least}"
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in ROUND if factor * power >= least * (1 - 1e-9))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in low..high, powers alone where those are many."""
    powers = [10.0**exponent for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    factors = (1, 2, 5) if high / low < 200 else (1,)
    return [factor * power for power in powers for factor in factors if low <= factor * power <= high]


def around(values: Iterable[float], least: float = 0.0) -> tuple[float, float]:
    """A range that holds all finite values with some margin, never narrower than `least`; 0..1 where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = max((high - low) * MARGIN, (least - (high - low)) / 2, 1e-3 * abs(high))
    return (low - room, high + room) if room > 0 else (low - 0.5, high + 0.5)


def around_on_log(values: Iterable[float]) -> tuple[float, float]:
    """The same for a logarithmic axis: a factor of room on both sides."""
    positive = [value for value in values if value > 0]
    return min(positive) / 1.5, max(positive) * 1.5
