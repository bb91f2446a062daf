"""What Ray starts in place of Python, told by `environment`: its worker is forked from the process of warm.py that has imported
everything. Ray's own process is this one, which ends with it; nothing is imported here that takes time."""

import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """For whoever calls ray.init; empty where all processes are to be cold."""
    from tests import warm

    if not warm.share():
        return {}
    command = f"{sys.executable} -S -E {Path(__file__).resolve()}"
    return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"py_executable": command}})}


def main() -> None:
    number = struct.Struct("i")
    request = {"args": [sys.executable, *sys.argv[1:]], "folder": str(Path.cwd()), "environment": dict(os.environ)}
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as forker:
        forker.connect(os.environ["DR_VALIDATE_FORKER"])
        assert forker.recv(1) == b"1", "the process that forks has threads"
        message = json.dumps({**request, "new_session": False, "group": -1}).encode()
        socket.send_fds(forker, [message], [0, 1, 2, theirs.fileno()])
        theirs.close()
        pid = number.unpack(ours.recv(number.size))[0]
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
        ours.recv(number.size)


if __name__ == "__main__":
    main()
