"""The file by which an interrupted ranking goes on: the running top-k, and of which slices it is."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_validate.engine.merge import searched_k
from dr_validate.engine.slices import Slice
from dr_validate.files import atomic_file
from dr_validate.stages import Index, Workload
from dr_validate.values import TopK

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """What an earlier call has done: slices by their first position, and the best documents of them."""

    done: frozenset[int] = frozenset()
    top: TopK | None = None


class Progress:
    """The file of one workload, whose documents are cut into `slices`. On how many devices the work began plays no part."""

    def __init__(self, workload: Workload, index: Index, slices: Sequence[Slice]) -> None:
        self._path = workload.progress_file
        self._key = _key(workload, index, slices)
        self._slices = slices

    def save(self, done: Set[int], top: TopK) -> None:
        """Write atomically that the slices which begin at `done` are finished and in `top`."""
        starts = np.array(sorted(done), dtype=np.int64)
        with atomic_file(self._path) as stream:
            # Arrays and one JSON string: numpy needs no pickles for either.
            np.savez(stream, key=np.array(self._key), done=starts, documents=top.documents, scores=top.scores)

    def load(self) -> Unfinished:
        """What is done of this very work; nothing where there is no file, or a damaged or foreign one, which is logged."""
        path = self._path
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                found, done = str(file["key"]), frozenset(file["done"].tolist())
                top = TopK(documents=file["documents"], scores=file["scores"])
        except FileNotFoundError:
            return Unfinished()
        except (OSError, ValueError, KeyError, TypeError, EOFError, AssertionError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s: %s): encoding starts from the first document", path, type(error).__name__, error)
            return Unfinished()
        if found != self._key:
            log.warning("%s belongs to other work: encoding starts from the first document", path)
            return Unfinished()
        log.info("ranking goes on after %d of %d documents", self.count(done), sum(map(len, self._slices)))
        return Unfinished(done=done, top=top)

    def count(self, done: Set[int]) -> int:
        """Documents in these slices."""
        return sum(len(piece) for piece in self._slices if piece.start in done)

    def clear(self) -> None:
        """The work is finished."""
        self._path.unlink(missing_ok=True)


def _key(workload: Workload, index: Index, slices: Sequence[Slice]) -> str:
    # Which weights and texts these are is in the file's name: the vectors' bits depend on the batches they were in.
    digest = hashlib.sha256()
    for array in (workload.ordinals, workload.own_documents):
        digest.update(np.ascontiguousarray(array).tobytes())
    key: Mapping[str, Any] = {
        "digest": digest.hexdigest(),
        "top_k": searched_k(workload),
        "slices": hashlib.sha256(str([(piece.start, piece.stop) for piece in slices]).encode()).hexdigest(),
        "index": dict(index.fingerprint()),
    }
    return json.dumps(key, sort_keys=True)
