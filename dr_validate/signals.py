"""SIGTERM and SIGINT as a wish to stop, not as a blow."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger(__name__)


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


def until_stopped(stop: threading.Event, grace_s: float) -> Callable[[], bool]:
    """A function that is true until `grace_s` after it first found `stop` set."""
    end = float("inf")

    def may_go_on() -> bool:
        nonlocal end
        if stop.is_set():
            end = min(end, time.monotonic() + grace_s)
        return time.monotonic() < end

    return may_go_on
