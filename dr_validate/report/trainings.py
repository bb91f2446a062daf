"""The trainings of a state_dir over one another: their curves, and how far they are apart at the same steps, query by query."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dr_validate.ledger.per_query import paired_difference
from dr_validate.report import markup
from dr_validate.report.charts import COLOURS, MANY_POINTS, SHAPES, unit_range
from dr_validate.report.gather import Section
from dr_validate.report.markup import EMPTY, Column, Markup, el, join, numeric, table, text
from dr_validate.report.words import count, interval, interval_name, number, signed, with_interval
from dr_validate.values import Z_95, Report

WORDS = {1: "higher", -1: "lower", 0: "not told apart"}  # by the sign of a difference
UNNAMED = "the training without a name"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDifference:
    """`report` minus `first` (of two trainings, at one step) in `metric`, as both are known now.

    `interval`: 95%, for other queries like these; None where it is not known.
    """

    training: str  # of `report`
    metric: str
    report: Report
    first: Report
    value: float
    interval: tuple[float, float] | None

    @property
    def step(self) -> int:
        return self.report.checkpoint.step

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves 0 out, else 0."""
        low, high = self.interval or (0.0, 0.0)
        return (low > 0) - (high < 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """Trainings under one spec: the same queries, the same documents. `trainings`: done Reports by name, by ascending step; the
    first is what the others are held against."""

    dataset: str
    strategy: str
    spec: str
    metrics: tuple[str, ...]
    trainings: Mapping[str, Sequence[Report]]
    differences: Sequence[TrainingDifference]

    def of(self, metric: str) -> list[TrainingDifference]:
        """The differences in one metric."""
        return [one for one in self.differences if one.metric == metric]

    @property
    def sentences(self) -> list[str]:
        """How each training does against the first, by the first metric."""
        first, *others = self.trainings
        mine = {other: [one for one in self.of(self.metrics[0]) if one.training == other] for other in others}
        return [_sentence(other, first, self.metrics[0], mine[other]) for other in others]


def overlays(sections: Sequence[Section], state_dir: Path) -> list[list[Overlay]]:
    """For each collection with several trainings an overlay for each strategy that they share, that with most steps in common
    first, the full corpus before a sample. `sections` as `gather` gives them."""
    by_full_spec: dict[str, list[Section]] = {}
    for section in sections:
        by_full_spec.setdefault(section.full_spec, []).append(section)
    found = []
    for same in by_full_spec.values():
        done = {section.run or UNNAMED: {one.spec: one.done for one in section.strategies if one.done} for section in same}
        names = {one.spec: one.name for section in reversed(same) for one in section.strategies}
        made = []
        for spec in names:
            trainings = {run: by_spec[spec] for run, by_spec in done.items() if spec in by_spec}
            if len(trainings) > 1:
                made.append(_overlay(same[0], (spec, names[spec]), trainings, state_dir))
        if made:
            found.append(sorted(made, key=lambda overlay: (-len(overlay.differences), overlay.spec != same[0].full_spec)))
    return found


def _overlay(
    section: Section, strategy: tuple[str, str], trainings: Mapping[str, Sequence[Report]], state_dir: Path
) -> Overlay:
    metrics = tuple(name for name in section.metrics if all(name in r.metrics for done in trainings.values() for r in done))
    first, *others = ({report.checkpoint.step: report for report in done} for done in trainings.values())
    differences = [
        made
        for metric in metrics
        for training, theirs in zip(list(trainings)[1:], others, strict=True)
        for step, report in theirs.items()
        if step in first and (made := _difference(training, report, first[step], metric, state_dir))
    ]
    spec, name = strategy
    return Overlay(
        dataset=section.dataset, strategy=name, spec=spec, metrics=metrics, trainings=trainings, differences=differences
    )


def _difference(training: str, report: Report, first: Report, metric: str, state_dir: Path) -> TrainingDifference | None:
    """None of upper bounds, which say nothing of a difference."""
    if report.metrics[metric].is_bound or first.metrics[metric].is_bound:
        return None
    value = report.metrics[metric].value - first.metrics[metric].value
    try:
        found = paired_difference(state_dir, report, first, metric)
    except OSError as error:
        log.warning("%s; the page compares the trainings without it", error)
        found = None
    ends = None if found is None else (value - Z_95 * found[1], value + Z_95 * found[1])
    return TrainingDifference(training=training, metric=metric, report=report, first=first, value=value, interval=ends)


def _sentence(training: str, first: str, metric: str, found: Sequence[TrainingDifference]) -> str:
    if not found:
        return f"{training} and {first} have no step in common whose {metric} is known on both sides."
    begin = f"{training} against {first}, {metric}: of {count(len(found), 'step')} in common"
    signs = [one.sign for one in found]
    counts = [f"{signs.count(sign):,} {word}" for sign, word in WORDS.items() if sign in signs]
    last = found[-1]
    reach = f" {interval(*last.interval, 3)}" if last.interval else ", with no interval known"
    return f"{begin} {', '.join(counts)}; at the last, step {last.step:,}, {signed(last.value, 3)}{reach}."


def overlay_charts(overlay: Overlay) -> Markup:
    """Each metric over the steps and its difference beside it, under one legend."""
    rows = [
        markup.side_by_side(_steps_chart(overlay, metric), _differences_chart(overlay, metric)) for metric in overlay.metrics
    ]
    entries = [
        (name, join(markup.line([(1, 7), (27, 7)], f"line {_class(place)}"), _mark(place, (14, 7))))
        for place, name in enumerate(overlay.trainings)
    ]
    every = [report for done in overlay.trainings.values() for report in done]
    if any(report.metrics[name].has_interval for report in every for name in overlay.metrics):
        entries.append((interval_name(every), markup.band([(1, 2), (27, 2)], [(1, 12), (27, 12)], "band")))
    return join(markup.legend(entries), *rows)


def _class(place: int) -> str:
    return f"series-{place % COLOURS}"


def _mark(place: int, at: markup.Point, size: float = 3.5) -> Markup:
    return el("g", markup.marker(SHAPES[place % len(SHAPES)], at, size), class_=f"{_class(place)} point")


def _steps_chart(overlay: Overlay, metric: str) -> Markup:
    every = [report for done in overlay.trainings.values() for report in done]
    estimates = [report.metrics[metric] for report in every]
    ends = [end for estimate in estimates if estimate.has_interval for end in (estimate.low, estimate.high)]
    on = markup.frame(
        markup.around([report.checkpoint.step for report in every], least=10),
        unit_range([*(estimate.value for estimate in estimates), *ends]),
    )
    marks: list[Markup] = []
    for place, (name, done) in enumerate(overlay.trainings.items()):
        known = [(on.x(report.checkpoint.step), report.metrics[metric]) for report in done]
        sure = [(x, estimate) for x, estimate in known if estimate.has_interval]
        upper, lower = ([(x, on.y(getattr(estimate, end))) for x, estimate in sure] for end in ("high", "low"))
        marks += [
            markup.band(upper, lower, f"band {_class(place)}"),
            markup.line([(x, on.y(estimate.value)) for x, estimate in known], f"line {_class(place)}"),
        ]
        for report, (x, estimate) in zip(done, known, strict=True):
            told = f"{name}, step {report.checkpoint.step:,}: {metric} {with_interval(estimate, 4)}"
            marks.append(_point(told, place, (x, on.y(estimate.value)), len(done)))
    return markup.chart(on, markup.Labels(title=metric, x="training step", y=metric), *marks)


def _point(told: str, place: int, at: markup.Point, how_many: int, *bars: Markup) -> Markup:
    size = 3.5 if how_many <= MANY_POINTS else 2.2
    return markup.titled(told, *bars, markup.marker(SHAPES[place % len(SHAPES)], at, size), class_=f"{_class(place)} point")


def _differences_chart(overlay: Overlay, metric: str) -> Markup:
    found = overlay.of(metric)
    if not found:
        return Markup("")
    first, places = next(iter(overlay.trainings)), {name: place for place, name in enumerate(overlay.trainings)}
    on = markup.frame(
        markup.around(
            [report.checkpoint.step for done in overlay.trainings.values() for report in done], least=10
        ),  # as beside it
        markup.around([0.0, *(end for one in found for end in (one.value, *(one.interval or ())))], least=0.01),
    )
    left, right = markup.LEFT, markup.WIDTH - markup.RIGHT
    marks = [markup.line([(left, on.y(0.0)), (right, on.y(0.0))], "diagonal")]
    for one in found:
        x = on.x(one.step)
        bars = [markup.upright(x, on.y(one.interval[0]), on.y(one.interval[1]))] if one.interval else []
        reach = f" {interval(*one.interval)}" if one.interval else ""
        told = f"{one.training} minus {first}, step {one.step:,}: {signed(one.value)}{reach}"
        marks.append(_point(told, places[one.training], (x, on.y(one.value)), len(found), *bars))
    title = f"{metric}, difference from {first}"
    return markup.chart(on, markup.Labels(title=title, x="training step", y="difference"), *marks)


def differences_table(overlay: Overlay, metric: str) -> Markup:
    """A row for each step and training; nothing where no step is in common."""
    if not (found := overlay.of(metric)):
        return Markup("")
    first, *others = overlay.trainings
    values = [Column(name=name, group=metric) for name in (others[0] if len(others) == 1 else "value", first)]
    columns = [
        *(Column(name="step"), Column(name="training", number=False), *values, Column(name="difference", group=metric)),
        *(Column(name="95% interval", group=metric), Column(name="", number=False)),
    ]
    rows = [
        [
            numeric(one.step, f"{one.step:,}"),
            text(one.training if len(others) > 1 else None, "name"),
            numeric(one.report.metrics[metric].value, number(one.report.metrics[metric].value)),
            numeric(one.first.metrics[metric].value, number(one.first.metrics[metric].value)),
            numeric(one.value, signed(one.value), "value"),
            numeric(one.interval[0], interval(*one.interval)) if one.interval else EMPTY,
            text(WORDS[one.sign]) if one.interval else EMPTY,
        ]
        for one in found
    ]
    return table(columns, rows, f"Differences from {first}, {overlay.strategy}")
