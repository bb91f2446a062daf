"""A run by the name it has in the configuration: built in, the collection's own, published, or a file. Read once, then kept."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.component import fingerprint
from dr_validate.errors import SetupError
from dr_validate.files import read_arrays, sha256_of_file, write_arrays
from dr_validate.sampler import bm25
from dr_validate.sampler.runs import RetrievedRun, match, read_file, read_ranxhub
from dr_validate.values import TestSet

BM25 = "bm25"
SHIPPED = "shipped"
BASELINE = "baseline"
RANXHUB = "ranxhub:"
BM25_DEPTH = 1000
LEAST_COVERED = 0.5  # of the queries: a run with fewer is said to have gaps
FORMAT = 1  # of a run that is kept; change it when `runs.match` or `bm25` finds something else in the same input
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRun:
    """`name`: `bm25`, `shipped` (the collection's own run, in BM25's order if it has none, such as MS MARCO's top1000.dev, and
    `bm25` where there is no run), `baseline` (`worker.samples` chooses it), `ranxhub:ID` or the path of a TREC or MS MARCO run;
    errors begin with `key`, which names it.
    """

    name: str
    key: str
    bm25_depth: int = BM25_DEPTH
    by_bm25: bool = False  # in its order, where the run has none

    def of(self, test_set: TestSet) -> "NamedRun":
        """What `shipped` and `baseline` are for this test set; any other as it is. Raises SetupError without a baseline."""
        if self.name == BASELINE:
            if test_set.baseline_run is None:
                raise SetupError(f"{self.key}: got {BASELINE!r}, but no full-corpus ranking is known here; leave it out")
            return replace(self, name=str(test_set.baseline_run))
        if self.name != SHIPPED:
            return self
        if test_set.shipped_run is None:
            log.info("%s has no run of its own: the pool is of BM25's", test_set.name)
        return replace(self, name=str(test_set.shipped_run or BM25), by_bm25=test_set.shipped_run is not None)

    def read(self, test_set: TestSet, cache: Path) -> RetrievedRun:
        """The run, matched with the test set; `cache` keeps it. Raises SetupError where it cannot be had."""
        if self.name in (SHIPPED, BASELINE):
            return self.of(test_set).read(test_set, cache)
        key = fingerprint({"run": self.content(), "test_set": test_set.fingerprint, "format": FORMAT})
        path = cache / f"run-{key}.npz"
        if (kept := _kept(path)) is not None:
            self._warn_of_gaps(kept, test_set)
            return kept
        try:
            run = self._made(test_set)
        except SetupError as error:
            raise SetupError(f"{self.key}: {error}") from error
        self._warn_of_gaps(run, test_set)
        # A third of what the numbers of a run take: 70 MB for 7 M hits.
        write_arrays(path, rows=np.int32(run.rows), documents=np.int32(run.documents), ranks=np.int32(run.ranks))
        return run

    def _warn_of_gaps(self, run: RetrievedRun, test_set: TestSet) -> None:
        found, asked = len(np.unique(run.rows)), len(test_set.query_ids)
        if found < LEAST_COVERED * asked:
            log.warning(
                "%s: run %s has hits for %d of the %d queries of %s: the pool has nothing for the others; is it a run over "
                "other queries, or a part of one?",
                *(self.key, self.name, found, asked, test_set.name),
            )

    def content(self) -> str | Mapping[str, Any]:
        """For the spec: of a file its content counts, not its place. Raises SetupError if there is no such file."""
        path = self.find()
        if path is not None:
            state = path.stat()
            content = f"sha256:{_digest(path, state.st_size, state.st_mtime_ns, state.st_ino)}"
            return {"run": content, "order": bm25.SETTINGS} if self.by_bm25 else content
        return {**bm25.SETTINGS, "depth": self.bm25_depth} if self.name == BM25 else self.name

    def _made(self, test_set: TestSet) -> RetrievedRun:
        if (path := self.find()) is not None:
            run = match(read_file(path), test_set, self.name)
            return bm25.ordered(run, test_set) if self.by_bm25 and not run.ranks.any() else run
        if self.name == BM25:
            return bm25.bm25_run(test_set, self.bm25_depth)
        return match(read_ranxhub(self.name.removeprefix(RANXHUB)), test_set, self.name)

    def find(self) -> Path | None:
        """The file, where it is one. Raises SetupError if there is none."""
        if self.name in (BM25, SHIPPED, BASELINE) or self.name.startswith(RANXHUB):
            return None
        path = Path(self.name)
        if not path.is_file():
            raise SetupError(
                f"{self.key}: got {self.name!r}, which is no file; give the path of a run, {RANXHUB}ID, {SHIPPED}, {BASELINE} "
                f"or {BM25}"
            )
        return path


def resolved(runs: Sequence[NamedRun], test_set: TestSet) -> list[NamedRun]:
    """Each run that these names stand for, once."""
    return list(dict.fromkeys(run.of(test_set) for run in runs))


def _kept(path: Path) -> RetrievedRun | None:
    try:
        rows, documents, ranks = (array.astype(np.int64) for array in read_arrays(path, "rows", "documents", "ranks"))
        return RetrievedRun(rows=rows, documents=documents, ranks=ranks)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: the run is made again", error)
        return None


@functools.lru_cache(maxsize=8)
def _digest(path: Path, *state: int) -> str:
    """Read once in this process as long as `state` is the same."""
    return sha256_of_file(path)
