"""Who works on a spec in a state_dir: a lock that the kernel ends with its holder, and a note that says who that is."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dr_validate.errors import SetupError
from dr_validate.files import locked, read_note, write_atomically

TRIES, BETWEEN_TRIES_S = 5, 0.05


class Claimed(SetupError):
    """Another living process holds the claim, and says at `path` who it is."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


@contextlib.contextmanager
def claim(state_dir: Path, spec: str, since: str) -> Iterator[None]:
    """Be the only process that validates `spec` in `state_dir`. Raises Claimed, naming the holder."""
    path = _path(state_dir, spec)
    with contextlib.ExitStack() as stack:
        for number in range(TRIES):  # whoever asks `is_held` holds it for a moment
            try:
                stream = stack.enter_context(locked(path, blocking=False))
                break
            except BlockingIOError:
                if number < TRIES - 1:
                    time.sleep(BETWEEN_TRIES_S)
        else:
            way_out = "wait for it, stop it, or set another state_dir"
            raise Claimed(f"state_dir: {state_dir} is in use for spec {spec} by {_holder(path)}; {way_out}", path)
        _activity(state_dir, spec).unlink(missing_ok=True)
        stream.truncate(0)
        stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        stream.flush()
        yield


def note_activity(state_dir: Path, spec: str, doing: str, at: str) -> None:
    """Say what the holder of the claim does now, for whoever asks `holder`."""
    write_atomically(_activity(state_dir, spec), json.dumps({"doing": doing, "at": at}))


def holder(state_dir: Path, spec: str) -> Mapping[str, Any] | None:
    """`pid`, `host` and `since` of the process that validates `spec` in `state_dir`, what it is `doing`, and `at` which time
    it said so; None if there is none."""
    path = _path(state_dir, spec)
    if not path.exists() or not is_held(path):
        return None
    unknown = {"pid": "?", "host": "?", "since": "?", "doing": "starting", "at": "?"}
    return {**unknown, **(_note(path) or {}), **(_note(_activity(state_dir, spec)) or {})}


def is_held(path: Path) -> bool:
    """Whether a living process has the claim at `path` (see `Claimed`)."""
    try:
        with path.open("rb") as stream:  # for reading: who may only look is another user, perhaps
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _activity(state_dir: Path, spec: str) -> Path:
    return state_dir / "claims" / f"{spec}.json"


def _path(state_dir: Path, spec: str) -> Path:
    return state_dir / "claims" / f"{spec}.lock"


def _note(path: Path) -> Mapping[str, Any] | None:
    """None where it has not signed yet."""
    return read_note(path, dict, None)


def _holder(path: Path) -> str:
    if (note := _note(path)) is None:
        return "another process"
    return f"process {note['pid']} on {note['host']} since {note['since']}"
