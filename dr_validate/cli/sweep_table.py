"""The table at the end of a sweep: what each job's sample was worth, how far it was off the full corpus, what it cost.

Cost is counted in documents: seconds depend on what else the machine did.
"""

import csv
import io
import logging
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dr_validate.cli.status import show_outcome
from dr_validate.cli.sweep import SWEEP_JOBS, JobRecord, records, worst_exit_code
from dr_validate.config import Run, build
from dr_validate.errors import Outage, SetupError
from dr_validate.fidelity.comparison import Comparison, compare
from dr_validate.files import write_atomically
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import best_of, latest_of, named_folder, of_training
from dr_validate.process import new_console
from dr_validate.report.verdict import Candidate, smallest_errors
from dr_validate.values import Agreement, Report, Sweep, SweepRow
from dr_validate.watcher.loop import Outcome
from dr_validate.watcher.schedule import Target

SWEEP_WIDTH = 140  # characters, where standard output is not a terminal
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One training of one job. `overrides`: those that not all jobs have; `reports`: the one that counts for each checkpoint.

    `agreement` and `comparison` are over the checkpoints of the training that have a full-corpus Report, in this job's
    state_dir or in another job's; None for a job that is the full corpus itself.
    """

    job: JobRecord
    overrides: str
    training: str = ""
    metric: str = ""
    reports: tuple[Report, ...] = ()
    agreement: Agreement | None = None
    comparison: Comparison | None = None

    @property
    def best(self) -> Report | None:
        """The checkpoint with the highest value."""
        return best_of(self.reports, self.metric)

    @property
    def documents(self) -> float | None:
        """Of the sample, encoded or kept for one checkpoint: the mean."""
        known = [float(report.corpus["encoded"]) for report in self.reports if report.status == "done"]
        return statistics.fmean(known) if known else None

    @property
    def encoded(self) -> int:
        """Documents encoded for these Reports, over all checkpoints; jobs of one spec share them."""
        return int(sum(report.corpus.get("encoded_now", 0) for report in self.reports))

    @property
    def seconds(self) -> float:
        """Spent on these Reports, over all checkpoints."""
        return sum(report.seconds.get("total", 0.0) for report in self.reports)

    @property
    def status(self) -> str:
        """What became of the job, in words."""
        if self.job.exit_code is None:
            return "died: its process ended before the job did"
        counts = Counter(report.status for report in self.reports)
        parts = [f"{counts[name]} {name}" for name in ("done", "failed", "skipped") if counts[name]]
        if self.job.stopped:
            parts.append("stopped" if self.job.target else "not run: the sweep was stopped")
        if self.job.error:
            parts.append(" ".join(self.job.error.split()))
        return ", ".join(parts) or "nothing to validate"


def show_sweep(folder: Path) -> int:
    """Print a row per job and training, keep the rows in `sweep.csv` beside the jobs' records; the worst exit code of the jobs.

    A sweep of one job prints what a plain run would. Fidelity is computed here and now, so that a job on the full corpus
    gives baselines to all others, whenever it ran.
    """
    jobs = records(folder)
    validated = [job for job in jobs if job.task == "validate"]
    if validated:
        rows = sweep_rows(validated)
        write_atomically(folder / "sweep.csv", rows_as_csv(rows))
        if len(jobs) == 1 and (run := _run_of(jobs[0])):
            show_outcome(run, _outcome_of(jobs[0]))
        elif len(jobs) > 1:
            console = new_console(SWEEP_WIDTH)
            console.print(sweep_table(rows))
            for sentence in compared_at_equal_cost(rows):
                console.print(sentence, soft_wrap=True)
            if (missing := int(os.environ.get(SWEEP_JOBS) or 0) - len(jobs)) > 0:
                again = "the same command runs them, and goes on with what ended early"
                console.print(f"{missing} more of the sweep never began; {again}.", soft_wrap=True)
            console.print(f"Rows: {folder / 'sweep.csv'}", soft_wrap=True)
            _log_to_tracker(rows)
    return worst_exit_code(jobs)


def _log_to_tracker(rows: Sequence[JobRow]) -> None:
    """Through the tracker of the first job that has one; an outage there costs the sweep nothing."""
    known = [(row, run) for row in rows if (run := _run_of(row.job))]
    if not known or any(row.job.stopped for row in rows):
        return
    run = known[0][1]
    groups = {report.checkpoint.group for row, _ in known for report in row.reports}
    sweep = Sweep(
        training_run=run.source.training_run,
        group=groups.pop() if len(groups) == 1 else "",
        dataset=next(row.job.target["dataset"] for row, _ in known if row.job.target),
        specs=tuple(row.job.target["spec"] for row, _ in known if row.job.target),
        strategies=tuple(map(_sweep_row, rows)),
        state_dir=run.settings.state_dir,
    )
    try:
        if said := run.tracker.log_sweep(sweep):
            log.info("the table of the sweep is in W&B: %s", said)
    except (Outage, SetupError) as error:
        log.warning(
            "the table of the sweep is not in W&B (%s); it is in sweep.csv, and the same command again logs it without "
            "validating anything twice",
            error,
        )


def _sweep_row(row: JobRow) -> SweepRow:
    found, known = row.comparison, _fields(row)
    known |= dict(zip(("tau_low", "tau_high"), (found and found.tau_interval) or (None, None), strict=True))
    known |= {name: getattr(found, name, None) for name in ("covered", "with_interval")}
    known |= {"strategy": row.overrides, "tau": known["kendall_tau"]}
    return SweepRow(**{field.name: known[field.name] for field in fields(SweepRow)})


def sweep_rows(jobs: Sequence[JobRecord]) -> list[JobRow]:
    """Read what the ledgers hold for each job and training."""
    runs = {job.number: run for job in jobs if (run := _run_of(job))}
    full = _full_reports(jobs, runs)
    common = set(jobs[0].overrides).intersection(*(job.overrides for job in jobs)) if len(jobs) > 1 else set()
    named = {run.source.training_run for run in runs.values()}
    return [row for job in jobs for row in _rows(job, runs.get(job.number), full, common, named)]


def _rows(
    job: JobRecord, run: Run | None, full: Mapping[str, Sequence[Report]], common: set[str], named: set[str]
) -> list[JobRow]:
    """A row for each training of a job, as the page has them apart. `named`: the trainings that jobs ask for by name."""
    overrides = " ".join(override for override in job.overrides if override not in common)
    target = _outcome_of(job).target
    if run is None or target is None:
        return [JobRow(job=job, overrides=overrides)]
    reports, metric, own = _reports(run, target.spec), run.settings.metrics[0], run.source.training_run
    baselines = full[target.full_spec] if target.spec != target.full_spec else []
    trainings = dict(of_training(report, reports, own, named_folder(run.source)) for report in reports)
    mine = {own: trainings.get(own, [])}  # a state_dir may hold those of other jobs and days
    if run.source.brings_several and own not in trainings:
        mine = {name: of for name, of in trainings.items() if name not in named} or mine
    rows = []
    for training, of in sorted(mine.items()):
        agreement = run.fidelity.compare(of, baselines, metric)
        rows.append(
            JobRow(
                job=job,
                overrides=f"{overrides} ({training})".strip() if len(mine) > 1 else overrides,
                training=training,
                metric=metric,
                reports=tuple(of),
                agreement=agreement,
                comparison=compare(of, baselines, metric) if agreement else None,
            )
        )
    return rows


def _full_reports(jobs: Sequence[JobRecord], runs: Mapping[int, Run]) -> Mapping[str, Sequence[Report]]:
    """By spec, from the state_dirs of all jobs: a spec names its values wherever they were computed."""
    specs = {job.target["full_spec"] for job in jobs if job.target}
    state_dirs = {run.settings.state_dir: run for run in runs.values()}
    return {spec: [report for run in state_dirs.values() for report in _reports(run, spec)] for spec in specs}


def _reports(run: Run, spec: str) -> list[Report]:
    with Ledger(run.settings.state_dir / "ledger.db") as ledger:
        return latest_of(ledger.revised(spec))


def _run_of(job: JobRecord) -> Run | None:
    return build(job.config) if job.config and job.target else None


def _outcome_of(job: JobRecord) -> Outcome:
    return Outcome(target=Target(**job.target) if job.target else None, exit_code=job.exit_code or 0)


def sweep_table(rows: Sequence[JobRow]) -> Any:
    """A rich table, a row per job and training in the order of their numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text  # plain: overrides and messages may hold what looks like rich's markup

    metrics = {row.metric for row in rows if row.metric}
    metric = metrics.pop() if len(metrics) == 1 else "best"
    table = Table(
        title=f"A sweep of {len({row.job.number for row in rows})} jobs",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("overrides", overflow="fold", min_width=12)
    for name in (metric, "step", "bias", "RMSE", "tau", "regret", "over", "documents", "encoded"):
        table.add_column(name, justify="right", overflow="fold")  # a narrow terminal breaks numbers, but hides no digit
    table.add_column("status", overflow="fold", min_width=8)
    for row in rows:
        table.add_row(*map(Text, _cells(row, named=metric == "best")))
    return table


def _cells(row: JobRow, *, named: bool) -> list[str]:
    best, agreement = row.best, row.agreement
    value = f"{best.metrics[row.metric].value:.4f}" if best else ""
    cells = [str(row.job.number), row.overrides, f"{row.metric} {value}" if named and best else value]
    cells.append(str(best.checkpoint.step) if best else "")
    if agreement:
        tau = "undefined" if agreement.kendall_tau is None else f"{agreement.kendall_tau:.2f}"
        cells += [f"{agreement.bias:+.4f}", f"{agreement.rmse:.4f}", tau, f"{agreement.regret:.4f}", str(agreement.checkpoints)]
    else:
        cells += [""] * 5
    documents = "" if row.documents is None else f"{row.documents:,.0f}"
    return [*cells, documents, f"{row.encoded:,}" if best else "", row.status]


def compared_at_equal_cost(rows: Sequence[JobRow]) -> list[str]:
    """What can be said of the jobs' errors: which is the smallest among those of one test set, metric and cost."""
    kinds: dict[tuple[str, str], list[Candidate]] = {}
    for row in rows:
        if row.comparison is not None and row.documents is not None and row.job.target is not None:
            candidate = Candidate(name=row.overrides, documents=row.documents, comparison=row.comparison)
            kinds.setdefault((row.job.target["full_spec"], row.metric), []).append(candidate)
    if not kinds:
        return []
    sentences = ["Errors are differences to the full corpus, the reference; a strategy costs the documents of its sample."]
    found = [sentence for candidates in kinds.values() for sentence in smallest_errors(candidates)]
    if not found and any(len(candidates) > 1 for candidates in kinds.values()):
        same = "the same number of documents, and full-corpus values of the same two checkpoints or more"
        found = [f"No two strategies have {same}: none is said to have the smallest error."]
    return [*sentences, *found]


def rows_as_csv(rows: Sequence[JobRow]) -> str:
    """With a header; empty where there is no value."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(_fields(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_fields(row) for row in rows)
    return stream.getvalue()


def _fields(row: JobRow) -> dict[str, Any]:
    job, best, agreement = row.job, row.best, row.agreement
    estimate = best.metrics[row.metric] if best else None
    counts = Counter(report.status for report in row.reports)
    return {
        "job": job.number,
        "overrides": row.overrides,
        "training": row.training,
        **{name: (job.target or {}).get(name) for name in ("dataset", "sampler", "spec", "full_spec")},
        "metric": row.metric,
        **{name: getattr(estimate, name, None) for name in ("value", "low", "high", "naive")},
        "step": best.checkpoint.step if best else None,
        "checkpoint": best.checkpoint.label if best else None,
        **{name: getattr(agreement, name, None) for name in ("bias", "rmse", "kendall_tau", "regret", "checkpoints")},
        "documents": None if row.documents is None else round(row.documents),
        "encoded": row.encoded,
        "seconds": round(row.seconds, 3),
        **{status: counts[status] for status in ("done", "failed", "skipped")},
        "exit_code": job.exit_code,
        "status": row.status,
        "state_dir": job.config["state_dir"] if job.config else None,
    }
