"""Encode and search on one device: slices of documents through the model into the running top-k."""

import hashlib
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from dr_validate.component import component
from dr_validate.engine import progress
from dr_validate.engine.texts import Texts
from dr_validate.errors import Interrupted
from dr_validate.stages import Control, Index, Model, Ranked, Search, Workload
from dr_validate.values import Float32, Ranking, TopK

log = logging.getLogger(__name__)


@component
class LocalEngine:
    """One process, one device. Unfinished work is kept every `save_every_s` and when it is told to stop.

    `slice_documents` is how many documents are encoded between two looks at the control: enough for batches of equal
    length, few enough to stop soon.
    """

    save_every_s: float = Field(default=30, ge=0)
    slice_documents: int = Field(default=2048, ge=1)

    def rank(self, model: Model, workload: Workload, index: Index, control: Control, device: str) -> Ranked:
        """See `Engine.rank`. Raises Interrupted when told to stop; the next call goes on from there, to the same ranking."""
        return _Ranking(self, model, workload, control).run(index, device)


class _Ranking:
    def __init__(self, engine: LocalEngine, model: Model, workload: Workload, control: Control) -> None:
        self._engine = engine
        self._workload = work = workload
        self._control = control
        every_query = np.arange(len(work.own_documents))
        self._queries = Texts("query", work.queries, every_query, work.vectors, model)
        self._documents = Texts("document", work.documents, work.ordinals, work.vectors, model)
        # The document that is the query itself takes a place until it is dropped.
        self._searched_k = work.top_k + int(np.any(work.own_documents >= 0))
        self._search_s = 0.0

    def run(self, index: Index, device: str) -> Ranked:
        work, file, size = self._workload, self._workload.progress_file, self._engine.slice_documents
        queries = self._query_vectors(size)
        search = index.open(queries, self._searched_k, work.tie_rank, device)
        key = self._key(index, queries)
        start = self._restore(search, key)
        done = saved = start
        saved_at = time.monotonic()
        try:
            for number, part in self._documents.slices(size, start):
                self._control.check()
                self._add(search, number, part)
                done = part.stop
                self._control.progress("encode", done, len(work.ordinals))
                if time.monotonic() - saved_at >= self._engine.save_every_s:
                    progress.save(file, key, done, search.top())
                    saved, saved_at = done, time.monotonic()
        except Interrupted:
            if done > saved:
                progress.save(file, key, done, search.top())
            raise
        ranking = _ranking_of(search.top(), work)
        file.unlink(missing_ok=True)
        return Ranked(ranking=ranking, encoded_now=self._documents.encoded_now, seconds=self._seconds())

    def _query_vectors(self, size: int) -> Float32:
        vectors = []
        for number, part in self._queries.slices(size):
            self._control.check()
            vectors.append(self._queries.vectors(number, part))
        return np.concatenate(vectors)

    def _restore(self, search: Search, key: Mapping[str, Any]) -> int:
        unfinished = progress.load(self._workload.progress_file, key)
        if unfinished is None:
            return 0
        done, top = unfinished
        search.restore(top)
        log.info("ranking goes on after %d of %d documents", done, len(self._workload.ordinals))
        return done

    def _add(self, search: Search, number: int, part: slice) -> None:
        vectors = self._documents.vectors(number, part)
        began = time.monotonic()
        search.add(vectors, self._workload.ordinals[part])
        self._search_s += time.monotonic() - began

    def _seconds(self) -> Mapping[str, float]:
        sides = (self._queries.seconds, self._documents.seconds)
        return {phase: sum(seconds[phase] for seconds in sides) for phase in sides[0]} | {"search": self._search_s}

    def _key(self, index: Index, queries: Float32) -> Mapping[str, Any]:
        # Which weights and texts these are is in the file's name: the vectors' bits depend on the batches they were in.
        work = self._workload
        digest = hashlib.sha256()
        for array in (work.ordinals, work.own_documents):
            digest.update(np.ascontiguousarray(array).tobytes())
        blocks = [work.documents.positions(number).stop for number in range(len(work.documents))]
        return {
            "digest": digest.hexdigest(),
            "top_k": self._searched_k,
            "blocks": hashlib.sha256(str((self._engine.slice_documents, blocks)).encode()).hexdigest(),
            "index": dict(index.fingerprint()),
            "queries": list(queries.shape),
        }


def _ranking_of(top: TopK, workload: Workload) -> Ranking:
    """Own documents dropped, everything below them one place up, cut to top_k."""
    own = (top.documents == workload.own_documents[:, None]) & (top.documents >= 0)
    order = np.argsort(own, axis=1, kind="stable")[:, : workload.top_k]
    documents = np.take_along_axis(top.documents, order, axis=1)
    return Ranking(documents=documents, scores=np.take_along_axis(top.scores, order, axis=1))
