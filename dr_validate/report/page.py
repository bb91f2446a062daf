"""`task=report`: from the ledger of a state_dir to one page to look at, a file that needs no server, network or script.

Reads only; starts nothing.
"""

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dr_validate.config import ReportSettings
from dr_validate.errors import SetupError
from dr_validate.files import write_atomically
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import EstimateDetails
from dr_validate.report.charts import change_chart, cost_charts, scatter_charts, steps_charts
from dr_validate.report.gather import Movement, Section, Strategy, Top, document_texts, gather, kept_tops, movement, query_texts
from dr_validate.report.markup import Markup, el, join, side_by_side
from dr_validate.report.tables import (
    checkpoints_table,
    collections_table,
    making,
    other_metrics_table,
    queries_table,
    strategies_table,
)
from dr_validate.report.trainings import Overlay, differences_table, overlay_charts, overlays
from dr_validate.report.verdict import Verdict, change_in_words, verdict
from dr_validate.report.words import count, listed, with_interval

log = logging.getLogger(__name__)
TITLE = "Validation of checkpoints"
NOTHING_YET = "Nothing has been validated yet."
MEANINGS = (
    "compared: checkpoints with a full-corpus value; bias: mean of sampled minus full; RMSE: its root mean square; "
    "tau: Kendall\u2019s tau-b, its 95% interval by Fisher\u2019s z, from five checkpoints on; regret: what the full corpus "
    "loses by the choice that the sample makes; covered: 95% intervals that hold the full-corpus value."
)
CALIBRATED = (
    "Sampled values are as the latest report sees them: corrected with all checkpoints and with what full-corpus baselines "
    "of others show, never with the checkpoint\u2019s own baseline."
)
COMPARED = (
    "Trainings: the same queries and documents on both sides; a difference is of values as they are known now, its 95% "
    "interval, each for itself, where it would be for other queries like these (on a sample too wide in all metrics but the "
    "first, as if the errors of the two had nothing in common)."
)
COLUMNS = (
    "95% interval: where the full-corpus value of these queries lies; any queries: the same for other queries like these; "
    "uncorrected (naive in files and in W&B): as if the sample were the corpus; \u2264: an upper bound; outranking: sampled "
    "documents above a relevant one; lag: from the checkpoint to its report. Of a mean over collections there is only the one "
    "for any queries."
)
HERE = Path(__file__).parent
PAGE = "report.html"
NUMBERS = (
    *("dataset", "training_run", "strategy", "spec", "checkpoint", "step", "metric"),
    *("value", "low", "high", "naive", "as_reported"),  # the last one only where the value has moved since
)
DIFFERENCES = (
    *("dataset", "strategy", "spec", "metric", "step", "training_run", "checkpoint", "value"),
    *("first_training_run", "first_checkpoint", "first_value", "difference", "low", "high"),
)


def write_report(state_dir: Path, settings: ReportSettings, *, refresh: bool = False) -> Path:
    """Write the page, and the numbers that it draws beside it (`.csv`; `.differences.csv` of trainings); log the verdicts and
    where it is; returns the path.

    `refresh`: browsers load it again every `settings.every_s`. Raises SetupError where there is no ledger, and for a path that
    cannot be written.
    """
    with Ledger(state_dir / "ledger.db", read_only=True) as ledger:
        sections = gather(ledger)
    parts, shared = [_part(section, state_dir) for section in sections], overlays(sections, state_dir)
    path = settings.out or state_dir / PAGE
    try:
        write_atomically(path.with_suffix(".csv"), numbers(sections))
        write_atomically(path.with_suffix(".differences.csv"), differences_csv(shared))
        write_atomically(path, page(parts, str(state_dir), settings.every_s if refresh else 0, shared))
    except OSError as error:
        raise SetupError(
            f"report.out: {path} cannot be written ({error.strerror}); set report.out to a file elsewhere"
        ) from error
    for part in parts:
        log.info("%s: %s", part.section.title, part.verdict.text)
    for overlay in (same[0] for same in shared):
        log.info("%s, %s: %s", overlay.dataset, overlay.strategy, " ".join(overlay.sentences))
    if not parts:
        log.info("%s", NOTHING_YET)
    log.info("report: %s", path)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePart:
    """A section with what was found out about it; of the queries that moved most `top`, what both checkpoints found first.

    `texts` by id of a query, `documents` by id of a document, where they are known.
    """

    section: Section
    verdict: Verdict
    movement: Movement | None
    texts: Mapping[str, str] = field(default_factory=dict)
    top: tuple[Top, Top] = ({}, {})
    documents: Mapping[str, str] = field(default_factory=dict)


def page(parts: Sequence[PagePart], state_dir: str, every_s: float = 0, shared: Sequence[Sequence[Overlay]] = ()) -> str:
    """One self-contained HTML file that is XML, too: no server, no network, no script needed to read it.

    The same ledger gives the same page, byte for byte. `every_s`: after so many seconds a browser loads it again; 0: never.
    `shared`: what `overlays` gives.
    """
    ends = [report.at for part in parts for strategy in part.section.strategies for report in strategy.reports]
    latest = f", as of {max(ends)}" if ends else ""
    body = [
        el("header", el("h1", TITLE), el("p", f"{state_dir}{latest}", class_="facts")),
        _contents(parts, shared),
        *(_trainings(same, number) for number, same in enumerate(shared, 1)),
        *(_section(part, number, [one.section for one in parts]) for number, part in enumerate(parts, 1)),
        _notes(parts, shared) if parts else _nothing_yet(state_dir),
    ]
    head = [
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", http_equiv="refresh", content=f"{every_s:g}") if every_s else None,
        el("title", TITLE),
        el("style", Markup((HERE / "page.css").read_text(encoding="utf-8"))),
    ]
    script = el("script", Markup((HERE / "page.js").read_text(encoding="utf-8")))
    whole = el("html", el("head", *head), el("body", el("main", *body), script), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def _nothing_yet(state_dir: str) -> Markup:
    commands = (
        f"python -m dr_validate source.path=FOLDER dataset=beir dataset.path=COLLECTION sampler=random state_dir={state_dir}\n"
        f"python -m dr_validate task=report state_dir={state_dir}"
    )
    told = "Checkpoints appear here once they are in the ledger of this state_dir. Validate some, then write this page again:"
    return el("section", el("h2", NOTHING_YET), el("p", told), el("pre", commands))


def _contents(parts: Sequence[PagePart], shared: Sequence[Sequence[Overlay]]) -> Markup | None:
    if len(parts) < 2:
        return None
    rows = [
        el("li", el("a", _title(same), href=f"#trainings-{number}"), f": {' and '.join(same[0].trainings)}")
        for number, same in enumerate(shared, 1)
    ]
    rows += [
        el("li", el("a", part.section.title, href=f"#part-{number}"), _in_short(part.section))
        for number, part in enumerate(parts, 1)
    ]
    return el("nav", el("ul", *rows), aria_label="Contents")


def _in_short(section: Section) -> str:
    best, metric = section.best, section.metric
    if best is None or metric is None:
        return ": nothing yet"
    return f": step {best.checkpoint.step:,}, {metric} {with_interval(best.metrics[metric])}"


def _title(shared: Sequence[Overlay]) -> str:
    return f"{shared[0].dataset}, {len(shared[0].trainings)} trainings"


def _trainings(shared: Sequence[Overlay], number: int) -> Markup:
    """The strategy with most steps in common at once, the others on demand."""
    drawn = [
        join(
            el("ul", *(el("li", sentence) for sentence in overlay.sentences), class_="verdict"),
            overlay_charts(overlay),
            *_differences(overlay),
        )
        for overlay in shared
    ]
    others = [_folded(overlay.strategy, content) for overlay, content in zip(shared[1:], drawn[1:], strict=True)]
    facts = el("p", f"{shared[0].strategy}, the same queries at the same steps", class_="facts")
    return el("section", el("h2", _title(shared)), facts, drawn[0], *others, id=f"trainings-{number}")


def _differences(overlay: Overlay) -> list[Markup]:
    """In the first metric at once, in the others on demand."""
    first, *others = (differences_table(overlay, metric) for metric in overlay.metrics or ("",))
    return [first, _folded(f"Differences in {listed(overlay.metrics[1:])}", *others)] if any(others) else [first]


def _notes(parts: Sequence[PagePart], shared: Sequence[Sequence[Overlay]]) -> Markup:
    """What words in the tables mean, once for all of them."""
    sampled = [(part.section, strategy) for part in parts for strategy in part.section.sampled]
    compared = any(section.metric and section.comparison(strategy, section.metric) for section, strategy in sampled)
    told = any(EstimateDetails.of(report).baselines for _, strategy in sampled for report in strategy.done)
    notes = [MEANINGS] * compared + [CALIBRATED] * told + [COMPARED] * bool(shared) + [COLUMNS]
    return el("footer", *(el("p", note, class_="note") for note in notes))


def _section(part: PagePart, number: int, sections: Sequence[Section]) -> Markup:
    section = part.section
    sizes = ((section.documents, "document"), (section.queries, "query"))
    facts = [count(how_many, noun) for how_many, noun in sizes if how_many]
    facts += [f"{left_out:,} of them without a relevant document and left out"] if (left_out := _left_out(section)) else []
    facts += [f"training run {section.run}"] if section.run else []
    return el(
        "section",
        el("h2", section.title),
        el("p", ", ".join(facts), class_="facts"),
        el("p", part.verdict.headline, class_="headline"),
        el("ul", *(el("li", sentence) for sentence in part.verdict.sentences), class_="verdict"),
        _each_strategy(
            "Over the training", section, section.strategies if not section.sampled else section.sampled, steps_charts
        ),
        _by_collection(section, sections),
        _each_strategy("Sampled against full corpus", section, section.sampled, scatter_charts),
        _strategies(section),
        _queries(part),
        _checkpoints(section),
        making(section),
        id=f"part-{number}",
    )


def _left_out(section: Section) -> int:
    """Queries that count for nothing in the first metric, by what the Reports say."""
    said = [report.notes.get("queries_without_relevant_documents") for one in section.strategies for report in one.done]
    return max((number for number in said if isinstance(number, int)), default=0)


def _by_collection(section: Section, sections: Sequence[Section]) -> Markup | None:
    """Of a mean the values that it is the mean of."""
    shown = next((strategy for strategy in section.strategies if strategy.description.get("members")), None)
    if shown is None:
        return None
    strategies = {one.spec: one for other in sections if other.run == section.run for one in other.strategies}
    return join(el("h3", "By collection"), collections_table(section, shown, strategies))


def _each_strategy(
    heading: str, section: Section, strategies: Sequence[Strategy], draw: Callable[[Section, Strategy], Markup]
) -> Markup | None:
    """The first strategy at once, the others on demand."""
    drawn = [(strategy, figures) for strategy in strategies if (figures := draw(section, strategy))]
    if not drawn:
        return None
    others = [_folded(strategy.name, figures) for strategy, figures in drawn[1:]]
    return join(el("h3", heading), drawn[0][1], *others)


def _folded(summary: str, *content: Markup) -> Markup:
    return el("details", el("summary", summary), *content)


def _strategies(section: Section) -> Markup | None:
    if not any(strategy.done for strategy in section.sampled):
        return None
    return join(el("h3", "Error and cost of the strategies"), cost_charts(section), strategies_table(section))


def _queries(part: PagePart) -> Markup | None:
    moved = part.movement
    if moved is None:
        return None
    before, after = moved.before.checkpoint.step, moved.after.checkpoint.step
    tables = [queries_table(moved, sign, part.texts, part.top, part.documents) for sign in (1, -1)]
    return join(
        el("h3", f"Queries that moved from step {before:,} to {after:,}"),
        el("p", f"{moved.metric}, {moved.strategy.name}. {change_in_words(moved)}"),
        side_by_side(change_chart(moved)),
        el("div", *tables, class_="moved"),
    )


def _checkpoints(section: Section) -> Markup | None:
    shown = [strategy for strategy in section.strategies if strategy.reports or strategy.unfinished]
    if not shown:
        return None
    rest = other_metrics_table(section, shown[0])
    others = [
        _folded(strategy.name, checkpoints_table(section, strategy), other_metrics_table(section, strategy))
        for strategy in shown[1:]
    ]
    return join(
        el("h3", "All checkpoints"),
        checkpoints_table(section, shown[0]),
        _folded(listed(section.metrics[1:]), rest) if rest else None,
        *others,
    )


def numbers(sections: Sequence[Section]) -> str:
    """A line for each point of the curves: values as now known, with their intervals."""
    rows: list[Sequence[object]] = [NUMBERS]
    for section in sections:
        for strategy in section.strategies:
            for report in strategy.done:
                for metric, known in report.metrics.items():
                    place = (section.dataset, section.run, strategy.name, strategy.spec, report.checkpoint.label)
                    first = EstimateDetails.of(report).as_reported.get(metric)
                    values = (known.value, known.low, known.high, known.naive, first)
                    rows.append((*place, report.checkpoint.step, metric, *values))
    return _csv(rows)


def differences_csv(shared: Sequence[Sequence[Overlay]]) -> str:
    """A line for each difference of two trainings that is drawn; the head alone where there are none."""
    rows: list[Sequence[object]] = [DIFFERENCES]
    for overlay in (overlay for same in shared for overlay in same):
        first = next(iter(overlay.trainings))
        for one in overlay.differences:
            sides = ((one.training, one.report), (first, one.first))
            which = [cell for run, r in sides for cell in (run, r.checkpoint.label, r.metrics[one.metric].value)]
            place = (overlay.dataset, overlay.strategy, overlay.spec, one.metric, one.step)
            rows.append((*place, *which, one.value, *(one.interval or ("", ""))))
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _part(section: Section, state_dir: Path) -> PagePart:
    moved = movement(section, state_dir)
    wanted = {moved.query_ids[place] for sign in (1, -1) for place in moved.largest(sign)} if moved else set()
    told = verdict(section, moved)
    if moved is None or not wanted:
        return PagePart(section=section, verdict=told, movement=moved)
    top = kept_tops(moved, wanted, state_dir)
    documents = {one.document for found in top for first in found.values() for one in first}
    return PagePart(
        section=section,
        verdict=told,
        movement=moved,
        texts=query_texts(wanted, state_dir, moved.strategy),
        top=top,
        documents=document_texts(documents, moved.strategy, state_dir),
    )
