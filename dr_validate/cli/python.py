"""For notebooks: results as a table, and one checkpoint evaluated in this process. `dr_validate` offers both by name."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dr_validate.config import build
from dr_validate.errors import CheckpointError, ConfigError, SetupError
from dr_validate.files import expanded, make_state_dir
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import EstimateDetails, lag_s
from dr_validate.values import Report

COLUMNS = (
    *("checkpoint", "version", "training_run", "step", "dataset", "sampler", "spec", "is_full", "status", "metric", "value"),
    *("low", "high", "naive", "as_reported", "population_low", "population_high", "documents", "encoded", "total_s", "lag_s"),
    *("at", "error", "digest"),
)
Choice = str | Path | Mapping[str, Any]


def reports(state_dir: str | Path = ".dr_validate") -> Any:
    """A pandas DataFrame of all Reports in `state_dir`: a row for each metric of each, by collection, spec and training step.

    `value`, `low` and `high` are as now known, as in `task=report`; `as_reported` is what the Report said at first. A failed or
    skipped checkpoint is a row without a metric, with its `error`. Raises SetupError where nothing was validated.
    """
    import pandas

    path = Path(state_dir).expanduser() / "ledger.db"
    if not path.is_file():
        raise SetupError(f"state_dir: {state_dir} holds no ledger.db; give the folder that the validation wrote to")
    with Ledger(path, read_only=True) as ledger:
        rows = [
            line
            for spec, described in ledger.specs().items()
            for report in ledger.revised(spec)
            for line in _lines(report, is_full=described.get("full_spec", spec) == spec)
        ]
    table = pandas.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["dataset", "spec", "step"], kind="stable", ignore_index=True)


def _lines(report: Report, *, is_full: bool) -> Iterator[dict[str, Any]]:
    checkpoint = report.checkpoint
    common = {
        "checkpoint": checkpoint.name,
        "version": checkpoint.version,
        "training_run": checkpoint.training_run,
        "step": checkpoint.step,
        "dataset": report.dataset,
        "sampler": report.sampler,
        "spec": report.spec,
        "is_full": is_full,
        "status": report.status,
        "at": report.at,
        "error": report.error,
        "digest": checkpoint.digest,
        "documents": report.corpus.get("documents"),
        "encoded": report.corpus.get("encoded"),
        "total_s": report.seconds.get("total"),
        "lag_s": lag_s(report),
    }
    for name, estimate in report.metrics.items():
        details = EstimateDetails.of(report)
        at_first, ends = details.as_reported.get(name), details.population.get(name)
        yield {
            **common,
            "metric": name,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "naive": estimate.naive,
            "as_reported": estimate.value if at_first is None else at_first,
            **({} if ends is None else dict(zip(("population_low", "population_high"), ends, strict=True))),
        }
    if not report.metrics:
        yield common


class _Unwatched:
    """stages.Control of work that nobody steers; Ctrl-C ends it."""

    def check(self) -> None:
        """Go on."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Say nothing."""


def evaluate(
    checkpoint: str | Path,
    dataset: Choice,
    sampler: Choice = "full",
    *,
    encoder: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    state_dir: str | Path | None = None,
) -> Report:
    """The Report of one checkpoint folder, made in this process; nothing is recorded, no tracker is told.

    `dataset` and `sampler`: the name of a choice (`pydoc`, `stratified`), or a mapping of its keys with the name as `choice`
    (`{"choice": "beir", "path": "nq"}`); a data set may be the path of a folder in BEIR's form. `encoder`: its keys;
    `settings`: `device`, `metrics`, `top_k`, `seed`. `state_dir` keeps converted corpora, and samples use the full-corpus
    baselines in it; None: a folder that is removed afterwards. Raises ConfigError, SetupError or CheckpointError.
    """
    with contextlib.ExitStack() as stack:
        if state_dir is None:
            state_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="dr_validate-"))
        others = {"encoder": encoder or {}, **(settings or {})}
        return _evaluate(expanded(checkpoint), dataset, sampler, others, expanded(state_dir))


def _evaluate(checkpoint: Path, dataset: Choice, sampler: Choice, others: Mapping[str, Any], state_dir: Path) -> Report:
    from dr_validate.worker.pipeline import Pipeline

    config = _composed({"dataset": dataset, "sampler": sampler, "tracker": "none"})
    for key, value in {"state_dir": str(state_dir), "source": {"path": str(checkpoint)}, **others}.items():
        if key not in config:
            raise ConfigError([f"settings: there is no key {key!r}; known are device, metrics, top_k, seed"])
        config[key] = {**config[key], **value} if isinstance(config[key], dict) else value
    run = build(config)
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint}: no such folder")
    make_state_dir(state_dir)
    found = run.source.list(state_dir)
    if len(found.checkpoints) != 1:
        lacks = (
            "; ".join(f"{one.name}: {one.reason}" for one in found.incomplete) or f"{len(found.checkpoints)} checkpoints in it"
        )
        raise CheckpointError(f"{checkpoint}: not the folder of one complete checkpoint ({lacks})")
    pipeline = Pipeline(run, run.engine.find_device(run.settings.device))
    with contextlib.closing(pipeline):
        pipeline.open()
        return pipeline.validate(found.checkpoints[0], checkpoint, full=False, control=_Unwatched())


def _composed(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """What the command line would compose, as plain values."""
    from dr_validate.cli.overrides import composed, unknown_choice

    named, keys = [], {}
    for group, choice in choices.items():
        if isinstance(choice, Mapping):
            keys[group] = {key: str(value) if isinstance(value, Path) else value for key, value in choice.items()}
        elif group == "dataset" and ("/" in str(choice) or Path(choice).is_dir()):
            keys[group] = {"choice": "beir", "path": str(choice)}
        else:
            keys[group] = {"choice": str(choice)}
        named.append(f"{group}={keys[group].pop('choice', None)}")
    config, error = composed(named)
    if error is not None:
        raise ConfigError([unknown_choice(error) or " ".join(str(error).split())]) from error
    return {**config, **{group: {**config[group], **given} for group, given in keys.items()}}
