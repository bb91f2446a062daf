"""The rows, tables and lineage of the checkpoints of one training run under one spec, in one W&B run; and how that run is
opened, written, read back and finished.

Which of the rows that were logged the server is known to have is asked now and then, for the SDK says nothing of it: after an
answer that it takes for final (401, 403, 404) it sends no more rows, and nobody hears.
"""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dr_validate.errors import Outage
from dr_validate.files import write_atomically
from dr_validate.ledger.findings import Findings
from dr_validate.ledger.reports import revised
from dr_validate.tracker.lineage import Lineage
from dr_validate.tracker.on_best import alert_of
from dr_validate.tracker.rows import (
    BASELINE,
    HIGHER_IS_BETTER,
    PREFIXES,
    REPORT,
    SAMPLED,
    STEP,
    checkpoints_table,
    queries_table,
    report_id,
    revised_curves,
    row,
)
from dr_validate.tracker.session import MAX_TAG_CHARACTERS, Plan, api, failures, open_run, require_key, settings, wandb_mode
from dr_validate.values import Report

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)
MAX_LOOKS = 8  # for rows that the server counts but does not show; between two looks the pauses grow
TABLES_EVERY = 10  # new Reports: a table is an artifact with all its rows
CONFIRM_EVERY_S = 0.5
CONFIRM_AFTER_S = 60.0  # the SDK sends every 15 s
LOST_AFTER_S = 300.0
ROWS_PER_START = 1_000_000


class ValidationRun:
    """Opened by its first Report. What the run held before is read back first, so that nothing is logged twice and what a
    killed process had logged but not sent comes again."""

    def __init__(self, plan: Plan, training_run: str, group: str) -> None:
        self._plan, self._training_run = plan, training_run
        self._target = _RunTarget(plan, training_run, group)
        self._run: wandb.Run | None = None
        self._lineage: Lineage | None = None
        self._is_ready = self._is_finished = False
        self._num_looks = 0
        self._rows = Arrivals()
        self._linked: set[str] = set()
        self._histories: dict[str, Sequence[Report]] = {}
        self._num_since_tables = 0
        self._found = Findings()
        self._is_told = True

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Log the row of a Report at its training step, unless it is there."""
        self._histories[report.spec] = history
        key = report_id(report)
        if key in self._rows:
            return
        run = self._opened()
        if key not in self._rows:
            told = row(report, history, is_baseline=self._is_baseline(report.spec), whole=self._plan.whole)
            if self._plan.alert and report.spec == self._plan.spec:
                self._target.alert_once(run, key, alert_of(report, history, self._plan.state_dir))
            run.log({**told, REPORT: key})
            self._summarize(run, report.spec)
            self._rows.log(key)
            self._is_told = False
        self._num_since_tables += 1
        if self._num_since_tables >= TABLES_EVERY:
            self.find()
            self._log_tables(run)

    def settle(self, report: Report) -> bool:
        """Record the lineage of a delivered Report; whether all of it is known to be at its place.

        Raises Lost where rows do not arrive: the SDK sends them only once the run is opened again.
        """
        key = report_id(report)
        if key not in self._rows:
            return False
        if (
            self._run is not None and self._lineage is not None and not self._is_told
        ):  # open, and once for all that came together
            self.find()
            self._tell(self._run)
        if self._lineage is not None and key not in self._linked:
            self._lineage.record(report, self._histories.get(report.spec, ()))
            self._linked.add(key)
        if self._run is not None and not self._plan.offline and self._rows.is_time_to_look():
            self._rows.arrived |= self._target.read_back(self._run, complete=False)
            self._rows.require()
        return key in self._linked and (self._plan.offline or key in self._rows.arrived)

    def find(self) -> None:
        """Look what there is to tell beside the rows; `close` tells what was found last."""
        self._found = self._plan.find(self._training_run)

    def let_go(self) -> None:
        """Finish it as it is, so that it can be opened again."""
        if self._run is not None:
            self._target.finish(self._run)

    def close(self, end: float) -> None:
        """Log the tables, finish, and look what has arrived, until `end` (monotonic seconds)."""
        run, self._lineage = self._run, None
        if run is None:
            return
        if self._is_ready:
            self._log_tables(run)  # and the summary: an earlier process may have sent rows, and not what it said last
        self._target.finish(run)  # waits for the upload; `WandbRuns.close` does not wait longer than its limit
        self._is_finished = True
        while not self._plan.offline and time.monotonic() < end and not self._rows.is_complete:
            try:
                self._rows.arrived |= self._target.read_back(run, complete=False)
            except failures() as error:
                log.debug("wandb: %s", error)  # it may pass before the end
            if not self._rows.is_complete:
                time.sleep(CONFIRM_EVERY_S)

    @property
    def offline_folder(self) -> Path | None:
        """Where the rows lie that are to be uploaded later; None where they have been."""
        return Path(self._run.settings.sync_dir) if self._run is not None and self._run.offline else None

    @property
    def is_open(self) -> bool:
        """Whether W&B has opened it."""
        return self._run is not None

    @property
    def is_complete(self) -> bool:
        """Whether it is finished, and all that was logged is known to have arrived."""
        return self._is_finished and (self._plan.offline or self._rows.is_complete)

    def _opened(self) -> "wandb.Run":
        if self._run is None:
            self._run = self._target.open()
            log.info("wandb: %s", f"offline run in {self._run.settings.sync_dir}" if self._run.offline else self._run.url)
        if not self._is_ready:
            if not self._plan.offline:
                self._look(self._run)
            self._lineage = Lineage(self._plan, self._run)
            self._is_ready = True
        return self._run

    def _look(self, run: "wandb.Run") -> None:
        self._num_looks += 1
        try:
            self._rows.arrived = self._target.read_back(run, complete=True)
        except Outage as error:
            if self._num_looks < MAX_LOOKS:
                raise
            log.warning("%s; going on with what can be read", error)
            self._rows.arrived = self._target.read_back(run, complete=False)
        if self._rows.arrived:
            log.info("wandb: %d reports were there already", len(self._rows.arrived))

    def _summarize(self, run: "wandb.Run", spec: str) -> None:
        is_baseline = self._is_baseline(spec)
        history = self._histories[spec] if is_baseline else self._revised()
        self._target.summarize(run, history, BASELINE if is_baseline else SAMPLED)

    def _is_baseline(self, spec: str) -> bool:
        return spec not in self._plan.sampled

    def _revised(self) -> Sequence[Report]:
        """The sampled Reports, as the latest Report or baseline sees them."""
        sampled = [one for spec, history in self._histories.items() if not self._is_baseline(spec) for one in history]
        return revised(sorted(sampled, key=_by_step), self._baselines())

    def _baselines(self) -> list[Report]:
        found = [report for spec, history in self._histories.items() if self._is_baseline(spec) for report in history]
        return sorted(found, key=_by_step)

    def _tell(self, run: "wandb.Run") -> None:
        """The newest verdict and values stand in the summary, and the charts are those of now."""
        said = {"verdict": self._found.verdict, "verdict/queries": self._found.queries}
        run.summary.update({key: text for key, text in said.items() if text})
        for spec in self._histories:  # a baseline revises sampled values, too
            self._summarize(run, spec)
        self._log_charts(run)
        self._is_told = True

    def _log_charts(self, run: "wandb.Run") -> None:
        import wandb

        charts = {
            key: wandb.plot.line_series(
                xs=[sorted(line) for line in lines.values()],
                ys=[[line[step] for step in sorted(line)] for line in lines.values()],
                keys=list(lines),
                title=f"{key.removeprefix('charts/')}, as now known",
                xname=STEP,
            )
            for key, lines in revised_curves(self._revised(), self._baselines()).items()
        }
        if charts:
            run.log(charts)

    def _log_tables(self, run: "wandb.Run") -> None:
        import wandb

        sampled = self._revised()
        self._tell(run)
        metric = str(next(iter(self._plan.config.get("metrics", ())), ""))
        of = [(f"queries/{names['dataset']}", names["spec"]) for names in self._plan.collections]
        of = of or [("queries", self._plan.spec)]
        tables = {
            "checkpoints": checkpoints_table(sampled),
            **{
                name: queries_table([one for one in sampled if one.spec == spec], metric, self._plan.state_dir)
                for name, spec in of
            },
            **self._found.tables,
        }
        if filled := {f"tables/{name}": table for name, table in tables.items() if table.rows}:
            run.log(
                {
                    name: wandb.Table(columns=[*table.columns], data=table.rows, allow_mixed_types=True)
                    for name, table in filled.items()
                }
            )
        self._num_since_tables = 0


def _by_step(report: Report) -> tuple[int, str]:
    return report.checkpoint.step, report.checkpoint.name


class Lost(OSError):
    """Rows that the SDK took long ago have not arrived, though the server answers."""


class Arrivals:
    """Rows by the id of their Report."""

    def __init__(self) -> None:
        self.arrived: set[str] = set()
        self._logged: dict[str, float] = {}  # when: monotonic seconds
        self._next_look = 0.0

    def __contains__(self, key: object) -> bool:
        """Whether it was logged, by this process or before it."""
        return key in self._logged or key in self.arrived

    @property
    def is_complete(self) -> bool:
        return self._logged.keys() <= self.arrived

    def log(self, key: str) -> None:
        """The SDK has taken it."""
        self._logged[key] = time.monotonic()

    def is_time_to_look(self) -> bool:
        """Whether something should have arrived by now; not true again for a while."""
        now = time.monotonic()
        if now < self._next_look or not any(when < now - CONFIRM_AFTER_S for when in self._missing()):
            return False
        self._next_look = now + CONFIRM_AFTER_S
        return True

    def require(self) -> None:
        """Raises Lost for what should have arrived long ago."""
        limit = time.monotonic() - LOST_AFTER_S
        if num_lost := sum(when < limit for when in self._missing()):
            raise Lost(f"{num_lost} rows have not arrived in {LOST_AFTER_S:.0f} s, though the server answers")

    def _missing(self) -> list[float]:
        return [when for key, when in self._logged.items() if key not in self.arrived]


class _RunTarget:
    """The run of one training run and spec: its id follows from both, so a restart resumes it."""

    def __init__(self, plan: Plan, training_run: str, group: str) -> None:
        self._plan, self._training_run, self._group = plan, training_run, group

    def open(self) -> "wandb.Run":
        """Start it, or resume it after a restart. Raises what the SDK does."""
        plan = self._plan
        if not plan.offline:
            require_key()
        if plan.folder is not None:
            plan.folder.mkdir(parents=True, exist_ok=True)
        run = open_run(self._init)
        if plan.offline:
            run.log({}, step=self._num_starts() * ROWS_PER_START, commit=False)  # from there on the SDK counts
        run.define_metric(STEP)
        for prefix in PREFIXES:
            # W&B drops rows whose step goes backwards, and late checkpoints do: so we bring our own axis.
            run.define_metric(f"{prefix}/*", step_metric=STEP, summary="max" if prefix in HIGHER_IS_BETTER else None)
        return run

    def alert_once(self, run: "wandb.Run", key: str, words: tuple[str, str] | None) -> None:
        """Have W&B tell the user (title, text) of the Report with id `key`, which is noted first: a kill may cost an alert, and
        never repeats one."""
        path = self._plan.state_dir / "alerts" / f"{self._plan.run_id(self._training_run)}.json"
        try:
            before = list(json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            before = []
        if words is not None and key not in before:
            write_atomically(path, json.dumps([*before, key]))
            run.alert(title=words[0], text=words[1])

    def read_back(self, run: "wandb.Run", *, complete: bool) -> set[str]:
        """Ids of the Reports whose rows the server has.

        The readable history lags behind what was sent. With `complete`, Outage is raised until it holds every row that the
        run had when it was opened; nobody else writes here, so the last of these shows that all are there.
        """
        expected = run.starting_step if complete else 0
        if complete and not expected:
            return set()
        found: set[str] = set()
        last_step = -1
        for logged in api(self._plan.timeout_s).run(run.path).scan_history(use_cache=False):
            last_step = max(last_step, int(logged.get("_step", -1)))
            if isinstance(logged.get(REPORT), str):
                found.add(logged[REPORT])
        if last_step < expected - 1:
            raise Outage(f"W&B has rows up to {expected - 1} of {run.path}, but shows them up to {last_step} only so far")
        return found

    def summarize(self, run: "wandb.Run", history: Sequence[Report], prefix: str) -> None:
        """Have the best values of `history`, whose keys begin with `prefix`, stand in the run's summary.

        The SDK's own (`summary="max"`) are those of the rows of this process, which are never revised.
        """
        run.summary.update({key: {"max": value} for key, value in _best_values(history, prefix).items()})

    def finish(self, run: "wandb.Run") -> None:
        """Wait for the upload."""
        run.finish()

    def _num_starts(self) -> int:
        """Offline folders that came before this one. Each counts its rows from 0, and of two rows with one number the server
        keeps one: so each gets numbers of its own."""
        path = self._plan.state_dir / "offline" / f"{self._plan.run_id(self._training_run)}.json"
        try:
            before = int(json.loads(path.read_bytes())["starts"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            before = 0
        write_atomically(path, json.dumps({"starts": before + 1}))
        return before

    def _init(self) -> "wandb.Run":
        import wandb

        plan = self._plan
        return wandb.init(
            entity=plan.entity,
            project=plan.project,
            mode=wandb_mode(offline=plan.offline),
            dir=plan.folder,
            id=plan.run_id(self._training_run),
            resume=None if plan.offline else "allow",
            name=f"{self._training_run} {plan.dataset} {plan.sampler}",
            group=plan.group or self._group or self._training_run,
            job_type="validate",
            tags=[tag[:MAX_TAG_CHARACTERS] for tag in (plan.dataset, plan.sampler)],
            config=dict(plan.config),
            reinit="create_new",
            settings=settings(plan.timeout_s),
        )


def _best_values(history: Sequence[Report], prefix: str) -> dict[str, float]:
    """The highest of each value by its key."""
    best: dict[str, float] = {}
    for report in history:
        for name, estimate in report.metrics.items():
            key = f"{prefix}/{report.dataset}/{name}"
            parts = {"": estimate.value, "/low": estimate.low, "/high": estimate.high, "/naive": estimate.naive}
            best |= {f"{key}{end}": max(value, best.get(f"{key}{end}", value)) for end, value in parts.items()}
    return best
