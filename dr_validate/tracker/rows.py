"""What W&B is told about a Report: one flat row of numbers under the public keys."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dr_validate.component import fingerprint
from dr_validate.ledger.revised import lag_s
from dr_validate.values import Report

REPORT = "_report"  # names the Report that a row is of: what is there already is known by it
STEP = "train/global_step"
SCHEME = "wandb-artifact://"  # of a checkpoint that is a version of an artifact
SAMPLED, BASELINE = "val", "full"
PREFIXES = (SAMPLED, BASELINE, "fidelity", "cost", "lag", "status")
HIGHER_IS_BETTER = (SAMPLED, BASELINE)


def row(report: Report, history: Sequence[Report], *, is_baseline: bool, whole: str = "") -> dict[str, float]:
    """Keys and numbers of one Report. `history` tells how far the training was when it came; a baseline of a sampled
    spec has its values under `full/` and its costs under `cost/full_`, so that no curve mixes the two. `whole`: of a suite,
    what the Reports of the mean have for a dataset; costs and ends of the others are told apart by theirs, as values are."""
    part = "" if whole in ("", report.dataset) else f"{report.dataset}/"
    prefix, cost = (BASELINE, f"cost/{part}full_") if is_baseline else (SAMPLED, f"cost/{part}")
    numbers: dict[str, float | None] = {STEP: report.checkpoint.step}
    if report.status != "done":
        return {STEP: report.checkpoint.step, f"status/{part}{report.status}": 1}
    for name, estimate in report.metrics.items():
        key = f"{prefix}/{report.dataset}/{name}"
        numbers |= {
            key: estimate.value,
            f"{key}/low": estimate.low,
            f"{key}/high": estimate.high,
            f"{key}/naive": estimate.naive,
        }
    if report.agreement is not None:
        parts = {name: value for name, value in asdict(report.agreement).items() if name != "metric"}
        numbers |= {f"fidelity/{report.dataset}/{name}": value for name, value in parts.items()}
    numbers |= {f"{cost}{name}_s": report.seconds.get(name) for name in ("encode", "total")}
    numbers[f"{cost}documents"] = report.corpus.get("encoded")
    numbers |= {f"{cost}{name}": number for name, number in _of_workers(report).items()}
    if not is_baseline and not part:
        # What was known when this Report came, not when it is delivered: a row is the same after an outage.
        before = (other.checkpoint.step for other in history if other.at < report.at)
        newest = max(before, default=report.checkpoint.step)
        numbers["lag/steps"] = max(newest, report.checkpoint.step) - report.checkpoint.step
        numbers["lag/seconds"] = lag_s(report)
    return {key: value for key, value in numbers.items() if value is not None}


def _of_workers(report: Report) -> dict[str, float]:
    """How many there were elsewhere, how often one was lost, and what they did in a second (`engine=ray`)."""
    workers = report.notes.get("workers") or ()
    speeds = [worker["slices"] / worker["busy_s"] for worker in workers if worker["busy_s"]]
    if not speeds:
        return {}
    lost = sum(worker["lost"] for worker in workers)
    numbers = {"workers": len(speeds), "workers_lost": lost, "slices_per_s": sum(speeds)}
    return {**numbers, "slowest_worker_slices_per_s": min(speeds)}


def report_id(report: Report) -> str:
    """The same for the same Report in every process, and another for every other one."""
    # Two names of the same weights are skipped in the same second: the name and the reason tell them apart.
    checkpoint = report.checkpoint
    parts = {"spec": report.spec, "digest": checkpoint.digest, "name": checkpoint.name, "step": checkpoint.step}
    return fingerprint({**parts, "status": report.status, "error": report.error, "at": report.at})


def allowed(config: Mapping[str, object], keys: Sequence[str]) -> dict[str, object]:
    """What may leave this machine of a configuration: the named keys, nothing else."""
    return {key: config[key] for key in keys if key in config}


def suite_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker keeps to make rows of a suite: `whole` of `row`, and the specs of its `members`."""
    collections = config.get("collections", ())
    return {"whole": config["dataset"] if collections else "", "members": tuple(str(names["spec"]) for names in collections)}
