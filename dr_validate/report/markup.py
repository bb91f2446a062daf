"""HTML and SVG that cannot be broken by what is written into it: everything is escaped that is not `Markup` already.

Four parts: elements and escaping; a table that the reader can sort, from typed cells; a chart, which is a frame with ticks and
labels and the marks drawn in it; and the scales and ticks. Colours come from page.css.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dr_validate.report.words import axis_number

# A page is XML as well as HTML, so that any parser can read it; what neither can hold is shown as a replacement character.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_VOID = frozenset({"meta", "br", "col"})
Attribute = str | float | None
WIDTH = 420
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 26.0, 40.0
TICK_PIXELS = 64  # one tick in so many, not to let labels meet
CAP = 3.0
Point = tuple[float, float]
MARGIN = 0.06  # of the range, left free on both sides of the values
ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """`text` as it should be read, in an element or in a quoted attribute."""
    return text if isinstance(text, Markup) else Markup(html.escape(_UNWRITABLE.sub("\ufffd", text)))


def join(*parts: str | None) -> Markup:
    """The parts one after the other; None is nothing."""
    return Markup("".join(escaped(part) for part in parts if part is not None))


def el(name: str, /, *children: str | None, **attributes: Attribute) -> Markup:
    """One element. `class_` stands for class, `stroke_width` for stroke-width; an attribute that is None is left out."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opening = "".join(f' {key}="{_attribute(value)}"' for key, value in pairs)
    if name in _VOID:
        assert not children, f"<{name}> has no content"
        return Markup(f"<{name}{opening}/>")
    return Markup(f"<{name}{opening}>{join(*children)}</{name}>")


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escaped(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a cell shows and what its column is sorted by; numbers stand to the right."""

    shown: str
    sort: float | str | None = None
    look: str | None = None

    @property
    def markup(self) -> Markup:
        kind = "number" if isinstance(self.sort, (int, float)) else None
        classes = " ".join(part for part in (kind, self.look) if part) or None
        return el("td", self.shown, class_=classes, data_sort=None if self.sort is None else str(self.sort))


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`name` in the head; `number` columns have it to the right; `group` stands over neighbours that share it."""

    name: str
    number: bool = True
    group: str = ""


TableRow = Sequence[Cell]
EMPTY = Cell(shown="")


def table(columns: Sequence[Column], rows: Sequence[TableRow], caption: str) -> Markup:
    """Sortable by its heads; columns without a single value are left out."""
    kept = [place for place in range(len(columns)) if any(row[place].shown for row in rows)]
    shown = [columns[place] for place in kept]
    body = [el("tr", *(row[place].markup for place in kept)) for row in rows]
    heads = [el("th", column.name, scope="col", class_="number" if column.number else None) for column in shown]
    groups = _groups(shown)
    head = el("thead", groups, el("tr", *heads, class_="names"))
    whole = el("table", el("caption", caption), head, el("tbody", *body), class_="sortable")
    return el("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)


def _groups(columns: Sequence[Column]) -> Markup | None:
    if not any(column.group for column in columns):
        return None
    runs: list[list[Column]] = []
    for column in columns:
        if runs and runs[-1][0].group == column.group:
            runs[-1].append(column)
        else:
            runs.append([column])
    cells = [
        el("th", run[0].group, scope="colgroup", colspan=str(len(run)), class_="group" if run[0].group else None)
        for run in runs
    ]
    return el("tr", *cells)


def text(shown: str | None, look: str | None = None) -> Cell:
    return Cell(shown=shown or "", sort=shown or "", look=look)


def numeric(value: float | None, shown: str, look: str | None = None) -> Cell:
    """Empty where there is no value."""
    return Cell(shown=shown, sort=value, look=look) if value is not None and shown else EMPTY


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a value is in the picture; `x_ticks` instead of round numbers where there are few values."""

    x: Scale
    y: Scale
    height: int
    x_ticks: tuple[float, ...] | None = None

    @property
    def bottom(self) -> float:
        return self.height - BOTTOM


def frame(x: tuple[float, float], y: tuple[float, float], *, height: int = 270, log_x: bool = False) -> Frame:
    """The picture of x[0]..x[1] by y[0]..y[1]."""
    return Frame(
        x=Scale(low=x[0], high=x[1], start=LEFT, end=WIDTH - RIGHT, log=log_x),
        y=Scale(low=y[0], high=y[1], start=height - BOTTOM, end=TOP),
        height=height,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """`title` stands above the picture; `x` and `y` name the axes, with their units."""

    title: str
    x: str
    y: str


def chart(on: Frame, labels: Labels, *marks: Markup) -> Markup:
    """A figure: title, axes, and the marks in their order, later ones on top."""
    svg = el(
        "svg",
        _grid(on),
        el("text", labels.y, x=LEFT, y=TOP - 11, class_="axis-name") if labels.y != labels.title else None,
        el("text", labels.x, x=(LEFT + WIDTH - RIGHT) / 2, y=on.height - 6, class_="axis-name middle"),
        *marks,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {on.height}",
        role="img",
        aria_label=f"{labels.title}: {labels.y} by {labels.x}",
    )
    return el("figure", el("figcaption", labels.title), svg)


def _grid(on: Frame) -> Markup:
    right, bottom = WIDTH - RIGHT, on.bottom
    y_ticks = on.y.ticks(6)
    x_ticks = on.x_ticks if on.x_ticks is not None else on.x.ticks(int((right - LEFT) / TICK_PIXELS))
    lines = [el("line", x1=LEFT, x2=right, y1=on.y(tick), y2=on.y(tick), class_="grid") for tick in y_ticks]
    rows = [el("text", axis_number(tick), x=LEFT - 7, y=on.y(tick) + 4, class_="tick end") for tick in y_ticks]
    stubs = [el("line", x1=on.x(tick), x2=on.x(tick), y1=bottom, y2=bottom + 4, class_="axis") for tick in x_ticks]
    columns = [el("text", axis_number(tick), x=on.x(tick), y=bottom + 17, class_="tick middle") for tick in x_ticks]
    return join(*lines, el("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"), *rows, *stubs, *columns)


def titled(title: str, *shapes: Markup, class_: str) -> Markup:
    """Shapes that belong together and say `title` when pointed at."""
    return el("g", el("title", title), *shapes, class_=class_)


def line(places: Sequence[Point], class_: str) -> Markup:
    """Through all places; nothing where there are fewer than two."""
    return el("path", d=_path(places), class_=class_) if len(places) > 1 else Markup("")


def band(upper: Sequence[Point], lower: Sequence[Point], class_: str) -> Markup:
    """The area between two lines over the same x."""
    if len(upper) < 2:
        return Markup("")
    return el("path", d=f"{_path([*upper, *reversed(lower)])}Z", class_=class_)


def upright(x: float, low: float, high: float, class_: str = "bar") -> Markup:
    """An interval as an upright bar with caps."""
    strokes = [f"M{x:.1f} {low:.1f}V{high:.1f}", *(f"M{x - CAP:.1f} {end:.1f}h{2 * CAP:.1f}" for end in (low, high))]
    return el("path", d="".join(strokes), class_=class_)


def marker(kind: str, place: Point, size: float = 3.5) -> Markup:
    """A `circle`, `diamond`, `square`, `triangle` or `cross` around a place."""
    x, y = place
    wide = size * 1.3
    if kind == "circle":
        return el("circle", cx=x, cy=y, r=size)
    if kind == "square":
        return el("path", d=f"M{x - size:.1f} {y - size:.1f}h{2 * size:.1f}v{2 * size:.1f}h{-2 * size:.1f}Z")
    if kind == "triangle":
        return el("path", d=f"M{x:.1f} {y - wide:.1f}L{x + wide:.1f} {y + size:.1f}H{x - wide:.1f}Z")
    if kind == "cross":
        return el(
            "path",
            d=f"M{x - size:.1f} {y - size:.1f}l{2 * size:.1f} {2 * size:.1f}m0 {-2 * size:.1f}l{-2 * size:.1f} {2 * size:.1f}",
        )
    assert kind == "diamond", f"no shape {kind!r}"
    return el("path", d=f"M{x:.1f} {y - wide:.1f}L{x + wide:.1f} {y:.1f}L{x:.1f} {y + wide:.1f}L{x - wide:.1f} {y:.1f}Z")


def legend(entries: Sequence[tuple[str, Markup]]) -> Markup:
    """A line of samples (drawn around (14, 7)) and their names."""
    items = [
        el("li", el("svg", sample, xmlns="http://www.w3.org/2000/svg", viewBox="0 0 28 14", aria_hidden="true"), name)
        for name, sample in entries
    ]
    return el("ul", *items, class_="legend")


def side_by_side(*figures: Markup) -> Markup:
    """Side by side as far as there is room."""
    return el("div", *figures, class_="charts")


def _path(places: Sequence[Point]) -> str:
    return "".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(places))


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
