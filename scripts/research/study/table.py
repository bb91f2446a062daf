"""What a study found, as markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dr_validate.values import Float64
from scripts.research.study.draws import Drawn
from scripts.research.study.strategies import Strategy
from scripts.research.study.summary import Intervals, Levels, intervals, levels

LEVELS = ["budget", "strategy", "documents", "bias", "worst checkpoint", "RMSE", "difference RMSE", "tau", "regret"]
INTERVALS = ["budget", "strategy", "levels covered", "worst checkpoint", "half width", "differences covered", "worst pair"]
INTERVALS += ["half width", "pairs decided", "of those wrong", "H", "no correction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The draws of one strategy at one budget, or why there are none."""

    budget: float
    strategy: Strategy
    draws: Sequence[Drawn] = ()
    refused: str = ""


def tables(cells: Sequence[Cell], truth: Mapping[str, Float64]) -> str:
    """Two tables for each metric; `truth` is (num_checkpoints,) by metric."""
    parts = []
    for metric, exact in truth.items():
        drawn = [cell for cell in cells if cell.draws]
        parts.append(f"## {metric}\n\nOn the full corpus: {', '.join(f'{value:.4f}' for value in exact)}\n")
        parts.append(markdown(LEVELS, [_level_row(cell, metric, exact) for cell in drawn]))
        corrected = [cell for cell in drawn if cell.strategy.corrected]
        if corrected:
            parts.append(markdown(INTERVALS, [_interval_row(cell, metric, exact) for cell in corrected]))
    refused = [f"- {cell.strategy.name} at {cell.budget:.3%}: {cell.refused}\n" for cell in cells if cell.refused]
    if refused:
        parts.append("Refused:\n\n" + "".join(refused))
    return "\n".join(parts)


def _level_row(cell: Cell, metric: str, truth: Float64) -> list[str]:
    documents = np.mean([draw.num_documents for draw in cell.draws])
    found = _levels(cell, metric, truth)
    numbers = [_signed(found.bias), _signed(found.worst_bias), _plain(found.rmse), _plain(found.difference_rmse)]
    return [_budget(cell), cell.strategy.name, f"{documents:,.0f}", *numbers, _plain(found.tau, 3), _plain(found.regret)]


def _interval_row(cell: Cell, metric: str, truth: Float64) -> list[str]:
    found: Intervals = intervals([draw.corrected[metric] for draw in cell.draws], truth)
    of_levels = [_plain(found.coverage, 3), _plain(found.worst_checkpoint, 2), _plain(found.half_width)]
    of_pairs = [_plain(found.difference_coverage, 3), _plain(found.worst_pair, 2), _plain(found.difference_half_width)]
    counted = [_plain(found.decided, 2), _plain(found.wrong), _plain(found.outranking, 1), f"{found.uncorrected:.0%}"]
    return [_budget(cell), cell.strategy.name, *of_levels, *of_pairs, *counted]


def _levels(cell: Cell, metric: str, truth: Float64) -> Levels:
    if not cell.strategy.corrected:
        return levels(np.stack([draw.naive[metric] for draw in cell.draws]), truth)
    made = [draw.corrected[metric] for draw in cell.draws]
    return levels(np.stack([each.value for each in made]), truth, np.stack([each.difference for each in made]))


def _budget(cell: Cell) -> str:
    return f"{100 * cell.budget:g}%"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _plain(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"
