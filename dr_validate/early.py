"""When a part of the sample already says enough of a checkpoint; opt-in, by `sampler.precision` and `sampler.decide`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from dr_validate.estimates import Outcome
from dr_validate.values import Sample, TestSet

SURE = 0.05  # Holm-corrected p under which a difference counts


@runtime_checkable
class EarlySampler(Protocol):
    """A sampler with known odds that can be drawn at levels: nested parts of its budget."""

    @property
    def precision(self) -> float | None:
        """Half width of the 95% interval of the first metric that is good enough."""
        ...

    @property
    def decide(self) -> Literal["never", "best"]:
        """`best`: a checkpoint that is surely worse than the best so far needs no more documents."""
        ...

    def draw_levels(self, test_set: TestSet, seed: int, cache: Path) -> Mapping[int, Sample]:
        """Samples by level, shallow first; the deepest is that of `draw`."""
        ...

    def rules(self) -> Mapping[str, Any]:
        """JSON values for the spec beside the sample; empty where everything is off."""
        ...


def ends_early(sampler: object) -> bool:
    """Whether parts of the sample are to be looked at before all of it."""
    return isinstance(sampler, EarlySampler) and (sampler.precision is not None or sampler.decide == "best")


def reason_to_stop(sampler: object, outcome: Outcome) -> str | None:
    """Why this checkpoint needs no more documents: `worse than the best` or `precision`; None if it does.

    The intervals are those of one look. A second and third look make a wrong `worse than the best` more probable, and stopping
    where an interval is narrow prefers those that came out too narrow: neither is corrected for.
    """
    assert isinstance(sampler, EarlySampler)
    if sampler.decide == "best" and _is_surely_worse(outcome):
        return "worse than the best"
    first = next(iter(outcome.metrics.values()))
    if sampler.precision is not None and (first.high - first.low) / 2 <= sampler.precision:
        return "precision"
    return None


def _is_surely_worse(outcome: Outcome) -> bool:
    """Than whichever checkpoint is best, of those that met the same level."""
    differences = outcome.notes.get("estimate", {}).get("differences", {}).values()
    against_best = min(differences, key=lambda difference: float(difference["value"]), default=None)
    return against_best is not None and against_best["high"] < 0 and against_best["p"] < SURE
