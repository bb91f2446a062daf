"""The table at the end of a run, from the ledger: what each checkpoint was worth, and how far the sample was off."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import Run
from dr_validate.ledger import Ledger
from dr_validate.values import Report
from dr_validate.watch import Outcome

BAR_CHARACTERS = 24


def show_outcome(run: Run, outcome: Outcome) -> None:
    """Print a row per checkpoint and where the files are."""
    if outcome.target is None:
        return
    state_dir = run.settings.state_dir
    metric = run.settings.metrics[0]
    with Ledger(state_dir / "ledger.db") as ledger:
        sampled, full = ledger.reports(outcome.target.spec), ledger.reports(outcome.target.full_spec)
    console = new_console()
    console.print(outcome_table(sampled, full, metric))
    if agreement := run.fidelity.compare(sampled, full, metric):
        tau = "undefined" if agreement.kendall_tau is None else f"{agreement.kendall_tau:.2f}"
        console.print(
            f"Sampled against full corpus over {agreement.checkpoints} checkpoints, {metric}: bias {agreement.bias:+.4f}, "
            f"RMSE {agreement.rmse:.4f}, Kendall tau {tau}, regret {agreement.regret:.4f}.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Reports: {_shown(state_dir / 'reports.jsonl')}", highlight=False, soft_wrap=True)


def outcome_table(sampled: Sequence[Report], full: Sequence[Report], metric: str) -> Any:
    """A rich table by step; `full` may hold the same Reports when the sample is the corpus."""
    from rich.table import Table

    full_values = {r.checkpoint.digest: r.metrics[metric].value for r in full if r.status == "done"}
    # A checkpoint that was skipped first and validated later has two Reports: the later one counts.
    reports = {report.checkpoint.label: report for report in sorted(sampled, key=lambda r: r.at)}.values()
    highest = max((r.metrics[metric].value for r in reports if r.status == "done"), default=0.0)
    table = Table(title=f"{metric} by training step", title_justify="left", show_edge=False)
    for name in ("step", "sampled", "full", "difference", "documents", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("sampled, to scale" if highest else "", overflow="fold")
    for report in sorted(reports, key=lambda r: (r.checkpoint.step, r.checkpoint.label)):
        table.add_row(*_row(report, full_values.get(report.checkpoint.digest), metric, highest))
    return table


def _row(report: Report, full: float | None, metric: str, highest: float) -> list[str]:
    step = str(report.checkpoint.step)
    if report.status != "done":
        return [step, "", "", "", "", "", f"{report.checkpoint.label} {report.status}: {report.error}"]
    value = report.metrics[metric].value
    return [
        step,
        f"{value:.4f}",
        "" if full is None else f"{full:.4f}",
        "" if full is None else f"{value - full:+.4f}",
        f"{report.corpus['encoded']:,.0f}",
        f"{report.seconds['total']:.1f}",
        "█" * round(BAR_CHARACTERS * value / highest) if highest else "",
    ]


def new_console() -> Any:
    """Standard output; wide enough in a log too."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)


def _shown(path: Path) -> str:
    resolved, here = path.resolve(), Path.cwd()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(resolved)
