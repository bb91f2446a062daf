"""A training to fill."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.training import Training


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    made = Training(tmp_path / "state")
    with made.ledger:
        yield made
