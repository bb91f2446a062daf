"""Which documents a run validates on: its sample, and the full corpus of baselines; each with the spec of its scores. And the
full-corpus rankings that are kept, which samples are held against and estimates are calibrated on."""

import gzip
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.errors import SetupError
from dr_validate.estimator.evidence import FORMAT, can_be_estimated
from dr_validate.estimator.priors import PRIORS
from dr_validate.files import atomic_file, digest_of_name, name_of_digest, read_arrays, write_arrays
from dr_validate.metrics.gains import gains_retrieved
from dr_validate.sampler.full import FullSampler
from dr_validate.sampler.runs import BASELINE
from dr_validate.stages import Sampler
from dr_validate.values import Checkpoint, Int64, Ranking, Sample, TestSet

SHALLOW = 10  # ranks at which full-corpus rankings are compared
GOOD_ENOUGH = 2 / 3  # those with 0.7 of the best gained, with 0.25 and 0.36 lost (scripts/research/STUDY.md)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecSample:
    """A sample of the test set, the sampler that drew it, and the spec that scores over it belong to."""

    spec: str
    sampler: str
    sample: Sample
    is_baseline: bool = False  # beside a sample that checkpoints are validated on


class Samples:
    """`sampled`: what the sampler of `run` drew; `full`: the full corpus, the same object where the sample is all of it.

    `baselines`: the rankings over `full` that are kept.
    """

    def __init__(self, run: Run, test_set: TestSet) -> None:
        """Raises SetupError where the sample cannot be drawn."""
        everything = _drawn(run, test_set, FullSampler())
        self.baselines = Baselines(run.settings.state_dir / "baselines" / everything.spec)
        named = run.sampler.fingerprint()
        if BASELINE in (named.get("run"), *named.get("pool", ())):
            place = run.settings.state_dir / "runs" / f"baseline-{everything.spec}.trec.gz"
            test_set = replace(test_set, baseline_run=_baseline_run(place, self.baselines, test_set))
        self.sampled = self.full = _drawn(run, test_set, run.sampler)
        if self.sampled.spec != everything.spec:
            self.full = replace(everything, is_baseline=True)


class Baselines:
    """Full-corpus rankings, a file for each checkpoint: documents only, by ordinal."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, checkpoint: Checkpoint, ranking: Ranking) -> None:
        """Called when a full-corpus ranking is finished."""
        path = self._path(checkpoint.digest)
        write_arrays(path, documents=ranking.documents.astype(np.int32), step=checkpoint.step)

    def ranking(self, digest: str) -> Ranking:
        """Scores are not kept: they are all 0. Raises OSError for a file that cannot be read, ValueError for a damaged one."""
        documents = read_arrays(self._path(digest), "documents")[0].astype(np.int64)
        return Ranking(documents=documents, scores=np.where(documents >= 0, 0, -np.inf).astype(np.float32))

    def write_run(self, digest: str, test_set: TestSet, path: Path) -> None:
        """The ranking in TREC's form, gzip; equal bytes for equal rankings. Raises as `ranking` does."""
        documents = self.ranking(digest).documents
        with (
            atomic_file(path) as stream,
            gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1, mtime=0, filename="") as file,
        ):
            for query, row in zip(test_set.query_ids, documents, strict=True):
                ids = test_set.corpus.ids(row[row >= 0])
                lines = (f"{query}\tQ0\t{document}\t{rank}\t{len(ids) - rank}\t{digest}\n" for rank, document in enumerate(ids))
                file.write("".join(lines).encode())

    def spread(self, digests: Collection[str], number: int) -> list[str]:
        """At most `number` of these that have one, from all over the training."""
        steps = {digest: step for digest, step in self.steps().items() if digest in digests}
        ordered = sorted(steps, key=lambda digest: (steps[digest], digest))
        places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), number)).astype(np.int64))
        return [ordered[place] for place in places]

    def as_of(self, digests: Collection[str]) -> float:
        """When the newest of these was kept, seconds since 1970; 0 without any."""
        return max((path.stat().st_mtime for digest in digests if (path := self._path(digest)).exists()), default=0.0)

    def steps(self) -> dict[str, int]:
        """Training step of each checkpoint that has a baseline, by digest; damaged files are left out."""
        found = {}
        for path in sorted(self._folder.glob("*.npz")):
            try:
                found[digest_of_name(path.stem)] = int(read_arrays(path, "step")[0])
            except (OSError, ValueError) as error:
                log.warning("%s: it is not used; delete it, or put back a copy", error)
        return found

    def _path(self, digest: str) -> Path:
        return self._folder / f"{name_of_digest(digest)}.npz"


def _baseline_run(path: Path, baselines: Baselines, test_set: TestSet) -> Path:
    """The earliest checkpoint's full-corpus ranking that is good enough, as a run: it finds something relevant among the first
    ten for `GOOD_ENOUGH` as many queries as the best that is kept. It is chosen once: the file stays, so that the sample is the
    same for whoever starts again.

    Raises SetupError where none is kept.
    """
    if path.exists():
        return path
    found: dict[str, int] = {}
    for digest in sorted(steps := baselines.steps(), key=lambda digest: (steps[digest], digest)):
        try:
            found[digest] = _num_found(baselines.ranking(digest).documents[:, :SHALLOW], test_set)
        except (OSError, ValueError) as error:
            log.warning("the full-corpus ranking of %s cannot be read (%s) and is not used", digest, error)
    if not found:
        raise SetupError(
            f"sampler: got {BASELINE!r} in the pool, but no full-corpus ranking of {test_set.name} is kept in this state_dir; "
            f"validate a checkpoint with sampler=full first (watch.mode=once), or leave {BASELINE} out"
        )
    chosen = next(digest for digest, number in found.items() if number >= GOOD_ENOUGH * max(found.values()))
    baselines.write_run(chosen, test_set, path)
    log.info("the pool has the full-corpus ranking of %s (step %d), kept in %s", chosen, steps[chosen], path)
    return path


def _num_found(documents: Int64, test_set: TestSet) -> int:
    """How many queries have a relevant document among theirs (num_queries, depth)."""
    return int((gains_retrieved(documents, test_set.qrels) > 0).any(axis=1).sum())


def _drawn(run: Run, test_set: TestSet, sampler: Sampler) -> SpecSample:
    settings = run.settings
    sample = sampler.draw(test_set, settings.seed, settings.state_dir / "runs")
    parts: dict[str, Any] = {
        "test_set": test_set.fingerprint,
        "sample": "full" if sample.is_full else sample.fingerprint,
        "encoder": dict(run.encoder.fingerprint()),
        "index": dict(run.index.fingerprint()),
        "metrics": list(settings.metrics),
        "top_k": settings.top_k,
    }
    if can_be_estimated(sample):  # values are corrected: by other constants they would be others
        parts["estimator"] = {"format": FORMAT, **asdict(PRIORS)}
    return SpecSample(spec=fingerprint(parts), sampler=str(sampler.fingerprint()["sampler"]), sample=sample)
