"""The watcher's end of the worker process: start it, ask it, interrupt it, replace it when it dies, or has come to a halt."""

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dr_validate.errors import INTERRUPTS, KINDS, DeviceFailure, Interrupted, SetupError, TimedOut
from dr_validate.ledger.reports import report_from_json
from dr_validate.process import how_it_ended
from dr_validate.values import Checkpoint, RankingKey, Report

log = logging.getLogger(__name__)
TICK_S = 0.2
GRACE_S = 15.0  # an interrupted worker answers between two batches; one that does not is stuck and is killed
CLOSE_S = 5.0
LOOK_EVERY_S = 5.0
MAX_STEP_S = 30.0  # of one look: while this process was stopped itself, it saw nothing
BUSY_SHARE = 0.02  # of the limit, in seconds of processors: what a process that only waits does not come to
BUSY_BYTES = 1 << 20  # read or written within the limit: more than tries to reach a server come to
Tick = Callable[[Mapping[str, Any] | None], None]
"""Called several times a second while the worker is waited for, with its progress or None; may raise an Interrupted."""
"""What is ranked: digest of a checkpoint, number of the collection, whether on the full corpus."""
Activity = tuple[float, int]
"""Seconds of processors, and bytes read and written, since processes began."""


class WorkerFailure(RuntimeError):
    """The worker failed in a way that may pass: it died, or met an unexpected error."""


class WorkerDied(WorkerFailure):
    """Its process ended by itself, or was killed."""


class DiskFull(OSError):
    """The worker ran out of disk space, or files, or a quota: `errno` says of what."""


class WorkerClient:
    """One worker process at a time. `config` is the plain configuration that it builds its pipeline from; only with `hub` may
    it ask the Hugging Face hub for anything (or where the environment says HF_HUB_OFFLINE=0)."""

    def __init__(self, config: Mapping[str, Any], *, hub: bool) -> None:
        self._config = config
        self._environment = {**({} if hub else {"HF_HUB_OFFLINE": "1"}), **os.environ}
        self._process: subprocess.Popen[str] | None = None
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._request = 0
        self.specs: list[tuple[str, str]] | None = None  # of the samples and full corpora that the run is about, once known
        self.ranking: RankingKey | None = None  # what it was asked to rank ahead, until it has answered
        self.ranked: list[RankingKey] = []  # finished, kept by the process until they are validated
        self.has_begun = False  # whether documents of `ranking` were counted
        self._is_interrupted = False  # whether it was told so, which is said once: what reads nothing would fill the pipe

    def start(self, tick: Tick) -> Mapping[str, Any]:
        """Start the process and wait until its pipeline is open; returns what that says of itself. Raises SetupError."""
        self._spawn()
        told = self._answer("ready", tick)
        self.specs = _specs(told)
        return told

    def validate(
        self, checkpoint: Checkpoint, folder: Path, *, full: bool, tick: Tick, collection: int = 0, more: bool = False
    ) -> Report:
        """Have one checkpoint validated on a `collection`, by its number in the suite; whether `more` of them follow at once.

        An Interrupted from `tick` stops the worker, which keeps what it has encoded.
        Raises what the worker met: CheckpointError, SetupError, Interrupted, DiskFull, or WorkerFailure for anything else.
        """
        self.forget_the_dead()
        if self._process is None:
            self.start(tick)
        self._ask("validate", checkpoint, folder, full=full, collection=collection, more=more)
        report = report_from_json(self._answer("report", tick))
        self.ranked = [job for job in self.ranked if job != (checkpoint.digest, collection, full)]
        return report

    def rank_ahead(
        self, checkpoint: Checkpoint, folder: Path, *, full: bool, collection: int, keep: Sequence[RankingKey]
    ) -> None:
        """Have a checkpoint ranked before its turn, without waiting; `validate` of it, here, then begins with the ranking.

        Of what is ranked already only `keep` stays.
        """
        self.forget_the_dead()
        if self._process is None:
            log.info("another worker process starts, which ranks ahead (watch.at_once)")
            self._spawn()
        self.ranked = [job for job in self.ranked if job in keep]
        self.ranking, self.has_begun, self._is_interrupted = (checkpoint.digest, collection, full), False, False
        self._ask("rank", checkpoint, folder, full=full, collection=collection, keep=keep)

    def has_ranked(self) -> bool:
        """Whether what `rank_ahead` began is finished, without waiting; raises what the worker met, as `validate` does."""
        job, self.ranking = self.ranking, None  # as it is if this raises
        while job is not None and not self._messages.empty():
            message = self._messages.get()
            if self._found(message, "ranked") is not None:
                self.ranked.append(job)
                return True
            self.has_begun |= message is not None and bool(message.get("progress", {}).get("total"))
        self.ranking = job
        return False

    def wait_until_ranked(self, tick: Tick) -> None:
        """Until it is; raises what the worker met."""
        job = self.ranking
        assert job is not None
        try:
            self._answer("ranked", tick)
        finally:
            self.ranking = None
        self.ranked.append(job)

    def forget_the_dead(self) -> None:
        """A process that was killed while it had nothing to do costs what it had ranked, and no attempt."""
        if self.ranking is None and self._process is not None and self._process.poll() is not None:
            self.kill()

    def interrupt_ranking(self, reason: str) -> None:
        """Have what is ranked ahead interrupted (`reason`: of `errors.INTERRUPTS`); it goes on from there when asked again."""
        if self.ranking is not None and not self._is_interrupted:
            self._is_interrupted = True
            self._send({"interrupt": reason, "request": self._request})

    def close(self) -> None:
        """Let the process end by itself, at once if it is idle; kill it if it does not."""
        self.interrupt_ranking("stopped")
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.stdin.close()
                self._process.wait(timeout=self._grace_s())
        self.kill()

    def _grace_s(self) -> float:
        """What has counted no document has nothing to save."""
        if self.ranking is None:
            return CLOSE_S
        return GRACE_S if self.has_begun else 0.0

    def kill(self) -> None:
        """End the process at once; what it had finished is on disk."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # a broken pipe, flushed by close()
                if stream is not None:
                    stream.close()
        self._process, self.ranking, self.ranked = None, None, []

    def activity(self) -> Activity | None:
        """What the process has done so far, with those that it has started; None where that cannot be known."""
        return activity_of(self._process.pid) if self._process is not None else None

    def _spawn(self) -> None:
        self.kill()
        self._messages = queue.Queue()
        command = [sys.executable, "-m", "dr_validate.worker.main"]
        pipe = subprocess.PIPE
        text: dict[str, Any] = {"text": True, "encoding": "utf-8"}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=self._environment, **text)
        threading.Thread(target=_read, args=(self._process, self._messages), daemon=True).start()
        self._send(self._config)

    def _ask(self, verb: str, checkpoint: Checkpoint, folder: Path, **which: Any) -> None:
        self._request += 1
        self._send({verb: asdict(checkpoint), "folder": str(folder), "request": self._request, **which})

    def _found(self, message: Mapping[str, Any] | None, key: str) -> dict[str, Any] | None:
        """What the message says of `key`, if it does. Raises what the worker met, its end included."""
        if message is None:
            raise self._death()
        if "error" in message:
            raise self._error(message["error"])
        if "ready" in message:
            self._check_specs(_specs(message["ready"]))
        return dict(message[key]) if key in message else None

    def _check_specs(self, found: list[tuple[str, str]]) -> None:
        """Of a process that was started later: what it ranks would be another row."""
        if self.specs is not None and found != self.specs:
            self.kill()
            now, then = next((a[0], b[0]) for a, b in zip(found, self.specs, strict=True) if a != b)
            raise SetupError(
                f"the files of the collection, or of the runs that its sample is drawn from, are others than when this run "
                f"began (spec {now} now, {then} then): put them back, or start again; nothing done is lost"
            )

    def _answer(self, key: str, tick: Tick) -> dict[str, Any]:
        interrupted: Interrupted | None = None
        deadline = float("inf")
        while True:
            try:
                message = self._messages.get(timeout=TICK_S)
            except queue.Empty:
                message = {}
            try:
                found = self._found(message, key)
            except Interrupted as error:
                raise interrupted or error from None  # ours says why
            if found is not None:
                return found
            if interrupted is None:
                interrupted = self._tick(tick, message.get("progress") if message else None)
                deadline = time.monotonic() + GRACE_S if interrupted else deadline
            elif time.monotonic() > deadline:
                log.warning("the worker did not stop within %.0f s and was killed", GRACE_S)
                self.kill()
                raise interrupted

    def _tick(self, tick: Tick, progress: Mapping[str, Any] | None) -> Interrupted | None:
        try:
            tick(progress)
        except Interrupted as error:
            name = next(name for name, cls in INTERRUPTS.items() if isinstance(error, cls))
            self._send({"interrupt": name, "request": self._request})
            return error
        except BaseException:  # nobody waits for the answer any more: it would be taken for that to the next request
            self.kill()
            raise
        return None

    def _error(self, error: Mapping[str, Any]) -> Exception:
        kind, message = error["kind"], error["message"]
        if kind in KINDS and KINDS[kind] is not DeviceFailure:
            return KINDS[kind](message)
        self.kill()  # a device that failed once often fails until its process is gone
        return DiskFull(error["errno"], message, error["filename"]) if kind == "disk_full" else WorkerFailure(message)

    def _death(self) -> WorkerFailure:
        code = self._process.wait() if self._process is not None else 0
        self.kill()
        return WorkerDied(f"the worker process {how_it_ended(code)}")

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the reader says so next
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()


def _specs(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(one["spec"], one["full_spec"]) for one in told.get("collections", [told]) if "spec" in one]


def _read(process: subprocess.Popen[str], messages: queue.Queue[dict[str, Any] | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # closed by kill()
        for line in process.stdout:
            messages.put(json.loads(line))
    messages.put(None)


class StallLimit:
    """Ends work that has not moved for `limit_s` (None or 0: never), whatever its phase.

    Work that counts documents moves when the count does, for a device that hangs keeps a processor busy. All else, and all
    work `on_processors`, moves as well while its processes compute, read or write: a corpus that is read, BM25, an index that
    is trained.
    """

    def __init__(self, limit_s: float | None, activity: Callable[[], Activity | None]) -> None:
        """`activity`: of the processes that work, or None where that cannot be known, which counts as moving."""
        self._limit_s, self._activity, self.on_processors = limit_s, activity, False
        self.begin("start")

    def begin(self, phase: str) -> None:
        """New work, which moves now."""
        self._phase, self._counted = phase, False
        self._progress: Mapping[str, Any] | None = None
        self._still_s, self._looked_at, self._sampled_at = 0.0, time.monotonic(), 0.0
        self._before: Activity | None = None

    def look(self, progress: Mapping[str, Any] | None) -> None:
        """Called all the time, with news or None. Raises TimedOut that names the phase and the key."""
        if not self._limit_s:
            return
        now = time.monotonic()
        self._still_s += min(now - self._looked_at, MAX_STEP_S)
        self._looked_at = now
        if progress is not None and dict(progress) != self._progress:
            self._progress, self._phase, self._counted = dict(progress), str(progress["phase"]), progress["total"] > 0
            self._moved()
        elif (self.on_processors or not self._counted) and now - self._sampled_at >= LOOK_EVERY_S:
            self._sampled_at = now
            if self._is_busy(self._limit_s):
                self._moved()
        if self._still_s >= self._limit_s:
            way_out = "raise it for work that is that slow, or set it to 0 for no limit"
            raise TimedOut(f"no progress for watch.stall_timeout_s={self._limit_s:g} in phase {self._phase!r}; {way_out}")

    def _moved(self) -> None:
        self._still_s, self._before = 0.0, None

    def _is_busy(self, limit_s: float) -> bool:
        """Whether enough was done since the last movement."""
        if (now := self._activity()) is None:
            return True
        before = self._before
        if before is None or now[0] < before[0] or now[1] < before[1]:  # one of several processes has ended
            self._before = now
            return False
        return now[0] - before[0] >= BUSY_SHARE * limit_s or now[1] - before[1] >= BUSY_BYTES


def activity_of(pid: int) -> Activity | None:
    """Of a process and those that it has started and that live; None where the system does not tell."""
    if sys.platform != "linux" or not Path(f"/proc/{pid}/stat").exists():
        return None
    seconds, count = 0.0, 0
    for one in _tree(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            numbers = dict(line.split(": ") for line in Path(f"/proc/{one}/io").read_text().splitlines())
            count += sum(int(numbers[name]) for name in ("rchar", "wchar", "read_bytes", "write_bytes"))
    return seconds, count


def _tree(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *(below for child in children for below in _tree(child))]
