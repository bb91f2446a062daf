"""What is known to be wrong before the training begins, and the names under which its trainer wants the results."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_validate.config import MEAN, Run
from dr_validate.errors import ConfigError
from dr_validate.integrations.child import set_of
from dr_validate.integrations.publish import unwrapped
from dr_validate.values import Report

BACKPRESSURE = ("newest", "all", "wait")
# Keys, or the beginning of some, that the trainer decides, and how.
OURS = {
    "source": "it is the folder of the training",
    "source.": "it is the folder of the training",
    "task": "it is to validate",
    "watch.mode": "follow",
    "watch.stop_file": "it ends with the training",
    "watch.skip": "by backpressure=",
    "watch.order": "by backpressure=",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSettings:
    """Those of AsyncValidation."""

    device: str | None
    every: int | None
    exit_timeout_s: float
    backpressure: str
    min_confidence: float | None
    snapshot_folder: Path


def check_trainer(trainer: Any, settings: ValidationSettings, overrides: Sequence[str], cls: type) -> None:
    """Raises ConfigError with everything of a trainer and of the settings that would not work; `cls`: of the callback."""
    problems = [*_wrong_overrides(overrides), *_wrong_settings(settings, set_of(overrides))]
    problems += _wrong_arguments(trainer.args, settings)
    if any(isinstance(one, cls) for one in trainer.callback_handler.callbacks):
        problems.append("attach: the trainer has an AsyncValidation already; one is enough")
    problems += _wrong_parts(trainer, settings)
    named = base_model(trainer.model)
    if named is not None and "encoder.base_model" not in set_of(overrides) and not Path(named).is_dir():
        problems.append(
            f"encoder.base_model: checkpoints of PEFT hold the adapter alone, and its base {named!r} is no folder here; add "
            "'encoder.base_model=FOLDER' to the overrides"
        )
    if problems:
        raise ConfigError(problems)


def as_list(overrides: Sequence[str]) -> list[str]:
    """Raises ConfigError for a string, whose letters would be taken for overrides."""
    if isinstance(overrides, str):
        raise ConfigError([f"overrides: got {overrides!r}, expected a list of such"])
    return list(overrides)


def check_contract(model: Any, run: Run) -> None:
    """Raises ConfigError where no checkpoint of a model of transformers will say how it pools: the watcher would refuse the
    first one, in the midst of the training. What else than such a model says, its checkpoints show."""
    if not type(model).__module__.startswith("transformers.models.") or model.config.model_type == "dpr":
        return
    lacking = {
        f"encoder.{key}"
        for one in run.collections
        for key in ("pooling", "normalize")
        if getattr(one.encoder, key, True) is None
    }
    if lacking:
        kind = type(model).__name__
        raise ConfigError(
            [f"{key}: a {kind} does not say it; state it as in training" for key in sorted(lacking, reverse=True)]
        )


def complete_overrides(
    overrides: Sequence[str], settings: ValidationSettings, places: Mapping[str, str], base: str | None
) -> list[str]:
    """The command line of the watcher: what was typed, with `places` and what follows from the settings."""
    typed = set_of(overrides)
    added = {**places, "watch.poll_s": "0.5", **({} if base is None else {"encoder.base_model": base})}
    added = {key: value for key, value in added.items() if key not in typed}
    if settings.device is not None:
        added["device"] = visible_device(settings.device)[0]
    skip, order = ("stale", "newest_first") if settings.backpressure == "newest" else ("never", "oldest_first")
    added |= {"watch.mode": "follow", "watch.skip": skip, "watch.order": order}
    return [*overrides, "source=folder", *(f"{key}={_quoted(value)}" for key, value in added.items())]


def _quoted(value: str) -> str:
    """As Hydra's grammar takes any text."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def base_model(model: Any) -> str | None:
    """Name or folder of the base of a PEFT model; None for others."""
    configs = getattr(unwrapped(model), "peft_config", None)
    return str(next(iter(configs.values())).base_model_name_or_path) if configs else None


def _wrong_overrides(overrides: Sequence[str]) -> list[str]:
    problems = [
        f"{key}: the trainer decides it ({how}); leave it out"
        for key in set_of(overrides)
        for ours, how in OURS.items()
        if key == ours or (ours.endswith(".") and key.startswith(ours))
    ]
    return [*problems, *(f"{override}: expected key=value" for override in overrides if "=" not in override)]


def _wrong_settings(settings: ValidationSettings, typed: Mapping[str, str]) -> list[str]:
    problems = []
    if settings.every is not None and settings.every < 1:
        problems.append(f"every: got {settings.every}, expected a number of steps, or None for every save")
    if settings.every is not None:
        try:
            settings.snapshot_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problems.append(f"snapshot_folder: {settings.snapshot_folder} cannot be made ({error.strerror}); set another one")
    if settings.backpressure not in BACKPRESSURE:
        problems.append(f"backpressure: got {settings.backpressure!r}, expected one of {', '.join(BACKPRESSURE)}")
    if settings.min_confidence is not None and not 0.5 <= settings.min_confidence < 1:
        problems.append(f"min_confidence: got {settings.min_confidence}, expected 0.5 to below 1, such as 0.95")
    if settings.min_confidence is not None and typed.get("sampler") == "run_pool":
        problems.append(
            "min_confidence: how sure a difference is, sampler=run_pool never says; leave it out, or set sampler=stratified"
        )
    if settings.exit_timeout_s < 0:
        problems.append(f"exit_timeout_s: got {settings.exit_timeout_s}, expected seconds")
    if settings.device is not None and "device" in typed:
        problems.append(f"device: set twice, {settings.device!r} here and {typed['device']!r} in the overrides; leave one out")
    return problems


def _wrong_arguments(args: Any, settings: ValidationSettings) -> list[str]:
    problems = []
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "best":
        problems.append("save_strategy='best': a checkpoint is saved before its result is known; set 'steps', the best is kept")
    if strategy == "no" and settings.every is None:
        problems.append("save_strategy='no': nothing would be validated; set 'steps', or every=N for snapshots without a save")
    if args.metric_for_best_model is not None and args.greater_is_better is False:
        problems.append("greater_is_better=False: every metric of retrieval is better when it is greater; set True")
    if settings.device is not None and settings.device.startswith("cuda") and args.n_gpu > 1:
        problems.append(
            f"device={settings.device}: the Trainer spreads batches over all {args.n_gpu} GPUs (DataParallel), this one too; "
            "start the training with CUDA_VISIBLE_DEVICES=0, or by accelerate launch --num_processes 1"
        )
    return problems


def _wrong_parts(trainer: Any, settings: ValidationSettings) -> list[str]:
    """Of FSDP and DeepSpeed, whose ranks hold parts of the weights."""
    problems = []
    state = trainer.accelerator.state
    is_fsdp, is_deepspeed = bool(trainer.is_fsdp_enabled), bool(trainer.is_deepspeed_enabled)
    if (is_fsdp or is_deepspeed) and settings.every is not None:
        problems.append("every: FSDP and DeepSpeed keep weights in parts, of which no snapshot is taken; validate saves (None)")
    if is_fsdp and "SHARDED" in str(state.fsdp_plugin.state_dict_type).upper():
        problems.append(
            "FSDP saves its weights in parts (SHARDED_STATE_DICT), which is no checkpoint of transformers; set "
            "fsdp_state_dict_type FULL_STATE_DICT"
        )
    if is_deepspeed and state.deepspeed_plugin.zero_stage == 3:
        zero = state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
        if not zero.get("stage3_gather_16bit_weights_on_model_save"):
            problems.append(
                "DeepSpeed ZeRO-3 saves no whole weights; set stage3_gather_16bit_weights_on_model_save to true under "
                "zero_optimization"
            )
    return problems


def visible_device(device: str | None) -> tuple[str, str | None]:
    """Device and CUDA_VISIBLE_DEVICES of the watcher: one that the trainer does not see is meant by the machine's number."""
    kind, _, number = (device or "auto").partition(":")
    if kind != "cuda" or not number:
        return device or "auto", None
    import torch

    if int(number) < torch.cuda.device_count() or "CUDA_VISIBLE_DEVICES" not in os.environ:
        return f"{kind}:{number}", None
    return "cuda:0", number


def keys_for(args: Any, metrics: Sequence[str], collections: Sequence[str] = ()) -> dict[str, str]:
    """Metric -> the trainer's key of it: `eval_<metric>`, or with the words between that metric_for_best_model has
    (sentence-transformers: `eval_<evaluator>_<similarity>_<metric>`); of several `collections` that of the mean, `eval_mean_
    <metric>` unless it says otherwise. Raises ConfigError for one that is not computed."""
    wanted = args.metric_for_best_model
    if wanted is None:
        return {metric: f"eval_{MEAN}_{metric}" if collections else f"eval_{metric}" for metric in metrics}
    name = wanted.removeprefix("eval_")
    theirs = {metric: metric.replace("hit_rate@", "accuracy@") for metric in metrics}  # as sentence-transformers calls it
    for metric, their in theirs.items():
        for known in (metric, their):
            if name == known or name.endswith(f"_{known}"):
                before = name.removesuffix(known)
                if (own := before.removesuffix("_")) in collections:
                    raise ConfigError(
                        [
                            f"metric_for_best_model: got {wanted!r}, of {own} alone; of a suite the mean decides: set "
                            f"{MEAN}_{known}"
                        ]
                    )
                return {one: f"eval_{before}{theirs[one] if before else one}" for one in metrics} | {metric: f"eval_{name}"}
    raise ConfigError(
        [
            f"metric_for_best_model: got {wanted!r}, but what is computed is {', '.join(metrics)}; set one of these, or add "
            f"'metrics=[...]' to the overrides"
        ]
    )


def chosen(args: Any, keys: Mapping[str, str]) -> str:
    """The metric that chooses the best: that of metric_for_best_model, else the first."""
    wanted = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
    return next((metric for metric, key in keys.items() if key == wanted), next(iter(keys)))


def values_of(report: Report, keys: Mapping[str, str]) -> dict[str, float]:
    """A row for the trainer: values, and where they are estimates the ends of their 95% intervals."""
    row = {}
    for metric, key in keys.items():
        estimate = report.metrics[metric]
        row[key] = float(estimate.value)
        if estimate.low < estimate.value or estimate.value < estimate.high:
            row |= {f"{key}_low": float(estimate.low), f"{key}_high": float(estimate.high)}
    return row
