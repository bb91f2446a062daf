"""Whether the sample judges these checkpoints as the whole corpus does."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import field_validator

from dr_validate.component import component
from dr_validate.values import Agreement, Float64, Report

_EVERY = re.compile(r"every:([1-9][0-9]*)")


@component
class AgainstFull:
    """Compares sampled values with full-corpus ones; `baseline` says when the latter are made.

    `idle`: while nothing is waiting; `always`: for each checkpoint; `every:N`: for each N-th, the first included; `off`: never.
    """

    baseline: str = "idle"

    @field_validator("baseline")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("idle", "always", "off") and not _EVERY.fullmatch(value):
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
        """See `Fidelity.compare`. Every supported metric is better when higher.

        bias = mean(sampled - full); rmse its root mean square; regret = what is lost on the full corpus by taking the
        checkpoint that is best on the sample (the worst of them where several tie); Kendall's tau-b is None where one side
        is constant.
        """
        on_sample, on_full = _values(sampled, metric), _values(full, metric)
        digests = [digest for digest in on_sample if digest in on_full]
        if len(digests) < 2:
            return None
        x = np.array([on_sample[digest] for digest in digests])
        y = np.array([on_full[digest] for digest in digests])
        return Agreement(
            metric=metric,
            checkpoints=len(digests),
            kendall_tau=_kendall_tau_b(x, y),
            rmse=float(np.sqrt(np.mean((x - y) ** 2))),
            bias=float(np.mean(x - y)),
            regret=float(y.max() - y[x == x.max()].min()),
        )


def _values(reports: Sequence[Report], metric: str) -> Mapping[str, float]:
    """By checkpoint digest; the last Report counts."""
    return {r.checkpoint.digest: r.metrics[metric].value for r in reports if r.status == "done" and metric in r.metrics}


def _kendall_tau_b(x: Float64, y: Float64) -> float | None:
    if np.all(x == x[0]) or np.all(y == y[0]):
        return None
    from scipy.stats import kendalltau

    tau = float(kendalltau(x, y, variant="b").statistic)
    return None if math.isnan(tau) else tau
