"""A run by the name it has in the configuration: built in, published, or a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_validate.errors import SetupError
from dr_validate.files import sha256_of_file
from dr_validate.sampler import bm25
from dr_validate.sampler.runs import Run, match, read_file, read_ranxhub
from dr_validate.values import TestSet

BM25 = "bm25"
RANXHUB = "ranxhub:"
BM25_DEPTH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRun:
    """`name`: `bm25`, `ranxhub:ID` or the path of a TREC or MS MARCO run; errors begin with `key`, which names it."""

    name: str
    key: str
    bm25_depth: int = BM25_DEPTH

    def read(self, test_set: TestSet, cache: Path) -> Run:
        """The run, matched with the test set; `cache` keeps the built-in one. Raises SetupError where it cannot be had."""
        path = self._path()
        try:
            if path is not None:
                return match(read_file(path), test_set, self.name)
            if self.name == BM25:
                return bm25.bm25_run(test_set, self.bm25_depth, cache)
            return match(read_ranxhub(self.name.removeprefix(RANXHUB)), test_set, self.name)
        except SetupError as error:
            raise SetupError(f"{self.key}: {error}") from error

    def content(self) -> str | Mapping[str, Any]:
        """For the spec: of a file its content counts, not its place. Raises SetupError if there is no such file."""
        path = self._path()
        if path is not None:
            return f"sha256:{sha256_of_file(path)}"
        return {**bm25.SETTINGS, "depth": self.bm25_depth} if self.name == BM25 else self.name

    def _path(self) -> Path | None:
        if self.name == BM25 or self.name.startswith(RANXHUB):
            return None
        path = Path(self.name)
        if not path.is_file():
            raise SetupError(f"{self.key}: got {self.name!r}, which is no file; give the path of a run, {RANXHUB}ID or {BM25}")
        return path
