"""The rows, tables and lineage of the checkpoints of one training run under one spec, in one W&B run.

The SDK does not say what has arrived (after an answer that it takes for final, 401, 403 or 404, it sends no more rows, and
nobody hears): so the rows are read back now and then, see `Arrivals`. `Lineage`: what a Report was
made of, as edges of artifacts.
"""

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_validate.errors import Outage
from dr_validate.ledger.reports import best_of, report_to_json, revised
from dr_validate.tracker.rows import (
    BASELINE,
    REPORT,
    SAMPLED,
    STEP,
    alert_of,
    report_id,
    revised_curves,
    row,
    table_of_checkpoints,
    table_of_queries,
)
from dr_validate.tracker.session import Plan, RunTarget, api, failures
from dr_validate.values import ARTIFACT_SCHEME, Findings, Report, Table

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)
MAX_LOOKS = 8  # for rows that the server counts but does not show; between two looks the pauses grow
TABLES_EVERY = 10  # new Reports: a table is an artifact with all its rows
CONFIRM_EVERY_S = 0.5
CONFIRM_AFTER_S = 60.0  # the SDK sends every 15 s
LOST_AFTER_S = 300.0
MAX_TRIES = 5  # of the lineage of one Report
DATASET_KEYS = ("dataset", "dataset_fingerprint", "documents", "queries")
SAMPLE_KEYS = ("dataset", "dataset_fingerprint", "sampler", "sample_fingerprint", "documents", "encoded", "seed")


class ValidationRun:
    """Opened by its first Report. What the run held before is read back first, so that nothing is logged twice and what a
    killed process had logged but not sent comes again."""

    def __init__(self, plan: Plan, training_run: str, group: str) -> None:
        self._plan, self._training_run = plan, training_run
        self._target = RunTarget(plan, training_run, group)
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
            told = row(report, history, is_baseline=self._is_baseline(report.spec), whole=self._plan.about.whole)
            if self._plan.alert and report.spec == self._plan.about.spec:
                self._target.alert_once(run, key, alert_of(report, history, self._plan.about.state_dir))
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
        if self._run is not None and self._lineage is not None and not self._is_told:  # once for all that came together
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
        self._found = self._plan.about.find(self._training_run)

    def let_go(self) -> None:
        """Finish it as it is, so that it can be opened again."""
        if self._run is not None:
            self._run.finish()

    def close(self, end: float) -> None:
        """Log the tables, finish, and look what has arrived, until `end` (monotonic seconds)."""
        run, self._lineage = self._run, None
        if run is None:
            return
        if self._is_ready:
            self._log_tables(run)  # and the summary: an earlier process may have sent rows, and not what it said last
        run.finish()  # waits for the upload; `WandbRuns.close` does not wait longer than its limit
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
        """The best values as now known: the SDK's own (`summary="max"`) are those of rows, which are never revised."""
        is_baseline = self._is_baseline(spec)
        history, prefix = (self._histories[spec], BASELINE) if is_baseline else (self._revised(), SAMPLED)
        run.summary.update({key: {"max": value} for key, value in _best_values(history, prefix).items()})

    def _is_baseline(self, spec: str) -> bool:
        return spec not in self._plan.about.sampled

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
        of = [(f"queries/{names['dataset']}", names["spec"]) for names in self._plan.about.collections]
        tables: dict[str, Table] = {"checkpoints": table_of_checkpoints(sampled)}
        for name, spec in of or [("queries", self._plan.about.spec)]:
            mine = [one for one in sampled if one.spec == spec]
            tables[name] = table_of_queries(mine, self._plan.metric, self._plan.about.state_dir)
        filled = {f"tables/{name}": table for name, table in (tables | dict(self._found.tables)).items() if table.rows}
        if filled:
            made = {
                name: wandb.Table(columns=[*table.columns], data=table.rows, allow_mixed_types=True)
                for name, table in filled.items()
            }
            run.log(made)
        self._num_since_tables = 0


class Lineage:
    """The edges of one open run. Everything here may be repeated: W&B recognises content and edges that it has."""

    def __init__(self, plan: Plan, run: "wandb.Run") -> None:
        self._plan, self._run = plan, run
        self._tries: Counter[str] = Counter()
        self._has_inputs = False
        self._refused_alias = False
        self._best: dict[str, str] = {}  # by data set the Report whose version has the alias

    def record(self, report: Report, history: Sequence[Report]) -> None:
        """Record the edges of one Report; given up, with a warning, after MAX_TRIES that the server answered.

        Raises what the SDK does: it is worth another try then.
        """
        key = report_id(report)
        if self._tries[key] and not self._plan.offline:
            api(self._plan.timeout_s).run(self._run.path)  # an outage is not the version's fault, and does not count
        self._tries[key] += 1
        if self._tries[key] > MAX_TRIES:
            log.warning("wandb: no lineage for %s after %d tries; its row is there", report.checkpoint.name, MAX_TRIES)
            return
        if not self._has_inputs:
            self._log_inputs()
            self._has_inputs = True
        if not self._plan.offline and report.checkpoint.uri.startswith(ARTIFACT_SCHEME):
            self._use_version(report, history)
        self._log_report(report)

    def _use_version(self, report: Report, history: Sequence[Report]) -> None:
        name = report.checkpoint.uri.removeprefix(ARTIFACT_SCHEME)
        try:
            version = self._run.use_artifact(name)
            if not self._plan.alias_best:
                return
            ours = [one for one in revised(history) if one.checkpoint.uri.startswith(ARTIFACT_SCHEME)]
            best = best_of(ours, self._plan.metric)
            if best and report_id(best) != self._best.get(best.dataset):
                if report_id(best) != report_id(report):  # what has come since may have made an earlier one the best
                    version = api(self._plan.timeout_s).artifact(best.checkpoint.uri.removeprefix(ARTIFACT_SCHEME))
                self._move_alias(version, best.dataset)
                self._best[best.dataset] = report_id(best)
        except failures() as error:
            if "not found" not in str(error):
                raise
            log.info("wandb: %s is there no more, so nothing leads from it to its report", name)

    def _log_inputs(self) -> None:
        about = self._plan.about
        for names in about.collections or ({},):
            config = {"dataset": about.dataset, "sampler": about.sampler, **self._plan.config, **names}
            told = {key: config[key] for key in DATASET_KEYS if key in config}
            self._send(_artifact(f"dataset-{config['dataset']}", "dataset", told, content=told), is_input=True)
            sample = config.get("sample_fingerprint")
            path = about.state_dir / "samples" / f"{sample}.parquet"
            if sample and path.is_file():  # there is none for a full corpus
                told = {key: config[key] for key in SAMPLE_KEYS if key in config}
                manifest = _artifact(f"sample-{config['dataset']}-{config['sampler']}", "sample", told)
                manifest.add_file(str(path), name="sample.parquet")
                self._send(manifest, is_input=True)

    def _log_report(self, report: Report) -> None:
        checkpoint = report.checkpoint
        content = report_to_json(report)
        if not checkpoint.uri.startswith(ARTIFACT_SCHEME):
            del content["checkpoint"]["uri"]  # a path of this machine
        values = {name: estimate.value for name, estimate in report.metrics.items()}
        about = {"step": checkpoint.step, "status": report.status, "sampler": report.sampler, "metrics": values}
        alias = f"{'' if report.spec in self._plan.about.sampled else 'full-'}step-{checkpoint.step}"
        of_member = "" if self._plan.about.whole in ("", report.dataset) else f"-{report.dataset}"
        name = f"report-{self._run.id}{of_member}"
        self._send(_artifact(name, "validation", about, content=content), alias=alias)

    def _send(self, artifact: "wandb.Artifact", *, alias: str = "", is_input: bool = False) -> None:
        logged = self._run.log_artifact(artifact, aliases=[alias] if alias else None)
        if not self._plan.offline:
            logged.wait(timeout=int(self._plan.timeout_s))
            if is_input:
                self._run.use_artifact(logged)

    def _move_alias(self, version: "wandb.Artifact", dataset: str) -> None:
        alias = re.sub(r"[/:]", "_", f"best-{dataset}-{self._plan.metric}")
        try:
            if alias not in version.aliases:
                version.aliases.append(alias)
                version.save()
                log.info("wandb: %s is %s", alias, version.name)
        except failures() as error:
            if not self._refused_alias:
                log.warning("tracker.alias_best: cannot move %s to %s: %s", alias, version.name, error)
            self._refused_alias = True


def _artifact(name: str, kind: str, about: Mapping[str, Any], *, content: Mapping[str, Any] | None = None) -> "wandb.Artifact":
    """A new version with `about` as metadata, and `content` as its one file where it is given."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:128], kind, metadata=dict(about))
    if content is not None:
        with artifact.new_file(f"{kind}.json") as stream:
            stream.write(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False))
    return artifact


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


def _best_values(history: Sequence[Report], prefix: str) -> dict[str, float]:
    """The highest of each value by its key."""
    best: dict[str, float] = {}
    for report in history:
        for name, estimate in report.metrics.items():
            key = f"{prefix}/{report.dataset}/{name}"
            parts = {"": estimate.value, "/low": estimate.low, "/high": estimate.high, "/naive": estimate.naive}
            best |= {f"{key}{end}": max(value, best.get(f"{key}{end}", value)) for end, value in parts.items()}
    return best
