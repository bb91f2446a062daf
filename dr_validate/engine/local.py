"""Encode and search on one device: slices of documents through the model into the running top-k."""

import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from pydantic import Field

from dr_validate.component import component
from dr_validate.devices import hold, resolve_device
from dr_validate.engine.slices import Progress, Share, cut, ranking_of
from dr_validate.errors import Interrupted
from dr_validate.stages import Control, Index, Model, Ranked, Ranker, Workload

SLICE = 2048
SLICE_ON_A_GPU = 8192  # a third of a second there, where a smaller one does not fill it
SLICE_THAT_GIVES_WAY = 256  # on a CPU, where it takes a second, and a fifth longer than as a part of a larger one


@component
class LocalEngine:
    """One device in this process.

    Unfinished work is kept every `save_every_s` and when it is told to stop. `slice_documents` is how many documents are
    encoded between two looks at the control: enough for batches of equal length, few enough to stop soon. None: 2,048, 8,192
    on GPUs, and 256 where a baseline on a CPU is to give way soon.
    """

    save_every_s: float = Field(default=30, ge=0)
    slice_documents: int | None = Field(default=None, ge=1)

    def find_device(self, wanted: str) -> str:
        """See `Engine.find_device`: one of this machine. Imports torch."""
        return resolve_device(wanted)

    def problems_of_many(self) -> Sequence[str]:
        """See `Engine.problems_of_many`: they take turns on the device."""
        return ()

    def describe(self, device: str) -> str:
        """See `Engine.describe`."""
        return ""

    def start(self, device: str) -> AbstractContextManager[Ranker]:
        """See `Engine.start`."""
        hold(device)
        return contextlib.nullcontext(self)

    def clean_up(self) -> None:
        """See `Engine.clean_up`: progress files are for the next start."""

    def rank(self, model: Model, workload: Workload, index: Index, control: Control, device: str) -> Ranked:
        """See `Ranker.rank`. Raises Interrupted when told to stop; the next call goes on from there, to the same ranking."""
        import torch

        size = slice_size(self.slice_documents, workload, index, device)
        slices = cut(workload.documents, size)
        progress = Progress(workload, index, slices)
        with contextlib.closing(Share(model, workload, index, device)) as share:
            queries = []
            for piece in cut(workload.queries, size):
                control.check()
                queries.append(share.queries.vectors(piece))
            finished, top = progress.load()
            share.open(torch.cat(queries), top)
            done, num_saved, saved_at = set(finished), len(finished), time.monotonic()
            todo, count = [piece for piece in slices if piece.start not in done], progress.count(done)
            try:
                for piece, following in zip(todo, [*todo[1:], None], strict=False):  # killed at the very end, nothing is to do
                    control.check()
                    share.add(piece, following)
                    done.add(piece.start)
                    count += len(piece)
                    control.progress("encoding", count, len(workload.ordinals))
                    if time.monotonic() - saved_at >= self.save_every_s:
                        progress.save(done, share.top())
                        num_saved, saved_at = len(done), time.monotonic()
            except Interrupted:
                if len(done) > num_saved:
                    progress.save(done, share.top())
                raise
            ranking = ranking_of(share.top(), workload)
        progress.clear()
        return Ranked(ranking=ranking, encoded_now=share.documents.encoded_now, seconds=share.seconds)


def slice_size(wanted: int | None, workload: Workload, index: Index, device: str) -> int:
    """Documents between two looks at the control; the same in every engine, so that vectors come from the same batches."""
    if wanted or index.fingerprint():
        # The ranking of an approximate index depends on the slices: they are the same wherever and whyever it is made.
        return wanted or SLICE
    if device.startswith("cuda"):
        return SLICE_ON_A_GPU
    return SLICE_THAT_GIVES_WAY if workload.preemptible else SLICE
