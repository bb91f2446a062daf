"""Encode and search on this machine: slices of documents through the model into the running top-k."""

from collections.abc import Sequence

from pydantic import Field

from dr_validate.component import component
from dr_validate.engine.alone import Alone
from dr_validate.engine.share import Share
from dr_validate.engine.shared import Shared
from dr_validate.messages import Team
from dr_validate.stages import Control, Index, Model, Ranked, Workload

SLICE = 2048
SLICE_THAT_GIVES_WAY = 256  # on a CPU, where it takes a second, and a fifth longer than as a part of a larger one


@component
class LocalEngine:
    """One device in this process, or several with a process each, which share the slices of a checkpoint.

    Unfinished work is kept every `save_every_s` and when it is told to stop. `slice_documents` is how many documents are
    encoded between two looks at the control: enough for batches of equal length, few enough to stop soon. None: 2,048, and
    256 where a baseline on a CPU is to give way soon.
    """

    save_every_s: float = Field(default=30, ge=0)
    slice_documents: int | None = Field(default=None, ge=1)

    def rank(self, model: Model, workload: Workload, index: Index, control: Control, device: str) -> Ranked:
        """See `Engine.rank`. Raises Interrupted when told to stop; the next call goes on from there, to the same ranking."""
        share = Share(model, workload, index, device)
        return Alone(share, workload, control, self.save_every_s).run(index, self.slice_size([device], workload, index))

    def share(self, model: Model, workload: Workload, index: Index, device: str) -> Share:
        """See `Engine.share`."""
        return Share(model, workload, index, device)

    def rank_shared(self, team: Team, workload: Workload, index: Index, control: Control) -> Ranked:
        """See `Engine.rank_shared`. Raises as `rank` does, and what a member of the team raised."""
        return Shared(team, workload, control, self.save_every_s).run(index, self.slice_size(team.names, workload, index))

    def slice_size(self, devices: Sequence[str], workload: Workload, index: Index) -> int:
        """Documents between two looks at the control."""
        on_cpu = all(device.startswith("cpu") for device in devices)
        # The ranking of an approximate index depends on the slices: they are the same wherever and whyever it is made.
        is_small = on_cpu and workload.preemptible and not index.fingerprint()
        return self.slice_documents or (SLICE_THAT_GIVES_WAY if is_small else SLICE)
