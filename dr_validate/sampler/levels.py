"""Parts of a sample at which a checkpoint may already be decided: the same design with a quarter and half of the budget."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from dr_validate.errors import SetupError
from dr_validate.values import Sample

SHARES: Mapping[int, float] = {1: 0.25, 2: 0.5, 3: 1.0}  # of the budget, by level
WHOLE = 3
Decide = Literal["never", "best"]
S = TypeVar("S")
log = logging.getLogger(__name__)


def draw_at_levels(sampler: S, rules: Mapping[str, Any], draw: Callable[[S], Sample]) -> dict[int, Sample]:
    """By level, shallow first: `draw` of `sampler` (which has a `fraction`) with a share of its budget; the whole one alone
    where `rules` say that there is nothing to decide. A level that is too small for its sampler is left out."""
    whole = draw(sampler)
    if not rules:
        return {WHOLE: whole}
    found = {}
    for level, share in SHARES.items():
        try:
            found[level] = whole if level == WHOLE else draw(_with(sampler, share))
        except SetupError:  # too small: whatever else may be wrong, the whole sample has met it
            log.info("no early decision at %g of the documents, which are too few for this sampler", share)
    return found


def early_rules(precision: float | None, decide: Decide) -> dict[str, Any]:
    """JSON values for the spec of what ends a checkpoint early, empty where nothing does."""
    rules: dict[str, Any] = {} if precision is None else {"precision": precision}
    return rules if decide == "never" else {**rules, "decide": decide}


def _with(sampler: Any, share: float) -> Any:
    return dataclasses.replace(sampler, fraction=sampler.fraction * share)
