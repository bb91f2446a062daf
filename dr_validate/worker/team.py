"""One process for each of several devices, started and steered by the worker; they live as long as it does."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.devices import Device
from dr_validate.errors import CheckpointError, DeviceFailure, NotStated, SetupError
from dr_validate.messages import Answer, Message, read_message, write_message
from dr_validate.process import how_it_ended

Inbox = queue.Queue[tuple[int, Message | None]]
"""By member, None when its process has ended."""


class WorkerTeam:
    """`messages.Team`. `config` is the plain configuration that each process builds its pipeline from.

    Start it from the thread that lives longest: the kernel ends a process when the thread that started it has ended.
    """

    def __init__(self, config: Mapping[str, Any], devices: Sequence[Device]) -> None:
        self._config, self._devices = config, devices
        self._processes: list[subprocess.Popen[bytes]] = []
        self._inbox: Inbox = queue.Queue()
        self._waiting = [0] * len(devices)

    @property
    def names(self) -> Sequence[str]:
        """See `messages.Team`."""
        return [device.name for device in self._devices]

    @property
    def waiting(self) -> int:
        """See `messages.Team`."""
        return sum(self._waiting)

    def start(self) -> None:
        """Start the processes, which import what they need; does not wait."""
        self.close()
        self._inbox, self._waiting = queue.Queue(), [0] * len(self._devices)
        for member, device in enumerate(self._devices):
            threads = str(device.threads)
            environment = {**os.environ, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
            command = [sys.executable, "-m", "dr_validate.worker.share"]
            # A fresh interpreter: a fork of one that has used torch could hang.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._processes.append(process)
            threading.Thread(target=_read, args=(member, process, self._inbox), daemon=True).start()
            self.ask(member, Message(kind="start", facts={"config": self._config, "place": device.place}))

    def open(self, specs: Sequence[str]) -> None:
        """Have each process open the test set, which is in the cache by now, and wait. Raises SetupError and DeviceFailure."""
        self._ask_all(Message(kind="read"))
        while self.waiting:
            answer = self._next(None)
            if answer.message.kind == "read" and answer.message.facts["specs"] != list(specs):
                raise SetupError("the test set changed while the processes of the devices were started; start again")

    @contextlib.contextmanager
    def at_work(self, digest: str, folder: Path, *, full: bool) -> Iterator[None]:
        """Within the block every member has this checkpoint open on this sample. Waits for what was begun."""
        try:
            self._ask_all(Message(kind="begin", facts={"digest": digest, "folder": str(folder), "full": full}))
            yield
        finally:
            if self._processes:  # none is left after one has died
                self._settle()
                self._ask_all(Message(kind="end"))
                self._settle()

    def ask(self, member: int, request: Message) -> None:
        """See `messages.Team`."""
        stream = self._processes[member].stdin
        assert stream is not None
        self._waiting[member] += 1
        with contextlib.suppress(BrokenPipeError):  # it died: the reader says so next
            write_message(stream, request)

    def answer(self, timeout_s: float) -> Answer | None:
        """See `messages.Team`. Errors that are not the device's come as they would on one device."""
        try:
            return self._next(timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """End the processes at once; what they had finished is on disk."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # a broken pipe, flushed by close()
                    if stream is not None:
                        stream.close()
        self._processes = []

    def _ask_all(self, request: Message) -> None:
        for member in range(len(self._devices)):
            self.ask(member, request)

    def _settle(self) -> None:
        """Wait until nobody is at work; what is said is of no interest any more."""
        while self.waiting:
            self._receive(None)

    def _next(self, timeout_s: float | None) -> Answer:
        answer = self._receive(timeout_s)
        if answer.message.kind == "error":
            raise _error(self.names[answer.member], answer.message.facts)
        return answer

    def _receive(self, timeout_s: float | None) -> Answer:
        member, message = self._inbox.get(timeout=timeout_s)
        if message is None:
            code = self._processes[member].wait()
            self.close()
            raise DeviceFailure(f"{self.names[member]}: its process {how_it_ended(code)}")
        self._waiting[member] -= 1
        return Answer(member=member, message=message)


def _error(device: str, facts: Mapping[str, Any]) -> Exception:
    kind, message = facts["kind"], facts["message"]
    if kind == "checkpoint":
        return CheckpointError(message)
    if kind == "not_stated":
        return NotStated(message)
    if kind == "setup":
        return SetupError(message)
    if kind == "disk_full":
        return OSError(facts["errno"], message, facts["filename"])
    return DeviceFailure(f"{device}: {message}")


def _read(member: int, process: subprocess.Popen[bytes], inbox: Inbox) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError, json.JSONDecodeError):  # closed by close(), or cut short
        while (message := read_message(process.stdout)) is not None:
            inbox.put((member, message))
    inbox.put((member, None))
