"""Logging of a process: one line per event worth a line, on standard error."""

import logging
import sys


def set_up_logging() -> None:
    """Our own events from INFO on, those of libraries from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    logging.getLogger("dr_validate").setLevel(logging.INFO)
