"""Charts about strategies and about queries: error against cost, and how many queries changed by how much."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dr_validate.fidelity.comparison import Comparison
from dr_validate.report import plot
from dr_validate.report.gather import Section, Strategy
from dr_validate.report.markup import Markup, el, join
from dr_validate.report.queries import Movement
from dr_validate.report.scales import around, around_on_log, nice_step
from dr_validate.report.words import count, number, signed

SHAPES = ("circle", "square", "triangle", "diamond")
COLOURS = 6
LOG_FROM = 20  # costs that differ by more than this factor are shown on a logarithmic axis
BINS = 20
BAR_GAP = 0.15  # of a bin


@dataclass(frozen=True, slots=True, kw_only=True)
class Costed:
    """A strategy with its place in the legend and what is known of its error."""

    place: int
    strategy: Strategy
    comparison: Comparison

    @property
    def look(self) -> tuple[str, str]:
        """Shape and class; both change from one strategy to the next, so that colour alone decides nothing."""
        return SHAPES[self.place % len(SHAPES)], f"series-{self.place % COLOURS} point"


Read = Callable[[Costed], float | None]


def costed(section: Section) -> list[Costed]:
    """The sampled strategies that have been compared with the full corpus."""
    metric = section.metric
    pairs = [(strategy, section.comparison(strategy, metric)) for strategy in section.sampled] if metric else []
    known = [(strategy, comparison) for strategy, comparison in pairs if comparison]
    return [Costed(place=i, strategy=strategy, comparison=found) for i, (strategy, found) in enumerate(known)]


def cost_charts(section: Section) -> Markup:
    """RMSE and tau by documents, which cost the same on every machine; nothing for a single strategy."""
    found = costed(section)
    if len(found) < 2:
        return Markup("")
    rmse = f"RMSE of {section.metric}"
    documents = "documents encoded for a checkpoint"

    def error(one: Costed) -> float | None:
        return one.comparison.rmse

    figures = [
        _cost_chart(found, plot.Labels(title="Error by documents", x=documents, y=rmse), error),
        _cost_chart(found, plot.Labels(title="Order by documents", x=documents, y="Kendall tau"), _tau),
    ]
    entries = [(one.strategy.name, el("g", plot.shape(one.look[0], (14, 7)), class_=one.look[1])) for one in found]
    return join(plot.legend(entries), plot.charts(*figures))


def _tau(one: Costed) -> float | None:
    return one.comparison.tau


def _cost_chart(found: Sequence[Costed], labels: plot.Labels, error: Read) -> Markup:
    known = [(one, x, y) for one in found if (x := one.strategy.documents) and (y := error(one)) is not None]
    if not known:
        return Markup("")
    costs = [x for _, x, _ in known]
    log = max(costs) / min(costs) > LOG_FROM
    ends = [end for one, _, _ in known if error is _tau for end in one.comparison.tau_interval or ()]
    low, high = around([*(y for _, _, y in known), *ends, *([] if error is _tau else [0.0])])
    low, high = (max(low, -1.0), min(high, 1.0)) if error is _tau else (0.0, high)
    across = around_on_log(costs) if log else (0.0, around([0.0, *costs])[1])
    on = plot.frame(across, (low, high if high > low else low + 1), log_x=log)
    marks = []
    for one, x, y in known:
        told = (
            f"{one.strategy.name}: {labels.y} {number(y)}, {x:,.4g} {labels.x}, over {one.comparison.checkpoints:,} checkpoints"
        )
        reach = one.comparison.tau_interval if error is _tau else None
        bars = [plot.upright(on.x(x), on.y(reach[0]), on.y(reach[1]))] if reach else []
        marks.append(plot.titled(told, *bars, plot.shape(one.look[0], (on.x(x), on.y(y)), 5), class_=one.look[1]))
    return plot.chart(on, labels, *marks)


def change_chart(movement: Movement) -> Markup:
    """How many queries changed by how much; those that did not change are told in words. Nothing where none did."""
    changes = [float(change) for change in movement.changes if change]
    if not changes:
        return Markup("")
    width = nice_step(2 * max(map(abs, changes)) / BINS)
    bins: dict[int, int] = {}
    for change in changes:  # bins end at zero, so that none holds gains and losses
        place = math.ceil(change / width - 1e-9) - 1 if change > 0 else math.floor(change / width + 1e-9)
        bins[place] = bins.get(place, 0) + 1
    reach = max(max(bins) + 1, -min(bins)) * width
    on = plot.frame((-reach, reach), (0, max(bins.values()) * 1.08))
    bars = [_bar(on, (place * width, (place + 1) * width), how_many) for place, how_many in sorted(bins.items())]
    zero = el("line", x1=on.x(0), x2=on.x(0), y1=plot.TOP, y2=on.bottom, class_="axis")
    labels = plot.Labels(title="Change per query", x=f"change of {movement.metric}", y="queries")
    return plot.chart(on, labels, *bars, zero)


def _bar(on: plot.Frame, ends: tuple[float, float], how_many: int) -> Markup:
    left, right = (on.x(end) for end in ends)
    gap = BAR_GAP * (right - left) / 2
    top = on.y(how_many)
    d = f"M{left + gap:.1f} {on.bottom:.1f}V{top:.1f}H{right - gap:.1f}V{on.bottom:.1f}Z"
    told = f"{count(how_many, 'query')}: {signed(ends[0], 3)} to {signed(ends[1], 3)}"
    return plot.titled(told, el("path", d=d), class_="gain" if ends[1] > 0 else "loss")


def change_in_words(movement: Movement) -> str:
    """One sentence under the heading."""
    gained, lost = (int((sign * movement.changes > 0).sum()) for sign in (1, -1))
    same = len(movement.query_ids) - gained - lost
    queries = count(len(movement.query_ids), "query")
    # The verdict says the mean, with its interval, where there are enough of them for one.
    mean = "" if movement.interval else f"; mean {signed(movement.mean)}"
    return f"Of {queries} {gained:,} gained, {lost:,} lost and {same:,} stayed the same{mean}."
