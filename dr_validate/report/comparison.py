"""Which strategy has the smallest error, in words; what is compared is computed in `fidelity/comparison.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

from dr_validate.fidelity.comparison import Comparison
from dr_validate.report.words import count, listed, number

EQUAL_COST = 0.02  # strategies cost the same where their numbers of documents differ by no more than this share


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A sampled strategy that may be compared with others; `documents`: encoded for one checkpoint, the mean."""

    name: str
    documents: float
    comparison: Comparison


def smallest_errors(candidates: Sequence[Candidate]) -> list[str]:
    """A sentence on each group of strategies that cost the same and know the full-corpus values of the same checkpoints.

    All are of one test set, metric and training. Nothing is said of unequal cost: more documents make smaller errors.
    """
    known = [one for one in candidates if one.comparison.checkpoints > 1]
    groups: list[list[Candidate]] = []
    for one in sorted(known, key=lambda one: one.documents):
        for group in groups:
            same = one.comparison.digests == group[0].comparison.digests
            if same and one.documents <= (1 + EQUAL_COST) * group[0].documents:
                group.append(one)
                break
        else:
            groups.append([one])
    return [_smallest_error(group) for group in groups if len(group) > 1]


def _smallest_error(group: Sequence[Candidate]) -> str:
    least = min(one.comparison.rmse for one in group)
    names = [one.name for one in group if one.comparison.rmse == least]
    fewest, most = (f"{round(end(one.documents for one in group)):,}" for end in (min, max))
    size = f"{fewest} documents" if fewest == most else f"{fewest} to {most} documents"
    has = "has" if len(names) == 1 else "have"
    checkpoints = count(group[0].comparison.checkpoints, "checkpoint")
    error = f"RMSE {number(least, 3)} over {checkpoints}"
    return f"Of {len(group)} strategies with {size} for a checkpoint {listed(names)} {has} the smallest error ({error})."
