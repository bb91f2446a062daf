"""Checkpoints that had failed for good before this start: said, or tried again."""

import logging

from dr_validate.ledger import Ledger

log = logging.getLogger(__name__)


def retry_or_name(ledger: Ledger, specs: set[str], *, retry: bool) -> None:
    """Forget those failures if `retry`; else name them, and the way to have them tried again."""
    for spec in sorted(specs):
        if "failed" not in ledger.settled(spec).values():
            continue  # states read every Report
        failed = [state for state in ledger.states(spec) if state.state == "failed"]
        names = ", ".join(state.name for state in failed)
        if retry:
            for state in failed:
                ledger.retry(state.digest, spec)
            log.info("tried again, though failed for good before: %s", names)
        else:
            log.warning("failed for good before, and not tried again: %s (watch.retry_failed=true tries them)", names)
