"""One training, followed without any trouble: what every troubled run is compared with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories import CommandLine, write_collection
from tests.scenario.held import held
from tests.scenario.training import NUM_CHECKPOINTS, STEPS, Training, Undisturbed, Watcher, write_trained
from tests.wandb_server.fixture import ServerHandle, start_server

NUM_EXTRA = 4  # that a troubled run may have beside those of the undisturbed one


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, write_checkpoint: Callable[..., Path]) -> list[Path]:
    """Folders that a training logs, one after the other."""
    return write_trained(tmp_path_factory.mktemp("trained"), write_checkpoint, NUM_CHECKPOINTS + NUM_EXTRA)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, trained: list[Path]) -> Iterator[Undisturbed]:
    """The watcher starts before the first checkpoint is there, and ends when the training has ended."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with start_server(folder / "server", capture=True) as server, Training(server, trained) as training:
        watcher = Watcher(server, CommandLine(folder / "work"), write_collection(folder / "collection", 48))
        watcher.start()
        try:
            training.log(2)
            for num_reports in range(1, len(STEPS) - 1):
                watcher.wait_for_reports(num_reports)
                training.log()
            training.end()
            before = held(server, STEPS[-1])["training"]
            watcher.wait_for_reports(len(STEPS))
            assert watcher.stop() == 0, watcher.said
            yield Undisturbed(server=server, watcher=watcher, held=held(server, STEPS[-1]), trained=before)
        finally:
            watcher.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerHandle]:
    with start_server(tmp_path / "server") as handle:
        yield handle


@pytest.fixture
def training(server: ServerHandle, trained: list[Path]) -> Iterator[Training]:
    with Training(server, trained) as started:
        yield started


@pytest.fixture
def watcher(server: ServerHandle, training: Training, collection: Path, dr_validate: Any) -> Iterator[Watcher]:
    """Not started yet; the training has opened its run, so the project is there."""
    made = Watcher(server, dr_validate, collection)
    yield made
    made.close()
