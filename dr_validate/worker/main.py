"""The process that holds the device: `python -m dr_validate.worker.main`, started and steered by `watcher/worker_process`.

It speaks JSON lines on its standard streams. In: the configuration, then, one at a time, requests
`{"validate": checkpoint, "folder": ..., "collection": ..., "full": ..., "more": ..., "request": n}` (see `Suite.validate`) or
`{"rank": checkpoint, "folder": ..., "collection": ..., "full": ..., "keep": [...], "request": n}` (see `Suite.rank`), and while
one runs perhaps `{"interrupt": "preempted" | "stopped" | "timed_out", "request": n}`. Out: `{"ready": ...}`,
`{"progress": ...}`, then `{"report": ...}`, `{"ranked": {}}` or `{"error": {"kind": ..., "message": ...}}` for each request. A
crash of the device, the driver or a library ends this process and costs one attempt; the watcher lives on.
"""

import contextlib
import errno
import gc
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dr_validate.devices import is_out_of_memory
from dr_validate.errors import INTERRUPTS, KINDS, Interrupted, SetupError
from dr_validate.files import is_disk_full, is_read_only
from dr_validate.process import importing, live_and_die_with_parent, set_up_logging

PROGRESS_EVERY_S = 0.5
log = logging.getLogger(__name__)


def main() -> None:
    live_and_die_with_parent()
    channel = _Channel(os.fdopen(private_stdout(), "w", encoding="utf-8"))
    if not (line := sys.stdin.readline()):  # the watcher was killed before it had said what this is for
        return
    config = json.loads(line)
    set_up_logging()
    requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
    control = _WorkerControl(channel)
    threading.Thread(target=_read_requests, args=(requests, control), daemon=True).start()
    with errors_to(channel.send) as failed:
        suite = _open_suite(config)
        channel.send({"ready": suite.describe()})
    is_frozen = False  # gc.get_freeze_count() counts one by one, which takes longer than all else at the end of a checkpoint
    while not failed and (request := requests.get()) is not None:
        control.request = request["request"]
        with errors_to(channel.send):
            channel.send(_answer(suite, request, control))
        if not (is_frozen or request.get("more")):
            # All libraries are imported now, and no model is there. Looking through them took half a second of each checkpoint.
            gc.freeze()
            is_frozen = True
    if not failed:
        suite.close()
    channel.stream.close()


def _open_suite(config: Mapping[str, Any]) -> Any:
    with importing():
        suite = _build_suite(config)
    try:
        suite.open()
    except SetupError:
        suite.close()
        raise
    return suite


def _build_suite(config: Mapping[str, Any]) -> Any:
    """Raises SetupError for devices that are not there: said before minutes of BM25."""
    from dr_validate.config import build
    from dr_validate.worker.pipeline import Suite

    run = build(config)
    return Suite(run, run.engine.find_device(run.settings.device))


def _answer(suite: Any, request: Mapping[str, Any], control: "_WorkerControl") -> dict[str, Any]:
    from dr_validate.ledger.reports import report_to_json
    from dr_validate.values import Checkpoint

    control.check()
    verb = "rank" if "rank" in request else "validate"
    checkpoint, folder = Checkpoint(**request[verb]), Path(request["folder"])
    which = {name: request[name] for name in ("collection", "full")}
    if verb == "rank":
        suite.rank(checkpoint, folder, **which, keep=[tuple(job) for job in request["keep"]], control=control)
        return {"ranked": {}}
    return {"report": report_to_json(suite.validate(checkpoint, folder, **which, more=request["more"], control=control))}


@contextlib.contextmanager
def errors_to(send: Callable[[Mapping[str, Any]], None]) -> Iterator[list[str]]:
    """Turn whatever is raised into one `error` message; the list that it yields tells whether something was."""
    failed: list[str] = []
    try:
        yield failed
    except Exception as error:  # the border of the process: nothing may pass it untold
        kind = _kind(error)
        if kind == "unexpected":
            log.exception("the worker met an unexpected error")
        failed.append(kind)
        message = str(error) if kind != "unexpected" else f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError):
            message = (
                "no memory is left on this machine, or under its limit (ulimit -v, a cgroup): free some, or raise the limit"
            )
        if is_out_of_memory(error):
            message = f"no memory on the device: {error}; end what else runs there, or set device to another one"
        send({"error": {"kind": kind, "message": message, **(_where(error) if kind == "disk_full" else {})}})


def _where(error: Exception) -> dict[str, Any]:
    """What an OSError is made from, so that it can be made again in another process."""
    number, said, name = (getattr(error, key, None) for key in ("errno", "strerror", "filename"))
    return {"errno": number or errno.ENOSPC, "message": said or str(error), "filename": name}


def _kind(error: Exception) -> str:
    if is_disk_full(error):
        return "disk_full"
    if is_out_of_memory(error):  # as little as there is now, there is at the next try
        return "no_memory"
    if is_read_only(error):
        return "setup"
    return next((name for name, cls in KINDS.items() if isinstance(error, cls)), "unexpected")


def _read_requests(requests: queue.Queue[dict[str, Any] | None], control: "_WorkerControl") -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "interrupt" in message:
            control.interrupts[message["request"]] = INTERRUPTS[message["interrupt"]]
        else:
            requests.put(message)
    requests.put(None)


@dataclass(slots=True)
class _Channel:
    stream: IO[str]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: Mapping[str, Any]) -> None:
        """Tell the watcher. Where it is gone nothing is left to do, and nobody to tell: this process ends, as the kernel would
        have it end a moment later (`live_and_die_with_parent`)."""
        with self.lock:
            try:
                self.stream.write(json.dumps(message) + "\n")
                self.stream.flush()
            except BrokenPipeError:
                os._exit(1)


class _WorkerControl:
    """stages.Control, fed by the thread that reads the watcher's messages."""

    def __init__(self, channel: _Channel) -> None:
        self.request = 0
        self.interrupts: dict[int, type[Interrupted]] = {}  # by request: one that comes too late must not hit the next
        self._channel = channel
        self._last_progress = 0.0

    def check(self) -> None:
        if kind := self.interrupts.get(self.request):
            raise kind

    def progress(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_EVERY_S or done == total:
            self._last_progress = now
            self._channel.send({"progress": {"phase": phase, "done": done, "total": total}})


def private_stdout() -> int:
    """Keep the real standard output for messages; whatever a library prints goes to standard error."""
    mine = os.dup(1)
    os.dup2(2, 1)
    return mine


if __name__ == "__main__":
    main()
