"""Encode and search on one device: slices of documents through the model into the running top-k."""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import Field

from dr_validate.component import component
from dr_validate.engine import progress
from dr_validate.errors import Interrupted
from dr_validate.stages import Control, Index, Model, Ranked, Search, Workload
from dr_validate.values import Float32, Int64, Ranking, TokenBlock, TopK

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
        self._model = model
        self._workload = workload
        self._control = control
        # The document that is the query itself takes a place until it is dropped.
        self._searched_k = workload.top_k + int(np.any(workload.own_documents >= 0))
        self._seconds = {"encode": 0.0, "search": 0.0}

    def run(self, index: Index, device: str) -> Ranked:
        work, file = self._workload, self._workload.progress_file
        search = index.open(self._encode_queries(), self._searched_k, work.tie_rank, device)
        key = self._key(index)
        start = saved = 0
        if unfinished := progress.load(file, key):
            start, top = unfinished
            saved = start
            search.restore(top)
            log.info("ranking goes on after %d of %d documents", start, len(work.ordinals))
        done, saved_at = start, 0.0
        try:
            for part, tokens in self._slices(start):
                self._control.check()
                self._add(search, tokens, work.ordinals[part])
                done = part.stop
                self._control.progress("encode", done, len(work.ordinals))
                if self._seconds["encode"] - saved_at >= self._engine.save_every_s:
                    progress.save(file, key, done, search.top())
                    saved, saved_at = done, self._seconds["encode"]
        except Interrupted:
            if done > saved:
                progress.save(file, key, done, search.top())
            raise
        ranking = _ranking_of(search.top(), work)
        file.unlink(missing_ok=True)
        return Ranked(ranking=ranking, encoded_now=len(work.ordinals) - start, seconds=self._seconds)

    def _encode_queries(self) -> Float32:
        queries, size = self._workload.queries, self._engine.slice_documents
        vectors = []
        for start in range(0, len(queries), size):
            self._control.check()
            began = time.monotonic()
            vectors.append(self._model.encode(_cut(queries, start, min(start + size, len(queries))), "query"))
            self._seconds["encode"] += time.monotonic() - began
        return np.concatenate(vectors)

    def _slices(self, done: int) -> Iterator[tuple[slice, TokenBlock]]:
        """Positions in the sample and their tokens, from the first position that is not done; a cut never crosses a block."""
        for number in range(len(self._workload.documents)):
            block = self._workload.documents.positions(number)
            if block.stop <= done:
                continue
            self._control.check()
            tokens = self._workload.documents.block(number)
            for start in range(block.start, block.stop, self._engine.slice_documents):
                stop = min(start + self._engine.slice_documents, block.stop)
                if stop > done:
                    yield slice(start, stop), _cut(tokens, start - block.start, stop - block.start)

    def _add(self, search: Search, tokens: TokenBlock, ordinals: Int64) -> None:
        began = time.monotonic()
        vectors = self._model.encode(tokens, "document")
        encoded = time.monotonic()
        search.add(vectors, ordinals)
        self._seconds["encode"] += encoded - began
        self._seconds["search"] += time.monotonic() - encoded

    def _key(self, index: Index) -> Mapping[str, Any]:
        work = self._workload
        digest = hashlib.sha256()
        for array in (work.ordinals, work.own_documents, work.queries.ids, work.queries.offsets):
            digest.update(np.ascontiguousarray(array).tobytes())
        blocks = [work.documents.positions(number).stop for number in range(len(work.documents))]
        return {
            "digest": digest.hexdigest(),
            "top_k": self._searched_k,
            "blocks": hashlib.sha256(str((self._engine.slice_documents, blocks)).encode()).hexdigest(),
            "index": dict(index.fingerprint()),
            "dim": self._model.dim,
        }


def _cut(tokens: TokenBlock, start: int, stop: int) -> TokenBlock:
    first, last = int(tokens.offsets[start]), int(tokens.offsets[stop])
    return TokenBlock(ids=tokens.ids[first:last], offsets=tokens.offsets[start : stop + 1] - first)


def _ranking_of(top: TopK, workload: Workload) -> Ranking:
    """Own documents dropped, everything below them one place up, cut to top_k."""
    own = (top.documents == workload.own_documents[:, None]) & (top.documents >= 0)
    order = np.argsort(own, axis=1, kind="stable")[:, : workload.top_k]
    documents = np.take_along_axis(top.documents, order, axis=1)
    return Ranking(documents=documents, scores=np.take_along_axis(top.scores, order, axis=1))
