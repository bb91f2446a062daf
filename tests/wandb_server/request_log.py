"""What was asked of the server: one line per request, and on demand every byte."""

import base64
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.wandb_server.records import now


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as received: `target` and `raw` as they came over the wire, `path`, `query` and `body` decoded."""

    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    raw: bytes
    route: str
    operation: str

    @property
    def authorized(self) -> bool:
        """Whether credentials came along."""
        return "authorization" in self.headers

    @property
    def key(self) -> str:
        """The API key of the credentials; empty where there are none that W&B would understand."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return base64.b64decode(token).decode().partition(":")[2] if scheme == "Basic" else ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the log; `headers` lack the value of Authorization, `response_bytes` counts the body as it was sent out.

    A line is written before the answer leaves, so that whoever has the answer finds the line; a client that hangs up early has
    received less than `response_bytes`.
    """

    method: str
    path: str
    route: str
    operation: str
    status: int
    request_bytes: int
    response_bytes: int
    authorized: bool
    fault: str
    artifact: str
    file: str
    headers: Mapping[str, str]
    at: str = field(default_factory=now)


class RequestLog:
    """`requests.jsonl` and, while `capturing`, `capture.bin` in `folder`; a server started again goes on with them."""

    def __init__(self, folder: Path, capturing: bool = False) -> None:
        self.path, self.capture_path = folder / "requests.jsonl", folder / "capture.bin"
        self.capturing = capturing
        self._lock = threading.Lock()

    def write(self, entry: Entry) -> None:
        with self._lock, self.path.open("a") as stream:
            stream.write(json.dumps(asdict(entry)) + "\n")

    def capture(self, request: Request) -> None:
        """Request line, headers but for Authorization, body as sent and, where that was compressed, as meant."""
        if not self.capturing:
            return
        lines = [f"{request.method} {request.target}"]
        lines += [f"{name}: {value}" for name, value in visible(request.headers).items()]
        decoded = request.body if request.body != request.raw else b""
        with self._lock, self.capture_path.open("ab") as stream:
            stream.write("\n".join(lines).encode() + b"\n\n" + request.raw + b"\n" + decoded + b"\n")


def visible(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name != "authorization"}


def read_log(folder: Path) -> list[Entry]:
    path = folder / "requests.jsonl"
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []
