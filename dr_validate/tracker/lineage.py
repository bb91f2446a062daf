"""What came from what: the validated model version, the data set and the sample as inputs, the Report as an output."""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dr_validate.ledger.reports import report_to_json, revised
from dr_validate.tracker.rows import report_id
from dr_validate.tracker.session import Plan, api, failures
from dr_validate.values import ARTIFACT_SCHEME, Report

if TYPE_CHECKING:
    import wandb

MAX_TRIES = 5
DATASET_KEYS = ("dataset", "dataset_fingerprint", "documents", "queries")
SAMPLE_KEYS = ("dataset", "dataset_fingerprint", "sampler", "sample_fingerprint", "documents", "encoded", "seed")
log = logging.getLogger(__name__)


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
            self._run_is_reachable()  # an outage is not the version's fault, and does not count
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
        name, key = report.checkpoint.uri.removeprefix(ARTIFACT_SCHEME), report_id(report)
        try:
            version = self._run.use_artifact(name)
            best = best_of(history, self._first_metric()) if self._plan.alias_best else None
            if best and report_id(best) == key:
                self._move_alias(version, best.dataset)
            elif best and report_id(best) != self._best.get(
                best.dataset
            ):  # what has come since may have made an earlier one the best
                self._move_alias(
                    api(self._plan.timeout_s).artifact(best.checkpoint.uri.removeprefix(ARTIFACT_SCHEME)), best.dataset
                )
            self._best |= {best.dataset: report_id(best)} if best else {}
        except failures() as error:
            if "not found" not in str(error):
                raise
            log.info("wandb: %s is there no more, so nothing leads from it to its report", name)

    def _log_inputs(self) -> None:
        for config in self._plan.collections or (self._plan.config,):
            self._log_inputs_of({**self._plan.config, **config})

    def _log_inputs_of(self, config: Mapping[str, Any]) -> None:
        plan, dataset = self._plan, config.get("dataset", self._plan.dataset)
        about = {key: config[key] for key in DATASET_KEYS if key in config}
        self._send(_artifact(f"dataset-{dataset}", "dataset", about, content=about), is_input=True)
        sample = config.get("sample_fingerprint")
        path = plan.state_dir / "samples" / f"{sample}.parquet"
        if sample and path.is_file():  # there is none for a full corpus
            about = {key: config[key] for key in SAMPLE_KEYS if key in config}
            manifest = _artifact(f"sample-{dataset}-{config.get('sampler', plan.sampler)}", "sample", about)
            manifest.add_file(str(path), name="sample.parquet")
            self._send(manifest, is_input=True)

    def _log_report(self, report: Report) -> None:
        checkpoint = report.checkpoint
        content = report_to_json(report)
        if not checkpoint.uri.startswith(ARTIFACT_SCHEME):
            del content["checkpoint"]["uri"]  # a path of this machine
        values = {name: estimate.value for name, estimate in report.metrics.items()}
        about = {"step": checkpoint.step, "status": report.status, "sampler": report.sampler, "metrics": values}
        alias = f"{'' if report.spec in self._plan.sampled else 'full-'}step-{checkpoint.step}"
        name = (
            f"report-{self._run.id}" if self._plan.whole in ("", report.dataset) else f"report-{self._run.id}-{report.dataset}"
        )
        self._send(_artifact(name, "validation", about, content=content), alias=alias)

    def _send(self, artifact: "wandb.Artifact", *, alias: str = "", is_input: bool = False) -> None:
        logged = self._run.log_artifact(artifact, aliases=[alias] if alias else None)
        if not self._plan.offline:
            logged.wait(timeout=int(self._plan.timeout_s))
            if is_input:
                self._run.use_artifact(logged)

    def _move_alias(self, version: "wandb.Artifact", dataset: str) -> None:
        alias = re.sub(r"[/:]", "_", f"best-{dataset}-{self._first_metric()}")
        try:
            if alias not in version.aliases:
                version.aliases.append(alias)
                version.save()
                log.info("wandb: %s is %s", alias, version.name)
        except failures() as error:
            if not self._refused_alias:
                log.warning("tracker.alias_best: cannot move %s to %s: %s", alias, version.name, error)
            self._refused_alias = True

    def _first_metric(self) -> str:
        return str(next(iter(self._plan.config.get("metrics", ())), ""))

    def _run_is_reachable(self) -> None:
        api(self._plan.timeout_s).run(self._run.path)


def _artifact(name: str, kind: str, about: Mapping[str, Any], *, content: Mapping[str, Any] | None = None) -> "wandb.Artifact":
    """A new version with `about` as metadata, and `content` as its one file where it is given."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:128], kind, metadata=dict(about))
    if content is not None:
        with artifact.new_file(f"{kind}.json") as stream:
            stream.write(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False))
    return artifact


def best_of(history: Sequence[Report], metric: str) -> Report | None:
    """The highest value of the versions that W&B holds, as the latest Report sees them; of equal ones, the earliest."""
    ours = [other for other in revised(history) if metric in other.metrics and other.checkpoint.uri.startswith(ARTIFACT_SCHEME)]
    return max(ours, key=lambda other: (other.metrics[metric].value, -other.checkpoint.step), default=None)
