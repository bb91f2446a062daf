"""Strategies by the names that the tables give them, and the samples that they are computed from."""

import gzip
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_validate.errors import SetupError
from dr_validate.files import atomic_file
from dr_validate.sampler.full import FullSampler
from dr_validate.sampler.random import RandomSampler
from dr_validate.sampler.run_pool import RunPoolSampler
from dr_validate.sampler.runs import BM25, NamedRun, candidates
from dr_validate.sampler.stratified import StratifiedSampler
from dr_validate.values import Sample, TestSet
from scripts.research.study.encoded import Encoded
from scripts.research.study.ranking import Rankings

RUN_DEPTH = 1000  # as deep as the built-in BM25
FULL, RANDOM, STRATIFIED = "full", "random", "stratified"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A row of the tables: samples are drawn by `sampler` (`random`, `stratified`, or the name of a run for its top), and the
    metric on the sample is uncorrected or `corrected`."""

    name: str
    sampler: str
    corrected: bool = False


def strategies(runs: Sequence[str]) -> list[Strategy]:
    """All that there are with these runs, in the order of the tables."""
    return [
        Strategy(name="random+gold", sampler=RANDOM),
        Strategy(name="random corrected", sampler=RANDOM, corrected=True),
        *(Strategy(name=f"{run} top", sampler=run) for run in runs),
        Strategy(name="stratified uncorrected", sampler=STRATIFIED),
        Strategy(name="stratified", sampler=STRATIFIED, corrected=True),
    ]


class Samplers:
    """Draws by the project's samplers, for which each run is read once. `paths`: run by name, `bm25` or the path of a file;"""

    def __init__(self, test_set: TestSet, paths: Mapping[str, str], cache: Path) -> None:
        self._test_set, self._paths, self._cache = test_set, paths, cache
        runs = {name: NamedRun(name=path, key="--runs").read(test_set, cache) for name, path in paths.items()}
        self._tops = {name: candidates([run], test_set) for name, run in runs.items()}
        self._fused = candidates(list(runs.values()), test_set)

    def draw(self, sampler: str, fraction: float, seed: int) -> Sample:
        """Raises SetupError for a fraction that is too small."""
        if sampler == FULL:
            return FullSampler().draw(self._test_set, seed, self._cache)
        if sampler == RANDOM:
            return RandomSampler(fraction=fraction).draw(self._test_set, seed, self._cache)
        if sampler == STRATIFIED:
            pool = tuple(self._paths.values())
            stratified = StratifiedSampler(fraction=fraction, pool=pool)
            return stratified.draw_from(self._fused, self._test_set, seed)
        top = RunPoolSampler(run=self._paths[sampler], fraction=fraction)
        return top.draw_from(self._tops[sampler], self._test_set, seed)


def run_paths(names: Sequence[str], vectors: Mapping[str, Encoded], test_set: TestSet, folder: Path) -> dict[str, str]:
    """`bm25` or the path of a run for each name; a run of 1000 is made of what is known by its vectors. The name of a file is
    its stem. Raises SetupError for a name that is none of these."""
    found: dict[str, str] = {}
    for name in names:
        if name == BM25:
            found[name] = name
        elif name in vectors:
            found[name] = str(_write_run(vectors[name], test_set, folder / f"{name}.trec.gz"))
        elif Path(name).is_file():
            found[Path(name).stem] = name
        else:
            raise SetupError(f"--runs: got {name!r}, expected bm25, the path of a TREC run or one of {sorted(vectors)}")
    return found


def _write_run(encoded: Encoded, test_set: TestSet, path: Path) -> Path:
    every = np.arange(len(test_set.corpus))
    ranking = Rankings(test_set, RUN_DEPTH).by(encoded, every)
    with atomic_file(path) as stream, gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1, mtime=0, filename="") as file:
        for query, documents, scores in zip(test_set.query_ids, ranking.documents, ranking.scores, strict=True):
            filled = documents >= 0
            ids = test_set.corpus.ids(documents[filled])
            for rank, (identity, score) in enumerate(zip(ids, scores[filled].tolist(), strict=True), start=1):
                file.write(f"{query}\tQ0\t{identity}\t{rank}\t{score!r}\t{encoded.name}\n".encode())
    log.info("a run of %s is in %s", encoded.name, path)
    return path
