"""Full-corpus rankings that are kept: samples are held against them, and estimates are calibrated on them."""

import gzip
import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np

from dr_validate.files import atomic_file, read_arrays, write_arrays
from dr_validate.values import Checkpoint, Ranking, TestSet

log = logging.getLogger(__name__)


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
                found[path.stem.replace("-", ":", 1)] = int(read_arrays(path, "step")[0])
            except (OSError, ValueError) as error:
                log.warning("%s: it is not used; delete it, or put back a copy", error)
        return found

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest.replace(':', '-')}.npz"
