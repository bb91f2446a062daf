"""The file by which an interrupted ranking goes on: the running top-k, and of which slices it is."""

import hashlib
import json
import logging
from collections.abc import Sequence, Set

import numpy as np

from dr_validate.engine.merge import searched_k
from dr_validate.engine.slices import Slice
from dr_validate.files import read_arrays, write_arrays
from dr_validate.stages import Index, Workload
from dr_validate.values import TopK

log = logging.getLogger(__name__)


class Progress:
    """The file of one workload, whose documents are cut into `slices`. On how many devices the work began plays no part."""

    def __init__(self, workload: Workload, index: Index, slices: Sequence[Slice]) -> None:
        self._path, self._slices = workload.progress_file, slices
        # Which weights and texts these are is in the file's name: the vectors' bits depend on the batches they were in.
        key = {
            "digest": hashlib.sha256(workload.ordinals.tobytes() + workload.own_documents.tobytes()).hexdigest(),
            "top_k": searched_k(workload),
            "slices": hashlib.sha256(str([(piece.start, piece.stop) for piece in slices]).encode()).hexdigest(),
            "index": dict(index.fingerprint()),
        }
        self._key = json.dumps(key, sort_keys=True)

    def save(self, done: Set[int], top: TopK) -> None:
        """Write atomically that the slices which begin at `done` are finished and in `top`."""
        starts = np.array(sorted(done), dtype=np.int64)
        write_arrays(self._path, key=self._key, done=starts, documents=top.documents, scores=top.scores)

    def load(self) -> tuple[frozenset[int], TopK | None]:
        """The slices of this very work that are done, by their first position, and the best documents of them; nothing where
        there is no file, or a damaged or foreign one, which is logged."""
        try:
            key, starts, documents, scores = read_arrays(self._path, "key", "done", "documents", "scores")
            done, top = frozenset(starts.tolist()), TopK(documents=documents, scores=scores)
        except FileNotFoundError:
            return frozenset(), None
        except (OSError, ValueError, TypeError, AssertionError) as error:
            log.warning("%s cannot be used (%s): encoding starts from the first document", self._path, error)
            return frozenset(), None
        if str(key) != self._key:
            log.warning("%s belongs to other work: encoding starts from the first document", self._path)
            return frozenset(), None
        log.info("ranking goes on after %d of %d documents", self.count(done), sum(map(len, self._slices)))
        return done, top

    def count(self, done: Set[int]) -> int:
        """Documents in these slices."""
        return sum(len(piece) for piece in self._slices if piece.start in done)

    def clear(self) -> None:
        """The work is finished."""
        self._path.unlink(missing_ok=True)
