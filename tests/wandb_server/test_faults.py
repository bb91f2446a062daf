"""Faults, one by one, against plain HTTP."""

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import LIMIT_S, wait_for
from tests.wandb_server.faults import Action
from tests.wandb_server.fixture import ServerHandle, start_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerHandle]:
    with start_server(tmp_path / "server") as handle:
        yield handle


def put(server: ServerHandle, content: bytes) -> str:
    path = "/storage/files/x/y"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
    connection.request("PUT", path, content)
    assert connection.getresponse().status == 200
    connection.close()
    return path


def get(server: ServerHandle, path: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.headers)
    finally:
        connection.close()


@pytest.mark.parametrize("action, expected", [("truncate", b"abcd"), ("flip", b"abcd\x9afgh"), ("slow", b"abcdefgh")])
def test_a_damaged_body_has_a_fitting_length(server: ServerHandle, action: Action, expected: bytes) -> None:
    path = put(server, b"abcdefgh")
    server.fault(action, route="file")
    status, body, headers = get(server, path)
    assert (status, body, headers["Content-Length"]) == (200, expected, str(len(expected)))
    assert get(server, path)[1] == b"abcdefgh"


def test_a_connection_breaks_before_or_within_the_answer(server: ServerHandle) -> None:
    path = put(server, b"abcdefgh")
    server.fault("drop", route="file")
    server.fault("cut", route="file", share=0.25)
    with pytest.raises(ConnectionError):
        get(server, path)
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        get(server, path)
    assert get(server, path)[1] == b"abcdefgh"
    sent = [(entry.fault, entry.response_bytes) for entry in server.requests("file")]
    assert sent == [("drop", 0), ("cut", 2), ("", 8)]


def test_whoever_hangs_is_let_go_when_faults_are_cleared(server: ServerHandle) -> None:
    path = put(server, b"abcdefgh")
    server.fault("hang", route="file", times=None)
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(get(server, path))
        except ConnectionError as problem:
            outcome.append(problem)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: server.faults_met() == 1)
    assert outcome == []
    server.clear()
    thread.join(LIMIT_S)
    assert isinstance(outcome[0], ConnectionError) and get(server, path)[0] == 200


def test_faults_choose_by_operation_and_count(server: ServerHandle) -> None:
    def ask(name: str) -> tuple[int, dict[str, Any], str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
        body = json.dumps({"query": f"query {name} {{ viewer {{ username }} }}"})
        connection.request("POST", "/graphql", body, {"Authorization": "Basic YXBpOmtleQ=="})
        answer = connection.getresponse()
        status, said, wait = answer.status, json.loads(answer.read()), answer.getheader("Retry-After")
        connection.close()
        return status, said, wait

    good = (200, {"data": {"viewer": {"username": "tester"}}}, None)
    server.fault("status", operation="Wanted*", status=429, retry_after_s=2, skip=1, times=2)
    server.fault("error", operation="Other", message="no")
    assert [ask("WantedOne")[0] for _ in range(4)] == [200, 429, 429, 200]
    assert ask("Other") == (200, {"data": None, "errors": [{"message": "no"}]}, None)
    assert ask("Other") == good
    server.fault("status", operation="Wanted*", status=429, retry_after_s=2)
    assert ask("Wanted")[2] == "2"


def test_faults_choose_by_key_and_content_and_say_what_is_left(server: ServerHandle) -> None:
    def ask(key: str, value: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
        body = json.dumps({"query": "query Q { viewer { username } }", "variables": {"x": value}})
        credentials = base64.b64encode(f"api:{key}".encode()).decode()
        connection.request("POST", "/graphql", body, {"Authorization": f"Basic {credentials}"})
        status = connection.getresponse().status
        connection.close()
        return status

    server.fault("status", key="one*", contains="needle")
    assert [ask("two", "needle"), ask("one", "hay")] == [200, 200] and len(server.faults_left()) == 1
    assert [ask("one", "needle"), ask("one", "needle")] == [503, 200] and server.faults_left() == []


def test_whoever_hangs_or_is_dropped_may_have_been_heard(server: ServerHandle) -> None:
    put(server, b"old")
    actions: tuple[Action, ...] = ("drop", "hang")
    for action in actions:
        server.fault(action, method="PUT", carry_out=True)
        with pytest.raises(ConnectionError):
            put_and_clear(server, action.encode())
        assert get(server, "/storage/files/x/y")[1] == action.encode()


def put_and_clear(server: ServerHandle, content: bytes) -> None:
    def clear() -> None:
        wait_for(lambda: not server.faults_left())
        server.clear()

    thread = threading.Thread(target=clear)
    thread.start()
    try:
        put(server, content)
    finally:
        thread.join(LIMIT_S)
