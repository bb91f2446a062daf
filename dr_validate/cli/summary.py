"""The table at the end of a run, from the ledger: what each checkpoint was worth, and how far the sample was off."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import Run
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.revised import of_training
from dr_validate.process import new_console
from dr_validate.values import Report
from dr_validate.watcher.loop import Outcome

BAR_CHARACTERS = 18
MOST_STEPS = 5  # of a table with a column for each


def show_outcome(run: Run, outcome: Outcome) -> None:
    """Print a row per checkpoint and where the files are."""
    if outcome.target is None:
        return
    state_dir = run.settings.state_dir
    metric = run.settings.metrics[0]
    with Ledger(state_dir / "ledger.db") as ledger:
        as_reported, full = ledger.reports(outcome.target.spec), ledger.reports(outcome.target.full_spec)
        sampled = ledger.refined(outcome.target.spec)
        members = ledger.specs().get(outcome.target.spec, {}).get("members", {})
        collections = {name: ledger.refined(spec) for name, spec in members.items()}
    console = new_console()
    console.print(outcome_table(sampled, full, metric))
    if collections:
        console.print(collections_table(collections, sampled, metric))
    if outcome.target.spec != outcome.target.full_spec:
        for sentence in agreements(run, sampled, full):
            console.print(sentence, soft_wrap=True, markup=False)
    if sampled != as_reported:
        console.print(
            "Sampled values are as the last Report or baseline sees them: by all checkpoints and full-corpus baselines until "
            "then, but never by the checkpoint's own baseline.",
            soft_wrap=True,
        )
    console.print(f"Reports: {_shown(state_dir / 'reports.jsonl')}", soft_wrap=True)


def agreements(run: Run, sampled: Sequence[Report], full: Sequence[Report]) -> list[str]:
    """How far the sample was off, for each training in a sentence: as its Reports and the page have it."""
    metric = run.settings.metrics[0]
    trainings = dict(of_training(report, sampled, run.source.training_run) for report in sampled)
    found = []
    for training, mine in sorted(trainings.items()):
        if agreement := run.fidelity.compare(mine, full, metric):
            tau = "undefined" if agreement.kendall_tau is None else f"{agreement.kendall_tau:.2f}"
            checkpoints = f"{agreement.checkpoints} checkpoints" + f" of {training}" * (len(trainings) > 1)
            found.append(
                f"Sampled against full corpus over {checkpoints}, {metric}: bias {agreement.bias:+.4f}, "
                f"RMSE {agreement.rmse:.4f}, Kendall tau {tau}, regret {agreement.regret:.4f}."
            )
    return found


def outcome_table(sampled: Sequence[Report], full: Sequence[Report], metric: str) -> Any:
    """A rich table by step. Where the sample is the corpus `full` holds the same Reports: there is nothing to compare."""
    from rich.table import Table

    is_sampled = not {report.spec for report in sampled} & {report.spec for report in full}
    full_values = {r.checkpoint.digest: r.metrics[metric].value for r in full if r.status == "done"}
    # A checkpoint that was skipped first and validated later has two Reports: the later one counts.
    reports = {(r.checkpoint.training_run, r.checkpoint.label): r for r in sorted(sampled, key=lambda r: r.at)}.values()
    has_several = len({report.checkpoint.training_run for report in reports}) > 1
    highest = max((r.metrics[metric].value for r in reports if r.status == "done"), default=0.0)
    of_mean = "mean of collections, " if (is_mean := any(report.is_mean for report in sampled)) else ""
    reach = "95%, any queries" if is_mean else "95% interval"
    table = Table(title=f"{of_mean}{metric} by training step", title_justify="left", show_edge=False)
    compared = ("sampled", reach, "full", "difference") if is_sampled else ("full", reach)[: 1 + is_mean]
    if has_several:
        table.add_column("training")
    for name in ("step", *compared, "documents", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"{compared[0]}, to scale" if highest else "", overflow="fold")
    for report in sorted(reports, key=lambda r: (r.checkpoint.training_run, r.checkpoint.step, r.checkpoint.label)):
        values = _compared(report, full_values.get(report.checkpoint.digest), metric)[: len(compared)]
        training = [report.checkpoint.training_run] if has_several else []
        table.add_row(*training, str(report.checkpoint.step), *values, *_cost_and_bar(report, metric, highest))
    return table


def collections_table(collections: Mapping[str, Sequence[Report]], means: Sequence[Report], metric: str) -> Any:
    """A rich table with a row for each collection of a suite: the last steps, and that with the best mean."""
    from rich.table import Table

    values = {report.checkpoint.step: report.metrics[metric].value for report in means if report.status == "done"}
    known = sorted({report.checkpoint.step for reports in collections.values() for report in reports})
    best = max(values, key=lambda step: (values[step], -step), default=None)
    steps = sorted({*known[-MOST_STEPS:], *([] if best is None else [best])})
    table = Table(title=f"{metric} by collection and training step", title_justify="left", show_edge=False)
    table.add_column("collection", overflow="fold")
    for step in steps:
        table.add_column(f"{step} (best mean)" if step == best and len(steps) > 1 else str(step), justify="right")
    for name, reports in collections.items():
        latest = {report.checkpoint.step: report for report in sorted(reports, key=lambda report: report.at)}
        shown = [_value_or_status(latest.get(step), metric) for step in steps]
        table.add_row(name, *shown)
    return table


def _value_or_status(report: Report | None, metric: str) -> str:
    if report is None:
        return ""
    return f"{report.metrics[metric].value:.4f}" if report.status == "done" else report.status


def _compared(report: Report, full: float | None, metric: str) -> list[str]:
    """Value, interval, and the full-corpus value with the difference to it, as far as they are known."""
    if report.status != "done":
        return [""] * 4
    estimate = report.metrics[metric]
    interval = f"{estimate.low:.4f} to {estimate.high:.4f}" if not estimate.is_bound else f"at most {estimate.high:.4f}"
    exact = ["", ""] if full is None else [f"{full:.4f}", f"{estimate.value - full:+.4f}"]
    return [f"{estimate.value:.4f}", interval, *exact]


def _cost_and_bar(report: Report, metric: str, highest: float) -> list[str]:
    if report.status != "done":
        return ["", "", f"{report.checkpoint.label} {report.status}: {report.error}"]
    bar = "█" * round(BAR_CHARACTERS * report.metrics[metric].value / highest) if highest else ""
    return [f"{report.corpus['encoded']:,.0f}", f"{report.seconds['total']:.1f}", bar]


def _shown(path: Path) -> str:
    resolved, here = path.resolve(), Path.cwd()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(resolved)
