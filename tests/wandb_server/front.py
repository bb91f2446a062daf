"""The sockets: reads a request, has it answered, and sends the answer, whole or as a fault wants it."""

import gzip
import http.server
import json
import socket
import struct
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.wandb_server.app import Answer, App, refusal, route_of
from tests.wandb_server.faults import Fault, Kind
from tests.wandb_server.request_log import Entry, Request, visible

CONTROL = "/__control"
TICKS_PER_S = 20


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection; kept alive as HTTP/1.1 has it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the request log says it all."""

    def _serve(self) -> None:
        request = self._read()
        app = self.server.app
        if request.path == CONTROL:
            self._send(app.control(json.loads(request.body)))
            return
        app.log.capture(request)
        met = app.faults.take(_kind(request))
        if met is not None:
            self._go_wrong(request, *met)
            return
        answer = app.answer(request)
        self._log(request, answer, None)
        self._send(answer)

    def _read(self) -> Request:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        raw = self._chunks() if "chunked" in headers.get("transfer-encoding", "") else self._sized(headers)
        body = gzip.decompress(raw) if headers.get("content-encoding") == "gzip" else raw
        path = unquote(parts.path)
        return Request(
            method=self.command,
            target=self.path,
            path=path,
            query=dict(parse_qsl(parts.query)),
            headers=headers,
            body=body,
            raw=raw,
            route=route_of(self.command, path),
            operation=_operation(body) if path == "/graphql" else "",
        )

    def _sized(self, headers: dict[str, str]) -> bytes:
        return self._exactly(int(headers.get("content-length") or 0))

    def _exactly(self, size: int) -> bytes:
        found = self.rfile.read(size)
        if len(found) < size:
            raise ConnectionAbortedError("the client left within its request")
        return found

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self._exactly(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _go_wrong(self, request: Request, fault: Fault, cleared: threading.Event) -> None:
        refused = _refusal_of(fault)
        if refused:
            self._log(request, refused, fault)
            self._send(refused)
        elif fault.action in ("hang", "drop"):
            self._stay_silent(request, fault, cleared)
        else:
            self._answer_wrongly(request, fault)

    def _stay_silent(self, request: Request, fault: Fault, cleared: threading.Event) -> None:
        answer = self.server.app.answer(request) if fault.carry_out else Answer(0)
        self._log(request, Answer(answer.status, b""), fault)
        if fault.action == "hang":
            cleared.wait()
        self._break()

    def _answer_wrongly(self, request: Request, fault: Fault) -> None:
        if fault.action == "delete":
            self.server.app.delete_version(fault.artifact)
        answer = self.server.app.answer(request)
        body = _spoilt(answer.body, fault)
        self._log(request, Answer(answer.status, body), fault)
        if fault.action == "cut":
            self._head(answer, len(answer.body))
            self.wfile.write(body)
            self.wfile.flush()
            self._break()
        elif fault.action == "slow":
            self._head(answer, len(body))
            self._trickle(body, fault.bytes_per_s)
        else:
            self._send(Answer(answer.status, body, answer.headers))

    def _log(self, request: Request, answer: Answer, fault: Fault | None) -> None:
        ids = request.path.split("/")
        of_path = (ids[6], ids[-1]) if request.route == "artifacts_v2" and len(ids) > 8 else ("", "")
        self.server.app.log.write(
            Entry(
                method=request.method,
                path=request.path,
                route=request.route,
                operation=request.operation,
                status=answer.status,
                request_bytes=len(request.raw),
                response_bytes=len(answer.body),
                authorized=request.authorized,
                fault=fault.action if fault else "",
                artifact=request.query.get("artifact", of_path[0]),
                file=request.query.get("file", of_path[1]),
                headers=visible(request.headers),
            )
        )

    def _send(self, answer: Answer) -> None:
        self._head(answer, len(answer.body))
        self.wfile.write(answer.body)

    def _head(self, answer: Answer, length: int) -> None:
        self.send_response(answer.status, HTTPStatus(answer.status).phrase)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _trickle(self, body: bytes, bytes_per_s: float) -> None:
        size = max(1, round(bytes_per_s / TICKS_PER_S))
        for start in range(0, len(body), size):
            self.wfile.write(body[start : start + size])
            self.wfile.flush()
            time.sleep(size / bytes_per_s)

    def _break(self) -> None:
        """Close so that the client sees a reset and not the end of an answer."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _kind(request: Request) -> Kind:
    return Kind(
        method=request.method,
        route=request.route,
        operation=request.operation,
        path=request.path,
        key=request.key,
        content=request.target.encode() + b" " + request.body,
    )


def _operation(body: bytes) -> str:
    asked = json.loads(body)
    if asked.get("operationName"):
        return str(asked["operationName"])
    words = asked["query"].replace("#graphql", "").replace("(", " ").replace("{", " ").split()
    return str(words[1]) if len(words) > 1 else ""


def _refusal_of(fault: Fault) -> Answer | None:
    if fault.action == "error":
        return Answer(200, json.dumps({"data": None, "errors": [{"message": fault.message}]}).encode())
    if fault.action != "status":
        return None
    answer = refusal(fault.status, fault.message)
    if fault.retry_after_s is None:
        return answer
    return Answer(answer.status, answer.body, {**answer.headers, "Retry-After": f"{fault.retry_after_s:g}"})


def _spoilt(body: bytes, fault: Fault) -> bytes:
    place = min(int(len(body) * fault.share), max(len(body) - 1, 0))
    if fault.action in ("cut", "truncate"):
        return body[:place]
    if fault.action == "flip" and body:
        return body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :]
    return body


class Server(http.server.ThreadingHTTPServer):
    """The loopback server, bound when made; `serve_forever` runs it."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int, capturing: bool = False) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.app = App(folder, capturing)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are none of our concern; anything else is, and goes to stderr."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"
