"""What a process says: one line per event on standard error, tables and answers on standard output.

Nothing here fails: a reader that has gone away, or cannot show a character, never decides how a run ends.
"""

import contextlib
import logging
import os
import sys
from typing import Any, TextIO

LOG_WIDTH = 110  # characters, where standard output is not a terminal
_IN_ASCII = str.maketrans("█━─┃│┡╇┩┏┳┓└┴┘├┼┤…", "#=-||++++++++++++.")


def set_up_logging() -> None:
    """Our own events from INFO on, those of libraries from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    logging.getLogger("dr_validate").setLevel(logging.INFO)


def new_console(log_width: int = LOG_WIDTH) -> Any:
    """A rich console on standard output, wide enough in a log too; brackets and colons in what it prints are text."""
    from rich.console import Console

    stream = standard_output()
    width = None if stream.isatty() else log_width
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def standard_output() -> Any:
    """Standard output as a `Stream`; what is written is dropped where there is none."""
    return sys.stdout if isinstance(sys.stdout, Stream) else Stream(sys.stdout)


def say_error(message: str) -> None:
    """The one message of a run that ends, on standard error."""
    Stream(sys.stderr).write(f"{message}\n")


class Stream:
    """A text stream that replaces what it cannot encode, and drops what nobody reads any more."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._write(text)
        except (OSError, ValueError):  # the reader is gone, or the stream is closed
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write(self, text: str) -> int:
        if self._stream is None:
            return len(text)
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            return self._stream.write(text.translate(_IN_ASCII).encode(encoding, "replace").decode(encoding))

    def _drop(self) -> None:
        """What is buffered still goes somewhere when the process ends."""
        stream, self._stream = self._stream, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            assert stream is not None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
