"""The judged documents and the top of somebody's run for each query: what Asyncval does."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from dr_validate.component import component
from dr_validate.errors import SetupError
from dr_validate.files import sha256_of_file
from dr_validate.sampler import bm25
from dr_validate.sampler.drawing import budget, permanent_random_numbers, sample_of
from dr_validate.sampler.runs import Run, match, read_file, read_ranxhub
from dr_validate.values import Int64, Sample, TestSet

log = logging.getLogger(__name__)

RANXHUB = "ranxhub:"
DEFAULT_DEPTH = 100
DEFAULT_BM25_DEPTH = 1000


@component
class RunPoolSampler:
    """`run`: the path of a TREC or MS MARCO run, `ranxhub:ID`, or `bm25` (built in). The pool is its top `depth` per query,
    or as deep as `fraction` of the whole corpus allows, judged documents included; one of the two, a depth of 100 if neither.

    A pool is no random draw: what is in has odds 1, and nothing is known about what is not. `bm25_depth` (1000 if not set)
    is how deep the built-in run goes.
    """

    run: str = Field(min_length=1)
    depth: int | None = Field(default=None, ge=1)
    fraction: float | None = Field(default=None, gt=0, le=1)
    bm25_depth: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.depth is not None and self.fraction is not None:
            raise ValueError(
                f"depth and fraction: got {self.depth} and {self.fraction}, set one of them and leave the other null"
            )
        if self.bm25_depth is not None and self.run != "bm25":
            raise ValueError(f"bm25_depth: got {self.bm25_depth}, which has no effect on run {self.run!r}; leave it null")
        if self.run == "bm25" and (self.depth or 0) > self._bm25_depth:
            raise ValueError(f"depth: got {self.depth}, but bm25_depth is {self._bm25_depth}; raise bm25_depth to it")
        return self

    def draw(self, test_set: TestSet, seed: int, cache: Path) -> Sample:
        """See `Sampler.draw`. Raises SetupError for a run that cannot be read or names no query of the test set.

        With `fraction`, the seed decides which documents of the last, partial depth come in.
        """
        room = None if self.fraction is None else budget(test_set, self.fraction) - len(test_set.judged)
        run = self._read(test_set, cache)
        pool, depths = _unjudged_by_depth(run, test_set)
        if room is None:
            chosen = pool[depths < self._depth]
        else:
            numbers = permanent_random_numbers(test_set.corpus.id_hash[pool], seed)
            chosen = pool[np.lexsort((pool, numbers, depths))[:room]]
            if len(chosen) < room:
                log.warning(
                    "run %s ends before the budget: %d documents fewer than sampler.fraction", self.run, room - len(chosen)
                )
        log.info("run pool of %s: %d judged and %d other documents", test_set.name, len(test_set.judged), len(chosen))
        return sample_of(test_set, chosen, 1.0, {**self.fingerprint(), "seed": seed})

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values for the spec; of a file its content counts, not its place. Raises SetupError if there is no such file."""
        run: Any = self.run
        if self.run == "bm25":
            run = {**bm25.SETTINGS, "depth": self._bm25_depth}
        elif not self.run.startswith(RANXHUB):
            run = f"sha256:{sha256_of_file(self._path())}"
        limit = {"depth": self._depth} if self.fraction is None else {"fraction": self.fraction}
        return {"sampler": "run_pool", "run": run, **limit}

    @property
    def _depth(self) -> int:
        return DEFAULT_DEPTH if self.depth is None else self.depth

    @property
    def _bm25_depth(self) -> int:
        return DEFAULT_BM25_DEPTH if self.bm25_depth is None else self.bm25_depth

    def _read(self, test_set: TestSet, cache: Path) -> Run:
        if self.run == "bm25":
            return bm25.bm25_run(test_set, self._bm25_depth, cache)
        if self.run.startswith(RANXHUB):
            return match(read_ranxhub(self.run.removeprefix(RANXHUB)), test_set, self.run)
        return match(read_file(self._path()), test_set, self.run)

    def _path(self) -> Path:
        path = Path(self.run).expanduser()
        if not path.is_file():
            raise SetupError(f"sampler.run: got {self.run!r}, which is no file; give the path of a run, ranxhub:ID or bm25")
        return path


def _unjudged_by_depth(run: Run, test_set: TestSet) -> tuple[Int64, Int64]:
    """Documents of the run that are not judged, each once, and the best rank (from 0 on) that any query gives them."""
    order = np.argsort(run.ranks, kind="stable")
    documents, first = np.unique(run.documents[order], return_index=True)
    unjudged = ~np.isin(documents, test_set.judged)
    return documents[unjudged], run.ranks[order][first][unjudged]
