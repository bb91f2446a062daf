"""Several collections for each checkpoint: one load of its weights, a Report for each of them, and their mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from dr_validate.component import UserPath, component
from dr_validate.errors import SetupError
from dr_validate.values import TestSet


@component
class SuiteDataset:
    """`members` by name: `choice` (beir unless stated) and its keys, or the folder of a collection in BEIR's form alone.

    Beside them `encoder` with lengths and prefixes of this collection, and `sampler` with a `choice` and keys of its own.
    `path`: the folder that relative paths of members begin at. `config.build` makes a run of each: `Run.collections`.
    """

    members: Mapping[str, Any] = Field(default_factory=dict)
    path: UserPath | None = None

    def check(self) -> None:
        """See `Dataset.check`: there is nothing but the members."""

    def open(self, cache: Path) -> TestSet:
        """Raises SetupError: its members are opened, each for itself."""
        raise SetupError("dataset=suite is several collections; here one is needed: choose one of its members")
