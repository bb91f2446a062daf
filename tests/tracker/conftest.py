"""A loopback W&B server, and watchers on it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tracker.watching import Start, Watcher
from tests.wandb_server.fixture import ServerHandle, start_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerHandle]:
    with start_server(tmp_path / "server") as handle:
        yield handle


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def start(server: ServerHandle, state_dir: Path) -> Iterator[Start]:
    """`start(**tracker settings)`: a watcher on `state_dir`, or on that of `folder=`."""
    watchers: list[Watcher] = []

    def begin(*, environment: Mapping[str, str] | None = None, folder: Path = state_dir, **tracker: Any) -> Watcher:
        watchers.append(Watcher(server, folder, environment or {}, **tracker))
        return watchers[-1]

    yield begin
    for watcher in watchers:
        watcher.process.kill()
        watcher.process.communicate()
