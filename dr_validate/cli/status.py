"""`task=status`: what is done, pending and failed in a state_dir, and why; and the table at the end of a run, what each
checkpoint was worth, and how far the sample was off. Reads the ledger; starts nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.cli.doctor import state_dir_to_read
from dr_validate.config import Run, parts_that_build
from dr_validate.errors import DrValidateError
from dr_validate.fidelity.comparison import tau_interval
from dr_validate.ledger.database import State, is_made
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import best_of, latest_of, named_folder, of_training
from dr_validate.process import new_console
from dr_validate.report.gather import newest_and_best
from dr_validate.report.verdict import extrapolation
from dr_validate.values import Agreement, Checkpoint, Listing, Report
from dr_validate.watcher import schedule
from dr_validate.watcher.lock import holder
from dr_validate.watcher.loop import Outcome
from dr_validate.watcher.polling import source_key

BAR_CHARACTERS = 18
MOST_STEPS = 5  # of a table with a column for each


def show_status(config: Mapping[str, Any]) -> int:
    """Print a table per spec. Returns the exit code: 0."""
    state_dir = state_dir_to_read(config)
    console = new_console()
    path = state_dir / "ledger.db"
    parts = parts_that_build(config, ("source", "store"))
    listing = _what_exists(parts, state_dir, console)
    if not is_made(path):
        _say_nothing_is_done(console, f"{state_dir} yet (no ledger.db)", listing)
        return 0
    with Ledger(path, read_only=True) as ledger:
        if not ledger.specs():  # a run may be getting ready: a large corpus is read for an hour
            _say_nothing_is_done(console, f"{state_dir} yet (no test set has been opened, or one is being read now)", listing)
        for spec, description in ledger.specs().items():
            watcher, states, is_baseline = holder(state_dir, spec), ledger.states(spec), description.get("baseline", False)
            title = _title(spec, description)
            if is_baseline and not states and watcher is None:
                console.print(f"{title}: no baseline yet (fidelity.baseline says when one is computed)\n", soft_wrap=True)
                continue
            pending = () if is_baseline else listing.checkpoints
            console.print(_table(title, states, _trainings(ledger, spec, listing), pending, watcher is not None))
            console.print(_watcher_words(watcher, is_baseline), highlight=False, soft_wrap=True)
            console.print()
    for part in listing.incomplete:
        console.print(f"incomplete: {part.name}: {part.lacks}", soft_wrap=True)
    if (store := parts.get("store")) is not None:
        console.print(f"kept vectors: {store.describe_vectors(state_dir)}", soft_wrap=True)
    return 0


def show_outcome(run: Run, outcome: Outcome) -> None:
    """Print a row per checkpoint and where the files are."""
    if outcome.target is None:
        return
    state_dir = run.settings.state_dir
    metric = run.settings.metrics[0]
    with Ledger(state_dir / "ledger.db") as ledger:
        as_reported, full = ledger.reports(outcome.target.spec), ledger.reports(outcome.target.full_spec)
        sampled = ledger.revised(outcome.target.spec)
        members = ledger.specs().get(outcome.target.spec, {}).get("members", {})
        collections = {name: ledger.revised(spec) for name, spec in members.items()}
    console = new_console()
    console.print(outcome_table(sampled, full, metric))
    for table in suite_tables(collections, sampled, metric):
        console.print(table)
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


def _table(
    title: str, states: Sequence[State], trainings: Mapping[str, str], listed: Sequence[Checkpoint], is_watched: bool
) -> Any:
    """Rows of the ledger, then what it does not know yet; with a column for the training where there are several."""
    from rich.table import Table

    known = {state.digest for state in states}
    rows = [(state.digest, state.step, state.name, _state(state, is_watched), state.attempts, state.detail) for state in states]
    rows += [(one.digest, one.step, one.label, "pending", 0, "") for one in listed if one.digest not in known]
    has_several = len({trainings.get(digest, "") for digest, *_ in rows}) > 1
    table = Table(title=title, title_justify="left", show_edge=False)
    for name in (*(["training"] if has_several else []), "step", "checkpoint", "state", "attempts", "result"):
        table.add_column(name, overflow="fold")
    for digest, *cells in rows:
        table.add_row(*([trainings.get(digest, "")] if has_several else []), *map(str, cells))
    return table


def _state(state: State, is_watched: bool) -> str:
    return "interrupted" if state.state == "running" and not is_watched else state.state


def _trainings(ledger: Ledger, spec: str, listing: Listing) -> dict[str, str]:
    """Digest -> name of the training run that wrote the checkpoint."""
    checkpoints = [*(report.checkpoint for report in ledger.reports(spec)), *listing.checkpoints]
    return {checkpoint.digest: checkpoint.training_run for checkpoint in checkpoints}


def _say_nothing_is_done(console: Any, where: str, listing: Listing) -> None:
    console.print(f"Nothing has been validated in {where}.", soft_wrap=True)
    for checkpoint in listing.checkpoints:
        console.print(f"pending: {checkpoint.label} (step {checkpoint.step})", soft_wrap=True)


def _what_exists(parts: Mapping[str, Any], state_dir: Path, console: Any) -> Listing:
    """As the watcher sees it: what the source lists, and what there are copies of."""
    source, store = parts.get("source"), parts.get("store")
    listing = Listing()
    try:
        listing = source.list(state_dir) if source is not None else listing
    except (DrValidateError, OSError) as error:  # what is known without it is worth showing
        console.print(f"the source does not say what exists: {error}", soft_wrap=True)
    if source is None or store is None:
        return listing
    return schedule.union(listing, store.taken(source_key(source), state_dir))


def _watcher_words(watcher: Mapping[str, Any] | None, is_baseline: bool) -> str:
    if watcher is None:
        return "no baseline is being computed now" if is_baseline else "no watcher is running"
    who = f"process {watcher['pid']} on {watcher['host']} since {watcher['since']}"
    return f"baseline: {who}" if is_baseline else f"watcher: {who}; {watcher['doing']} (at {watcher['at']})"


def _title(spec: str, description: Mapping[str, Any]) -> str:
    return f"{description['dataset']}, sampler {description['sampler']} (spec {spec})"


def agreements(run: Run, sampled: Sequence[Report], full: Sequence[Report]) -> list[str]:
    """How far the sample was off, and if it is too small to say, for each training: as its Reports and the page have it."""
    metric = run.settings.metrics[0]
    own = run.source.training_run, named_folder(run.source)
    trainings = dict(of_training(report, sampled, *own) for report in sampled)
    found = []
    for training, all_of_it in sorted(trainings.items()):
        mine = latest_of(all_of_it)
        if agreement := run.fidelity.compare(mine, full, metric):
            checkpoints = f"{agreement.checkpoints} checkpoints" + f" of {training}" * (len(trainings) > 1)
            found.append(
                f"Sampled against full corpus over {checkpoints}, {metric}: bias {agreement.bias:+.4f}, "
                f"RMSE {agreement.rmse:.4f}, Kendall tau {_tau(agreement)}, regret {agreement.regret:.4f}."
            )
        found += extrapolation([report for report in mine if report.status == "done"], metric)
    return found


def _tau(agreement: Agreement) -> str:
    tau, checkpoints = agreement.kendall_tau, agreement.checkpoints
    if tau is None:
        return "undefined"
    reach = tau_interval(tau, checkpoints)
    return f"{tau:.2f} ({'too few checkpoints to say' if reach is None else '{:.2f} to {:.2f}'.format(*reach)})"


def outcome_table(sampled: Sequence[Report], full: Sequence[Report], metric: str) -> Any:
    """A rich table by step. Where the sample is the corpus `full` holds the same Reports: there is nothing to compare."""
    from rich.table import Table

    is_sampled = not {report.spec for report in sampled} & {report.spec for report in full}
    full_values = {r.checkpoint.digest: r.metrics[metric].value for r in full if r.status == "done"}
    reports = latest_of(sampled)
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
    for report in sorted(reports, key=lambda r: r.checkpoint.training_run):
        values = _compared(report, full_values.get(report.checkpoint.digest), metric)[: len(compared)]
        training = [report.checkpoint.training_run] if has_several else []
        table.add_row(*training, str(report.checkpoint.step), *values, *_cost_and_bar(report, metric, highest))
    return table


def suite_tables(collections: Mapping[str, Sequence[Report]], means: Sequence[Report], metric: str) -> list[Any]:
    """A rich table for each training, a row for each collection of a suite: the last steps, and that with the best mean."""
    trainings = sorted({report.checkpoint.training_run for reports in collections.values() for report in reports})
    made = []
    for training in trainings:
        mine, *rows = (
            [report for report in reports if report.checkpoint.training_run == training]
            for reports in (means, *collections.values())
        )
        title = f"{metric} by collection and training step" + f", {training}" * (training != "" and len(trainings) > 1)
        made.append(_suite_table(title, dict(zip(collections, rows, strict=True)), mine, metric))
    return made


def _suite_table(title: str, collections: Mapping[str, Sequence[Report]], means: Sequence[Report], metric: str) -> Any:
    from rich.table import Table

    best = found.checkpoint.step if (found := best_of(means, metric)) else None
    steps = newest_and_best(
        (report.checkpoint.step for reports in collections.values() for report in reports), best, MOST_STEPS
    )
    table = Table(title=title, title_justify="left", show_edge=False)
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
