"""A ranking on one device, in this process."""

import time

import numpy as np

from dr_validate.engine.merge import ranking_of
from dr_validate.engine.progress import Progress
from dr_validate.engine.share import Share
from dr_validate.engine.slices import cut
from dr_validate.errors import Interrupted
from dr_validate.stages import Control, Index, Ranked, Workload
from dr_validate.values import Float32


class Alone:
    """All slices through one `Share`, the next one when the control allows it."""

    def __init__(self, share: Share, workload: Workload, control: Control, save_every_s: float) -> None:
        self._share, self._workload, self._control, self._save_every_s = share, workload, control, save_every_s

    def run(self, index: Index, slice_documents: int) -> Ranked:
        """See `Engine.rank`."""
        work, share = self._workload, self._share
        slices = cut(work.documents, slice_documents)
        progress = Progress(work, index, slices)
        queries = self._query_vectors(slice_documents)
        unfinished = progress.load()
        share.open(queries, unfinished.top)
        done = set(unfinished.done)
        count, num_saved, saved_at = progress.count(done), len(done), time.monotonic()
        try:
            for piece in slices:
                if piece.start in unfinished.done:
                    continue
                self._control.check()
                share.add(piece)
                done.add(piece.start)
                count += len(piece)
                self._control.progress("encoding", count, len(work.ordinals))
                if time.monotonic() - saved_at >= self._save_every_s:
                    progress.save(done, share.top())
                    num_saved, saved_at = len(done), time.monotonic()
        except Interrupted:
            if len(done) > num_saved:
                progress.save(done, share.top())
            raise
        ranking = ranking_of(share.top(), work)
        progress.clear()
        return Ranked(ranking=ranking, encoded_now=share.encoded_now, seconds=share.seconds)

    def _query_vectors(self, slice_documents: int) -> Float32:
        vectors = []
        for piece in cut(self._workload.queries, slice_documents):
            self._control.check()
            vectors.append(self._share.query_vectors(piece))
        return np.concatenate(vectors)
