"""What a process says, how it is stopped, how it ended, and the pool of processes that it may hand work to.

It says one line per event on standard error, and tables on standard output; how far long work has come is a bar on a terminal,
and a line now and then in a log. Nothing that is said here fails: a reader that has gone away, or cannot show a character,
never decides how a run ends.
"""

import contextlib
import ctypes
import gc
import logging
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Returned = TypeVar("Returned")
MOST_PROCESSES = 16  # one reads and hands out what these work on
PR_SET_PDEATHSIG = 1  # of Linux
SETUP_IS_WRONG = 2  # exit code: the configuration or the environment has to be changed first
TIME_IS_UP = 3  # exit code: watch.max_hours is over, and the next start goes on
LOG_WIDTH = 110  # characters, where standard output is not a terminal
LINE_EVERY_S = 30.0  # of long work, where there is no bar
_IN_ASCII = str.maketrans("█━─┃│┡╇┩┏┳┓└┴┘├┼┤…\u2212\u2013\u00d7\u00b7\u2019", "#=-||++++++++++++.--x.'") | {0xB1: "+/-"}
# Control characters, the separators of lines and of directions of Unicode, halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OWN = "\n\t"  # what our own messages are laid out with
LOGIN = re.compile(r"(?<=://)[^\s/?#]*@")  # user:password@ of an address
_SECRET = re.compile(r"(?i)([?&](?:sig|[\w.-]*(?:key|token|secret|password|signature|credential)[\w.-]*)=)[^\s&#'\")]+")


def printable(text: str, keep: str = "") -> str:
    """Escape what could forge a line or steer a terminal, except characters in `keep`, and hide logins and keys in URLs."""

    def escaped(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else match[0].encode("unicode_escape", "surrogatepass").decode()

    return _SECRET.sub(r"\1***", LOGIN.sub("***@", _UNPRINTABLE.sub(escaped, text)))


class OneLine(logging.Formatter):
    """One line for each event, whatever names and errors hold; a traceback follows, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return printable(super().formatException(ei), keep="\n").replace("\n", "\n  ")


def set_up_logging() -> None:
    """Our own events from INFO on, those of libraries from WARNING on."""
    handler = logging.StreamHandler(Stream(sys.stderr))
    handler.setFormatter(OneLine("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("dr_validate").setLevel(logging.INFO)


def new_console(log_width: int = LOG_WIDTH) -> Any:
    """A rich console on standard output, wide enough in a log too; brackets and colons in what it prints are text."""
    from rich.console import Console
    from rich.segment import Segment

    class Printable(Console):
        def render(self, *args: Any, **options: Any) -> Any:
            for part in super().render(*args, **options):
                yield part if part.control else Segment(printable(part.text, keep=_OWN), part.style)

    stream = standard_output()
    width = None if stream.isatty() else log_width
    return Printable(file=stream, width=width, markup=False, emoji=False, highlight=False)


def standard_output() -> Any:
    """Standard output as a `Stream`; what is written is dropped where there is none."""
    return sys.stdout if isinstance(sys.stdout, Stream) else Stream(sys.stdout)


def say_error(message: str) -> None:
    """The one message of a run that ends, on standard error."""
    Stream(sys.stderr).write(f"{printable(message, keep=_OWN)}\n")


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
        encoding = self._stream.encoding or "ascii"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_IN_ASCII).encode(encoding, "replace").decode(encoding)
        return self._stream.write(text)

    def _drop(self) -> None:
        """What is buffered still goes somewhere when the process ends."""
        stream, self._stream = self._stream, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            assert stream is not None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`; a second one does what it always does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])
        log.info("%s: stopping; a second one ends at once", signal.Signals(number).name)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the thread that started it ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


@contextlib.contextmanager
def stopped_after(hours: float, stop: threading.Event, time_is_up: threading.Event) -> Iterator[None]:
    """Set `stop` and `time_is_up` after so many hours (0: never), unless the block has ended or `stop` is set by then."""

    def end() -> None:
        if not stop.is_set():
            log.info("watch.max_hours=%g is over: stopping; the next start goes on", hours)
            time_is_up.set()
            stop.set()

    timer = threading.Timer(hours * 3600, end)
    timer.daemon = True
    if hours:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def until_stopped(stop: threading.Event, grace_s: float) -> Callable[[], bool]:
    """A function that is true until `grace_s` after it first found `stop` set."""
    end = float("inf")

    def may_go_on() -> bool:
        nonlocal end
        if stop.is_set():
            end = min(end, time.monotonic() + grace_s)
        return time.monotonic() < end

    return may_go_on


def live_and_die_with_parent() -> None:
    """Be killed when the parent ends, however it does, and by no signal that is meant for it; and be the first to go where
    memory runs out: the training and the watcher live on."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the terminal signals the whole group; the watcher decides what it means
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        die_with_parent(signal.SIGKILL)
        with contextlib.suppress(OSError):  # /proc may be hidden, or read-only
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Nothing that is imported in the block is garbage, and looking for some takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def cores() -> int:
    """That this process may use, at most MOST_PROCESSES."""
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def in_processes(
    work: Callable[[Item], Returned], parts: Iterable[Item], count: int, begin: Callable[..., None] | None = None, *given: Any
) -> Iterator[Returned]:
    """`work` of each part, in order, done by `count` processes that first call `begin(*given)`; both are functions of modules.

    At most twice as many parts as processes are on their way. Raises BrokenProcessPool where one of them was ended.
    """
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")  # a fork would take the threads of this process for its own
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(begin, given)) as pool:
        waiting: deque[Future[Returned]] = deque()
        for part in parts:
            waiting.append(pool.submit(work, part))
            if len(waiting) >= 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _begin(begin: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    live_and_die_with_parent()
    if begin is not None:
        begin(*given)


def how_it_ended(code: int) -> str:
    """The exit code of a process in words."""
    if code >= 0:
        return f"ended with exit code {code}; its last words are in the log"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{hint}"


class ProgressBar:
    """Shows the work that runs now; `show(None)` says that there is no news."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._title = ""
        self._began = self._last_line = 0.0
        self._known: Mapping[str, Any] | None = None

    def begin(self, title: str) -> None:
        """Start on `title`; replaces what was shown."""
        self.end()
        self._title, self._known = printable(title), None
        self._began = self._last_line = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(f"{self._title}: loading", total=None)
            self._bar.start()

    def show(self, progress: Mapping[str, Any] | None) -> None:
        """`progress` holds phase, done and total (documents; 0 for a phase that counts none), as the worker sends them."""
        if not self._title:
            return
        self._known = progress or self._known
        if self._bar is not None:
            if progress is not None:
                phase, done, total = (progress[name] for name in ("phase", "done", "total"))
                self._bar.update(
                    self._task, description=printable(f"{self._title}: {phase}"), completed=done, total=total or None
                )
        elif time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            log.info("%s: %s", self._title, self._words())

    def _words(self) -> str:
        if self._known is None:
            return f"no documents yet after {self._last_line - self._began:.0f} s (a slow device takes long for the first ones)"
        phase, done, total = (self._known[name] for name in ("phase", "done", "total"))
        return f"{phase} {done:,} of {total:,} documents" if total else str(phase)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._title = None, ""
