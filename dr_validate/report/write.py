"""`task=report`: from the ledger of a state_dir to one page to look at. Reads only; starts nothing."""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from dr_validate.config import ReportSettings
from dr_validate.errors import SetupError
from dr_validate.files import write_atomically
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.revised import EstimateDetails
from dr_validate.report.gather import Section, gather
from dr_validate.report.page import NOTHING_YET, Part, page
from dr_validate.report.queries import document_texts, movement, query_texts, top_of
from dr_validate.report.trainings import Overlay, overlays
from dr_validate.report.verdict import verdict

PAGE = "report.html"
COLUMNS = (
    *("dataset", "training_run", "strategy", "spec", "checkpoint", "step", "metric"),
    *("value", "low", "high", "naive", "as_reported"),  # the last one only where the value has moved since
)
DIFFERENCES = (
    *("dataset", "strategy", "spec", "metric", "step", "training_run", "checkpoint", "value"),
    *("first_training_run", "first_checkpoint", "first_value", "difference", "low", "high"),
)
log = logging.getLogger(__name__)


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
        write_atomically(path.with_suffix(".differences.csv"), differences(shared))
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


def numbers(sections: Sequence[Section]) -> str:
    """A line for each point of the curves: values as now known, with their intervals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for section in sections:
        for strategy in section.strategies:
            for report in strategy.done:
                for metric, known in report.metrics.items():
                    place = (section.dataset, section.run, strategy.name, strategy.spec, report.checkpoint.label)
                    first = EstimateDetails.of(report).as_reported.get(metric)
                    values = (known.value, known.low, known.high, known.naive, first)
                    writer.writerow([*place, report.checkpoint.step, metric, *values])
    return text.getvalue()


def differences(shared: Sequence[Sequence[Overlay]]) -> str:
    """A line for each difference of two trainings that is drawn; the head alone where there are none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(DIFFERENCES)
    for overlay in (overlay for same in shared for overlay in same):
        first = next(iter(overlay.trainings))
        for one in overlay.differences:
            sides = ((one.training, one.report), (first, one.first))
            which = [cell for run, r in sides for cell in (run, r.checkpoint.label, r.metrics[one.metric].value)]
            place = (overlay.dataset, overlay.strategy, overlay.spec, one.metric, one.step)
            writer.writerow([*place, *which, one.value, *(one.interval or ("", ""))])
    return text.getvalue()


def _part(section: Section, state_dir: Path) -> Part:
    moved = movement(section, state_dir)
    wanted = {moved.query_ids[place] for sign in (1, -1) for place in moved.largest(sign)} if moved else set()
    told = verdict(section, moved)
    if moved is None or not wanted:
        return Part(section=section, verdict=told, movement=moved)
    top = top_of(moved, wanted, state_dir)
    documents = {one.document for found in top for first in found.values() for one in first}
    return Part(
        section=section,
        verdict=told,
        movement=moved,
        texts=query_texts(wanted, state_dir, moved.strategy),
        top=top,
        documents=document_texts(documents, moved.strategy, state_dir),
    )
