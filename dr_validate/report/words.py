"""Numbers and names as the page writes them: the same everywhere."""

import math
from collections.abc import Iterable, Sequence

from dr_validate.values import Estimate, Report

MINUS = "\u2212"
HOUR_S, MINUTE_S, DAY_S = 3600, 60, 86400


def number(value: float | None, digits: int = 4) -> str:
    """Fixed digits; nothing for what is not known."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
    """With its sign; zero has none."""
    text = number(value, digits)
    return text if not text or not text.strip(f"0.{MINUS}") or text[0] == MINUS else f"+{text}"


def interval(low: float, high: float, digits: int = 4) -> str:
    """`[low, high]`."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def shortened(text: str, most: int = 240) -> str:
    """On one line, cut at a word where it is longer than `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most].rpartition(' ')[0] or line[:most]} \u2026"


def with_interval(estimate: Estimate, digits: int = 3) -> str:
    """`0.312 [0.301, 0.322]`, the value alone where it is exact, `at most 0.331` where it is only an upper bound."""
    if estimate.is_bound:
        return f"at most {number(estimate.value, digits)}"
    value = number(estimate.value, digits)
    return value if not estimate.has_interval else f"{value} {interval(estimate.low, estimate.high, digits)}"


def interval_name(reports: Iterable[Report]) -> str:
    """What a band or bar is."""
    return "95% interval, any queries" if any(report.is_mean for report in reports) else "95% interval"


def count(how_many: int, noun: str) -> str:
    """`1 checkpoint`, `12 checkpoints`, `3 queries`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{how_many:,} {noun if how_many == 1 else plural}"


def percent(share: float) -> str:
    """Two digits below ten percent, whole ones above: `0.5%`, `3.4%`, `20%`."""
    if not math.isfinite(share):
        return ""
    hundredths = 100 * share
    text = f"{hundredths:.0f}" if hundredths >= 9.95 or hundredths == 0 else f"{hundredths:.2g}"
    return f"{text}%"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `41 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < HOUR_S:
        return f"{seconds / MINUTE_S:.0f} min"
    if seconds < DAY_S:
        minutes = round(seconds / MINUTE_S)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / HOUR_S)
    return f"{hours // 24} d {hours % 24} h"


def listed(names: Sequence[str], most: int = 3) -> str:
    """`a`, `a and b`, `a, b and c`, `a, b, c and 4 more`."""
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def steps_in_words(numbers: Sequence[int]) -> str:
    """`step 500`, `steps 500 and 1,000`."""
    return f"step{'s' if len(numbers) > 1 else ''} {listed([f'{step:,}' for step in numbers])}"


def axis_number(value: float) -> str:
    """As short as a tick should be: `0.25`, `1,500`, `20k`, `1.5M`."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M".replace("-", MINUS)
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k".replace("-", MINUS)
    return f"{value:,.6g}".replace("-", MINUS)
