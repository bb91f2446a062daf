"""`task=report`: from the ledger of a state_dir to one page to look at. Reads only; starts nothing."""

import logging
from pathlib import Path

from dr_validate.config import ReportSettings
from dr_validate.errors import SetupError
from dr_validate.files import write_atomically
from dr_validate.ledger.ledger import Ledger
from dr_validate.report.gather import Section, gather
from dr_validate.report.page import NOTHING_YET, Part, page
from dr_validate.report.queries import document_texts, movement, query_texts, top_of
from dr_validate.report.verdict import verdict

PAGE = "report.html"
log = logging.getLogger(__name__)


def write_report(state_dir: Path, settings: ReportSettings) -> Path:
    """Write the page, log the verdicts and where it is; returns the path.

    Raises SetupError where there is no ledger, and for a path that cannot be written.
    """
    with Ledger(state_dir / "ledger.db", read_only=True) as ledger:
        sections = gather(ledger)
    parts = [_part(section, state_dir) for section in sections]
    path = settings.out or state_dir / PAGE
    try:
        write_atomically(path, page(parts, str(state_dir)))
    except OSError as error:
        raise SetupError(
            f"report.out: {path} cannot be written ({error.strerror}); set report.out to a file elsewhere"
        ) from error
    for part in parts:
        log.info("%s: %s", part.section.title, part.verdict.text)
    if not parts:
        log.info("%s", NOTHING_YET)
    log.info("report: %s", path)
    return path


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
