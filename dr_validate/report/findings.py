"""What a tracker shows of one training under one spec beside its rows, for those who never open the page: the verdict, and
tables of plain numbers that compare samples with the full corpus.

The other tables in W&B: of checkpoints and queries `tracker/rows.py`, of a sweep `tracker/wandb.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dr_validate.fidelity.against_full import holds, paired
from dr_validate.ledger.findings import MAX_ROWS, Cell, Findings, Table
from dr_validate.ledger.ledger import Ledger
from dr_validate.report.gather import Movement, Section, Strategy, gather, movement
from dr_validate.report.verdict import change_in_words, verdict
from dr_validate.values import Report

PAIRS = ("step", "checkpoint", "metric", "sampled", "low", "high", "naive", "full", "difference", "inside")
STRATEGIES = (
    *("strategy", "spec", "metric", "documents", "share", "median_s", "validated", "checkpoints"),
    *("bias", "rmse", "tau", "tau_low", "tau_high", "regret", "covered", "with_interval"),
)
FIDELITY = ("step", "checkpoint", "metric", "checkpoints", "kendall_tau", "rmse", "bias", "regret")


def findings(ledger: Ledger, names: Mapping[str, Any], training_run: str) -> Findings:
    """Of the checkpoints of `training_run` under the spec of `names`, whose own `training_run` has those that do not say."""
    section = _with_own_first(gather(ledger, names["full_spec"]), names, training_run)
    if section is None:
        return Findings()
    moved = movement(section, ledger.path.parent)
    own = [strategy for strategy in section.strategies if strategy.spec in (names["spec"], names["full_spec"])]
    tables = {
        "sampled_against_full": pairs_table(section, own),
        "error_and_cost": error_and_cost_table(section),
        "fidelity": fidelity_table([report for strategy in own for report in strategy.done]),
    }
    words = "" if moved is None else f"{_between(moved)}. {change_in_words(moved)}"
    return Findings(verdict=verdict(section, moved).text, queries=words, tables=tables)


def _between(moved: Movement) -> str:
    before, after = moved.before.checkpoint.step, moved.after.checkpoint.step
    return f"{moved.metric}, {moved.strategy.name}, from step {before:,} to {after:,}"


def _with_own_first(sections: Sequence[Section], names: Mapping[str, Any], training_run: str) -> Section | None:
    """With the strategy of this spec before the others: it is the one that the verdict is about."""
    by_run = {section.run: section for section in sections}
    found = by_run.get(training_run, by_run.get("") if training_run == names["training_run"] else None)
    if found is None:
        return None
    sampled = sorted(found.sampled, key=lambda strategy: strategy.spec != names["spec"])
    return replace(found, sampled=tuple(sampled))


def pairs_table(section: Section, strategies: Sequence[Strategy]) -> Table:
    """A row per checkpoint and metric with a sampled and a full-corpus value. `inside`: whether the interval holds the latter;
    None where there is no interval."""
    rows: list[list[Cell]] = []
    full = section.full.done if section.full else ()
    for strategy in (strategy for strategy in strategies if strategy is not section.full):
        for metric in section.metrics:
            for report, exact in paired(strategy.done, full, metric)[-MAX_ROWS:]:
                estimate, value = report.metrics[metric], exact.metrics[metric].value
                made: list[Cell] = [report.checkpoint.step, report.checkpoint.label, metric]
                known = [estimate.value, estimate.low, estimate.high, estimate.naive, value, estimate.value - value]
                rows.append([*made, *known, holds(report, metric, value)])
    return Table(columns=PAIRS, rows=rows)


def error_and_cost_table(section: Section) -> Table:
    """A row per metric and strategy in the state_dir, the full corpus last: what it costs, and how far its values are off.

    No rows before a sampled checkpoint is done. The columns are those of the page, bounds of intervals and counts apart.
    """
    if not any(strategy.done for strategy in section.sampled):
        return Table(columns=STRATEGIES, rows=[])
    pairs = [(strategy, metric) for metric in section.metrics for strategy in section.strategies]
    return Table(columns=STRATEGIES, rows=[_strategy_row(section, strategy, metric) for strategy, metric in pairs])


def _strategy_row(section: Section, strategy: Strategy, metric: str) -> list[Cell]:
    named: list[Cell] = [strategy.name, strategy.spec, metric]
    cost: list[Cell] = [strategy.documents, strategy.fraction, strategy.seconds, len(strategy.done)]
    found = section.comparison(strategy, metric)
    if found is None:
        return [*named, *cost, *[None] * (len(STRATEGIES) - len(named) - len(cost))]
    low, high = found.tau_interval or (None, None)
    regret = found.regret if found.checkpoints > 1 else None
    error: list[Cell] = [found.checkpoints, found.bias, found.rmse, found.tau, low, high, regret]
    return [*named, *cost, *error, found.covered, found.with_interval]


def fidelity_table(reports: Sequence[Report]) -> Table:
    """A row per Report that says how well sampled values stand in for full ones, by ascending step."""
    rows: list[list[Cell]] = []
    for report in sorted(reports, key=lambda report: (report.checkpoint.step, report.at))[-MAX_ROWS:]:
        if (found := report.agreement) is not None:
            cells: list[Cell] = [report.checkpoint.step, report.checkpoint.name, found.metric, found.checkpoints]
            rows.append([*cells, found.kendall_tau, found.rmse, found.bias, found.regret])
    return Table(columns=FIDELITY, rows=rows)
