"""Who works on a spec in a state_dir: a lock that the kernel ends with its holder, and a note that says who that is."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dr_validate.errors import SetupError
from dr_validate.files import locked


class Claimed(SetupError):
    """Another living process holds the claim, and says at `path` who it is."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


@contextlib.contextmanager
def claim(state_dir: Path, spec: str, since: str) -> Iterator[None]:
    """Be the only process that validates `spec` in `state_dir`. Raises Claimed, naming the holder."""
    path = state_dir / "claims" / f"{spec}.lock"
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(locked(path, blocking=False))
        except BlockingIOError:
            holder = _holder(path)
            way_out = "wait for it, stop it, or set another state_dir"
            raise Claimed(f"state_dir: {state_dir} is in use for spec {spec} by {holder}; {way_out}", path) from None
        stream.truncate(0)
        stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        stream.flush()
        yield


def _holder(path: Path) -> str:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # it has not signed yet
        return "another process"
    return f"process {note['pid']} on {note['host']} since {note['since']}"
