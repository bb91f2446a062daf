"""Whether the sample judges these checkpoints as the whole corpus does."""

import re
from collections.abc import Sequence

from pydantic import field_validator

from dr_validate.component import component
from dr_validate.fidelity.comparison import compare
from dr_validate.values import Agreement, Report

LEAST_COMPARED = 2  # checkpoints
_EVERY = re.compile(r"every:([1-9][0-9]*)")


@component
class AgainstFull:
    """Compares sampled values with full-corpus ones; `baseline` says when the latter are made.

    `idle`: while nothing is waiting; `always`: for each checkpoint; `every:N`: for each N-th, the first included; `off`: never.
    """

    baseline: str = "idle"

    @field_validator("baseline", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        value = "off" if value is False else value  # what a YAML file makes of the word
        if value not in ("idle", "always", "off") and not _EVERY.fullmatch(str(value)):
            raise ValueError("expected idle, always, every:N (N from 1 on, e.g. every:5) or off")
        return value

    def runs_in(self, mode: str) -> bool:
        """See `Fidelity.runs_in`: a run that ends by itself does not wait for what was to be made while idle."""
        return self.baseline != "off" and (self.baseline != "idle" or mode == "follow")

    def wants_baseline(self, place: int) -> bool:
        """See `Fidelity.wants_baseline`."""
        every = _EVERY.fullmatch(self.baseline)
        return self.baseline != "off" and (every is None or place % int(every[1]) == 0)

    def compare(self, sampled: Sequence[Report], full: Sequence[Report], metric: str) -> Agreement | None:
        """See `Fidelity.compare`."""
        found = compare(sampled, full, metric)
        if found is None or found.checkpoints < LEAST_COMPARED:
            return None
        return Agreement(
            metric=metric,
            checkpoints=found.checkpoints,
            kendall_tau=found.tau,
            rmse=found.rmse,
            bias=found.bias,
            regret=found.regret,
        )
