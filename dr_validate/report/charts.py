"""The charts of the page: values over the training, sampled against full, error against cost, queries by their change."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dr_validate.fidelity.comparison import Comparison, paired
from dr_validate.ledger.reports import is_expected
from dr_validate.report import markup
from dr_validate.report.gather import Movement, Section, Strategy
from dr_validate.report.markup import Markup, el, join
from dr_validate.report.words import count, interval_name, number, signed, with_interval
from dr_validate.values import Estimate, Report

MANY_POINTS = 40  # beyond, they are drawn smaller
LEAST_RANGE = 0.01  # of a metric: smaller differences are not blown up to fill a chart
SHAPES = ("circle", "square", "triangle", "diamond")
COLOURS = 6
LOG_FROM = 20  # costs that differ by more than this factor are shown on a logarithmic axis
BINS = 20
BAR_GAP = 0.15  # of a bin


def steps_charts(section: Section, strategy: Strategy) -> Markup:
    """A metric over training steps, a chart each, under one legend."""
    full = section.full.done if section.full and strategy is not section.full else ()
    figures = [_steps_chart(section, strategy, full, m) for m in section.metrics if _with(strategy.done, m)]
    return join(markup.legend(_steps_legend(section, strategy)), markup.side_by_side(*figures)) if figures else Markup("")


def _steps_chart(section: Section, strategy: Strategy, full: Sequence[Report], metric: str) -> Markup:
    done, exact, missing = _with(strategy.done, metric), _with(full, metric), _missing(strategy)
    every_step = sorted({report.checkpoint.step for report in (*done, *exact, *missing)})
    estimates = [report.metrics[metric] for report in (*done, *exact)]
    values = [value for estimate in estimates for value in (estimate.value, *_ends(estimate), *_naive(estimate))]
    on = markup.frame(markup.around(every_step, least=10), unit_range(values))
    if len(every_step) == 1:
        on = markup.Frame(x=on.x, y=on.y, height=on.height, x_ticks=(every_step[0],))
    own = "full" if strategy.is_full else "sampled"
    marks = [
        *_bands(on, done, metric),
        markup.line([(on.x(r.checkpoint.step), on.y(v)) for r in done for v in _naive(r.metrics[metric])], "naive"),
        markup.line(_places(on, done, metric), f"{own} line"),
        *(_cross(on, report) for report in missing),
        *_points(on, done, metric, own),
        *_points(on, exact, metric, "full"),
        *(_ring(on, report, metric) for report in _best_point(section, done, exact)),
    ]
    return markup.chart(on, markup.Labels(title=metric, x="training step", y=metric), *marks)


def unit_range(values: Sequence[float]) -> tuple[float, float]:
    """Some room around values of a metric, most in 0..1; what lies outside (hits, ends of intervals) is shown, too."""
    low, high = markup.around(values, least=LEAST_RANGE)
    return max(low, min([0.0, *values])), min(high, max([1.0, *values]))


def _with(reports: Sequence[Report], metric: str) -> list[Report]:
    return [report for report in reports if metric in report.metrics]


def _missing(strategy: Strategy) -> list[Report]:
    """What ended without a value and should not have."""
    return [report for report in strategy.reports if report.status != "done" and not is_expected(report)]


def _best_point(section: Section, done: Sequence[Report], exact: Sequence[Report]) -> list[Report]:
    """The checkpoint that the headline names, at the value that it goes by: on the full corpus where that decides.

    Empty where it is the only one, or is not among these.
    """
    best, deciding = section.best, section.deciding
    if best is None or deciding is None or len(deciding.done) < 2:
        return []
    drawn = [*exact, *done] if deciding is section.full else [*done, *exact]
    return [report for report in drawn if report.checkpoint.digest == best.checkpoint.digest][:1]


def _ends(estimate: Estimate) -> tuple[float, ...]:
    return (estimate.low, estimate.high) if estimate.has_interval else ()


def _naive(estimate: Estimate) -> tuple[float, ...]:
    """Where it says more than the value."""
    return (estimate.naive,) if number(estimate.naive) and estimate.naive != estimate.value else ()


def _places(on: markup.Frame, reports: Sequence[Report], metric: str) -> list[markup.Point]:
    return [(on.x(report.checkpoint.step), on.y(report.metrics[metric].value)) for report in reports]


def _bands(on: markup.Frame, done: Sequence[Report], metric: str) -> list[Markup]:
    """Runs of checkpoints that have an interval; a lone one has a bar."""
    runs: list[list[Report]] = [[]]
    for report in done:
        if report.metrics[metric].has_interval:
            runs[-1].append(report)
        elif runs[-1]:
            runs.append([])
    marks = []
    for run in (run for run in runs if run):
        ends = [(on.x(r.checkpoint.step), on.y(r.metrics[metric].high), on.y(r.metrics[metric].low)) for r in run]
        if len(run) == 1:
            x, high, low = ends[0]
            marks.append(el("g", markup.upright(x, low, high), class_="sampled"))
        marks.append(markup.band([(x, high) for x, high, _ in ends], [(x, low) for x, _, low in ends], "band"))
    return marks


def _points(on: markup.Frame, reports: Sequence[Report], metric: str, own: str) -> list[Markup]:
    size = 3.5 if len(reports) <= MANY_POINTS else 2.2
    kind = "diamond" if own == "full" else "circle"
    places = _places(on, reports, metric)
    return [
        markup.titled(_told(report, metric, own), markup.marker(kind, place, size), class_=f"{own} point")
        for report, place in zip(reports, places, strict=True)
    ]


def _told(report: Report, metric: str, own: str) -> str:
    name = "full corpus" if own == "full" else "sampled"
    estimate = report.metrics[metric]
    uncorrected = f", uncorrected {number(estimate.naive)}" if _naive(estimate) else ""
    checkpoint = report.checkpoint
    return f"step {checkpoint.step:,} ({checkpoint.label}), {name}: {metric} {with_interval(estimate, 4)}{uncorrected}"


def _cross(on: markup.Frame, report: Report) -> Markup:
    told = f"step {report.checkpoint.step:,} ({report.checkpoint.label}) {report.status}: {report.error}"
    return markup.titled(told, markup.marker("cross", (on.x(report.checkpoint.step), on.bottom)), class_="missing")


def _ring(on: markup.Frame, best: Report, metric: str) -> Markup:
    place = (on.x(best.checkpoint.step), on.y(best.metrics[metric].value))
    return el("g", markup.marker("circle", place, 8), class_="ring")


def _steps_legend(section: Section, strategy: Strategy) -> list[tuple[str, Markup]]:
    estimates = [estimate for report in strategy.done for estimate in report.metrics.values()]
    bounds = bool(estimates) and all(estimate.is_bound for estimate in estimates)
    own = "full" if strategy is section.full else "sampled"
    kind = "diamond" if own == "full" else "circle"
    point = el("g", markup.marker(kind, (14, 7)), class_=f"{own} point")
    name = f"{strategy.name}, an upper bound" if bounds else strategy.name
    entries = [(name, join(markup.line([(1, 7), (27, 7)], f"{own} line"), point))]
    if any(estimate.has_interval for estimate in estimates):
        entries.append((interval_name(strategy.done), markup.band([(1, 2), (27, 2)], [(1, 12), (27, 12)], "band")))
    if any(_naive(estimate) for estimate in estimates):
        entries.append(("uncorrected, an upper bound", markup.line([(1, 7), (27, 7)], "naive")))
    if own == "sampled" and section.full and section.full.done:
        entries.append(("full corpus", el("g", markup.marker("diamond", (14, 7)), class_="full point")))
    for best in _best_point(section, strategy.done, section.full.done if section.full else ()):
        name = f"the best, step {best.checkpoint.step:,}"
        entries.append((name, el("g", markup.marker("circle", (14, 7), 6), class_="ring")))
    if ended := sorted({report.status for report in _missing(strategy)}):
        entries.append((" or ".join(ended), el("g", markup.marker("cross", (14, 7)), class_="missing")))
    return entries


def scatter_charts(section: Section, strategy: Strategy) -> Markup:
    """Sampled against full values, a chart for each metric; nothing without a checkpoint that has both."""
    pairs = {metric: paired(strategy.done, section.full.done if section.full else (), metric) for metric in section.metrics}
    figures = [_scatter(found, metric) for metric, found in pairs.items() if found]
    if not figures:
        return Markup("")
    entries = [
        (f"a checkpoint, {strategy.name}", el("g", markup.marker("circle", (14, 7)), class_="sampled point")),
        ("sampled = full", markup.line([(1, 12), (27, 2)], "diagonal")),
    ]
    if any(report.metrics[metric].has_interval for metric, found in pairs.items() for report, _ in found):
        entries.insert(1, (interval_name(strategy.done), el("g", markup.upright(14, 1, 13), class_="sampled")))
    return join(markup.legend(entries), markup.side_by_side(*figures))


def _scatter(pairs: Sequence[tuple[Report, Report]], metric: str) -> Markup:
    both = [(report.metrics[metric], exact.metrics[metric].value) for report, exact in pairs]
    values = [value for estimate, exact in both for value in (estimate.value, exact, *_ends(estimate))]
    span = unit_range(values)
    on = markup.frame(span, span, height=330)
    marks = [markup.line([(on.x(span[0]), on.y(span[0])), (on.x(span[1]), on.y(span[1]))], "diagonal")]
    for (report, _), (estimate, exact) in zip(pairs, both, strict=True):
        told = f"{_told(report, metric, 'sampled')}; full corpus {number(exact)}"
        bars = [markup.upright(on.x(exact), on.y(estimate.low), on.y(estimate.high))] if estimate.has_interval else []
        dot = markup.marker("circle", (on.x(exact), on.y(estimate.value)), 3.5 if len(pairs) <= MANY_POINTS else 2.5)
        marks.append(markup.titled(told, *bars, dot, class_="sampled point"))
    return markup.chart(on, markup.Labels(title=metric, x=f"{metric} on the full corpus", y=f"sampled {metric}"), *marks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Costed:
    """A strategy with its place in the legend and what is known of its error."""

    place: int
    strategy: Strategy
    comparison: Comparison

    @property
    def look(self) -> tuple[str, str]:
        """Shape and class; both change from one strategy to the next, so that colour alone decides nothing."""
        return SHAPES[self.place % len(SHAPES)], f"series-{self.place % COLOURS} point"


def _costed(section: Section) -> list[_Costed]:
    """The sampled strategies that have been compared with the full corpus."""
    metric = section.metric
    pairs = [(strategy, section.comparison(strategy, metric)) for strategy in section.sampled] if metric else []
    known = [(strategy, comparison) for strategy, comparison in pairs if comparison]
    return [_Costed(place=i, strategy=strategy, comparison=found) for i, (strategy, found) in enumerate(known)]


def cost_charts(section: Section) -> Markup:
    """RMSE and tau by documents, which cost the same on every machine; nothing for a single strategy."""
    found = _costed(section)
    if len(found) < 2:
        return Markup("")
    rmse = f"RMSE of {section.metric}"
    documents = "documents encoded for a checkpoint"
    figures = [
        _cost_chart(found, markup.Labels(title="Error by documents", x=documents, y=rmse), is_tau=False),
        _cost_chart(found, markup.Labels(title="Order by documents", x=documents, y="Kendall tau"), is_tau=True),
    ]
    entries = [(one.strategy.name, el("g", markup.marker(one.look[0], (14, 7)), class_=one.look[1])) for one in found]
    return join(markup.legend(entries), markup.side_by_side(*figures))


def _cost_chart(found: Sequence[_Costed], labels: markup.Labels, *, is_tau: bool) -> Markup:
    values = [(one, one.strategy.documents, one.comparison.tau if is_tau else one.comparison.rmse) for one in found]
    known = [(one, x, y) for one, x, y in values if x and y is not None]
    if not known:
        return Markup("")
    costs = [x for _, x, _ in known]
    log = max(costs) / min(costs) > LOG_FROM
    ends = [end for one, _, _ in known if is_tau for end in one.comparison.tau_interval or ()]
    low, high = markup.around([*(y for _, _, y in known), *ends, *([] if is_tau else [0.0])])
    low, high = (max(low, -1.0), min(high, 1.0)) if is_tau else (0.0, high)
    across = markup.around_on_log(costs) if log else (0.0, markup.around([0.0, *costs])[1])
    on = markup.frame(across, (low, high if high > low else low + 1), log_x=log)
    marks = []
    for one, x, y in known:
        told = (
            f"{one.strategy.name}: {labels.y} {number(y)}, {x:,.4g} {labels.x}, over {one.comparison.checkpoints:,} checkpoints"
        )
        reach = one.comparison.tau_interval if is_tau else None
        bars = [markup.upright(on.x(x), on.y(reach[0]), on.y(reach[1]))] if reach else []
        marks.append(markup.titled(told, *bars, markup.marker(one.look[0], (on.x(x), on.y(y)), 5), class_=one.look[1]))
    return markup.chart(on, labels, *marks)


def change_chart(movement: Movement) -> Markup:
    """How many queries changed by how much; those that did not change are told in words. Nothing where none did."""
    changes = [float(change) for change in movement.changes if change]
    if not changes:
        return Markup("")
    width = markup.nice_step(2 * max(map(abs, changes)) / BINS)
    bins: dict[int, int] = {}
    for change in changes:  # bins end at zero, so that none holds gains and losses
        place = math.ceil(change / width - 1e-9) - 1 if change > 0 else math.floor(change / width + 1e-9)
        bins[place] = bins.get(place, 0) + 1
    reach = max(max(bins) + 1, -min(bins)) * width
    on = markup.frame((-reach, reach), (0, max(bins.values()) * 1.08))
    bars = [_bar(on, (place * width, (place + 1) * width), how_many) for place, how_many in sorted(bins.items())]
    zero = el("line", x1=on.x(0), x2=on.x(0), y1=markup.TOP, y2=on.bottom, class_="axis")
    labels = markup.Labels(title="Change per query", x=f"change of {movement.metric}", y="queries")
    return markup.chart(on, labels, *bars, zero)


def _bar(on: markup.Frame, ends: tuple[float, float], how_many: int) -> Markup:
    left, right = (on.x(end) for end in ends)
    gap = BAR_GAP * (right - left) / 2
    top = on.y(how_many)
    d = f"M{left + gap:.1f} {on.bottom:.1f}V{top:.1f}H{right - gap:.1f}V{on.bottom:.1f}Z"
    told = f"{count(how_many, 'query')}: {signed(ends[0], 3)} to {signed(ends[1], 3)}"
    return markup.titled(told, el("path", d=d), class_="gain" if ends[1] > 0 else "loss")
