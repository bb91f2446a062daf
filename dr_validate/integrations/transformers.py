"""Validation beside any transformers Trainer: `AsyncValidation(["dataset=beir", ...]).attach(trainer)`, and nothing else.

It patches nothing. Evaluation is asked for as usual (eval_strategy, eval_steps, a data set of one row) and never runs here: at
each save a watcher, a process of its own, is given the checkpoint; its result comes back some steps later and is told to
log_history, reporters, early stopping, schedulers and the choice of the best, at the step that it belongs to.

Ranks: results are read by rank 0 and sent to the others, every RANKS_EVERY steps and at saves, by broadcast_object_list.
DistributedDataParallel: saves and snapshots work so. FSDP, DeepSpeed: saves, if they hold whole weights; snapshots
are refused, as their weights are in parts. Tests have one process on a processor; two processes of DDP on a processor were
tried by hand. On a GPU scripts/gpu_check.py has tried snapshots and a training beside its watcher (scripts/GPU.md); several
GPUs, FSDP and DeepSpeed were never tried.
"""

import contextlib
import copy
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.encoder.spec import CONTRACT_KEYS
from dr_validate.errors import SetupError
from dr_validate.files import make_state_dir
from dr_validate.integrations.checkpoints import (
    BestSoFar,
    WaitingSteps,
    add_what_is_missing,
    check_loaded,
    checkpoints_in,
    place_of,
    to_delete,
)
from dr_validate.integrations.checks import (
    ValidationSettings,
    as_list,
    base_model,
    check_contract,
    check_trainer,
    chosen,
    complete_overrides,
    keys_for,
    values_of,
    visible_device,
)
from dr_validate.integrations.child import WatcherChild, compose
from dr_validate.integrations.publish import Snapshots, tevatron_contract, unwrapped
from dr_validate.ledger.reports import is_expected
from dr_validate.values import Report

RANKS_EVERY = 10  # steps between two broadcasts
LOOK_EVERY_S = 0.2
WAIT_S = 1.0  # between two looks while the training waits
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What all ranks are told of one step; `metrics` is empty where there is nothing to tell (again)."""

    step: int
    epoch: float
    metrics: Mapping[str, float]
    value: float = 0.0  # of the metric that chooses
    is_best: bool = False


class AsyncValidation(transformers.TrainerCallback):
    """Validates the checkpoints of a Trainer beside it; see `attach`.

    `overrides`: what one would type after `python -m dr_validate`. `device`: the watcher's, cuda:1 by the trainer's numbers or,
    where it does not see that many, by the machine's. `every`: steps between validations without a save, by a snapshot into
    `snapshot_folder`; None: at each save. `exit_timeout_s`: what the end of the training waits for results.
    `backpressure`, when validation is slower than saving: newest (what is overtaken is skipped, and said), all, or wait (a save
    waits for the result before). `min_confidence`: how sure it must be, by queries in pairs, that a checkpoint is better than
    the best so far to take its place (0.95, say); None: by the value alone.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        device: str | None = None,
        every: int | None = None,
        exit_timeout_s: float = 600,
        backpressure: str = "newest",
        min_confidence: float | None = None,
        snapshot_folder: str | Path = "/dev/shm",
    ) -> None:
        self._overrides = as_list(overrides)
        self._settings = ValidationSettings(
            device=device,
            every=every,
            exit_timeout_s=exit_timeout_s,
            backpressure=backpressure,
            min_confidence=min_confidence,
            snapshot_folder=Path(snapshot_folder),
        )
        self._trainer: Any = None
        self._child: WatcherChild | None = None
        self._snapshots: Snapshots | None = None
        self._best: BestSoFar | None = None
        self._limit: int | None = None
        self._told: set[int] = set()
        self._mine: set[int] = set()  # steps that this training has saved
        self._next_look = 0.0
        self._is_ending = False
        self._blocked_s = self._waited_s = 0.0

    def attach(self, trainer: Any) -> "AsyncValidation":
        """Join `trainer`, before train(). Raises SetupError with every setting that would not work, and the way out."""
        check_trainer(trainer, self._settings, self._overrides, type(self))
        out = Path(trainer.args.output_dir).absolute()
        folder = self._settings.snapshot_folder / f"dr_validate-{os.getuid()}-{fingerprint({'out': str(out)})}"
        self._folder = folder if self._settings.every else out / ".dr_validate" / "announced"
        places = {"source.path": str(self._folder), "source.name": out.name, "state_dir": str(out / ".dr_validate")}
        self._command = complete_overrides(self._overrides, self._settings, places, base_model(trainer.model))
        self._run: Run = compose(self._command)
        self._state_dir = self._run.settings.state_dir.absolute()
        if trainer.is_world_process_zero():
            make_state_dir(self._state_dir)
        self._keys = keys_for(trainer.args, self._run.settings.metrics, tuple(self._run.members))
        self._metric = chosen(trainer.args, self._keys)
        stated = {key: getattr(self._run.encoder, key, None) for key in CONTRACT_KEYS}
        said = tevatron_contract(unwrapped(trainer.model)) | {key: one for key, one in stated.items() if one is not None}
        self._contract = {key: value for key, value in said.items() if key in CONTRACT_KEYS}
        check_contract(unwrapped(trainer.model), self._run)
        self._tokenizer = getattr(trainer, "processing_class", None) or getattr(trainer.data_collator, "tokenizer", None)
        self._limit = trainer.args.save_total_limit
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    @property
    def watcher_pid(self) -> int | None:
        """Of the watcher, while this process has one."""
        return None if self._child is None else self._child.pid

    @property
    def results(self) -> tuple[Report, ...]:
        """All Reports so far, by step; those of the last fraction of a second are told at the next step."""
        return () if self._child is None else self._child.latest

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if self._trainer is None:
            raise SetupError("AsyncValidation joins a trainer by attach(trainer), not as one of its callbacks=[...]")
        if state.is_hyper_param_search:
            raise SetupError(
                "hyperparameter_search takes the values of evaluate(), which late results cannot give; detach this"
            )
        args.save_total_limit = None  # what waits must not be deleted: see _rotate
        self._best = None
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None  # the ledger knows better
        self._is_ending = False
        key = next(iter(self._keys.values()))
        self._told = {int(row["step"]) for row in state.log_history if key in row}
        if not state.is_world_process_zero:
            return
        with self._blocks():
            self._best = BestSoFar(Path(args.output_dir), self._metric, self._state_dir, self._settings.min_confidence)
            self._waiting = WaitingSteps(self._folder, Path(args.output_dir) / ".dr_validate" / "trainer.jsonl")
            found = checkpoints_in(Path(args.output_dir)) if state.global_step else {}
            self._waiting.resume(state.global_step, found, state.epoch or 0.0)
            self._mine = {step for step in found if step <= state.global_step}
            visible = visible_device(self._settings.device)[1]
            self._child = WatcherChild(self._command, self._run, [Path(args.output_dir), self._folder], visible)
            self._child.start()
            if self._settings.every:
                contract = {} if hasattr(parts["model"], "modules_json") else self._contract
                self._snapshots = Snapshots(parts["model"], self._folder, self._tokenizer, contract)
                if not state.global_step:
                    self._snapshot(state, wait=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self._go_on(args, state, control, parts)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        control.should_evaluate = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if self._snapshots is not None:
            self._snapshots.before_weights_change()

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if not state.is_world_process_zero:
            return
        with self._blocks():
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._mine.add(state.global_step)
            # Nothing that the command line states: another watcher may look now.
            said = {key: one for key, one in self._contract.items() if getattr(self._run.encoder, key, None) is None}
            add_what_is_missing(checkpoint, self._tokenizer, said)
            if not self._settings.every:
                self._wait_for_results()
                self._waiting.add(state.global_step, checkpoint, state.epoch)
            self._rotate(args)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **parts: Any) -> None:
        """The last moment before the Trainer loads the best model is when it logs train_runtime."""
        if logs is None or "train_runtime" not in logs:
            return
        with self._blocks():
            self._finish(args, state, control, parts)

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        args.save_total_limit = self._limit
        if not state.is_world_process_zero:
            return
        try:
            if args.load_best_model_at_end and state.best_model_checkpoint is not None:
                self._check_loaded(state, parts["model"])
            if self._limit == 1 and state.best_model_checkpoint is not None:
                self._delete(args, [step for step in self._mine if step != state.best_global_step])
        finally:
            if self._child is not None:
                self._child.stop()
            if self._settings.every:
                shutil.rmtree(self._folder, ignore_errors=True)
        logs = {"validation_blocked_s": round(self._blocked_s, 3), "validation_waited_s": round(self._waited_s, 3)}
        log.info("validation: the training was blocked %.2f s, of these it waited %.2f s for results", *logs.values())
        state.log_history.append({**logs, "step": state.global_step})
        state.save_to_json(str(Path(args.output_dir) / "trainer_state.json"))  # what came last is in no checkpoint's

    # What follows is done by every rank.

    def _go_on(self, args: Any, state: Any, control: Any, parts: Mapping[str, Any]) -> None:
        control.should_evaluate = False  # the watcher does it
        step = state.global_step
        with self._blocks():
            if args.world_size == 1 or step % RANKS_EVERY == 0 or control.should_save:
                self._deliver(args, state, control, parts)
            every = self._settings.every
            if self._snapshots is not None and every and (step % every == 0 or control.should_training_stop):
                self._snapshot(state, wait=control.should_training_stop)

    def _deliver(self, args: Any, state: Any, control: Any, parts: Mapping[str, Any]) -> None:
        for result in self._shared(args, self._collect(args, state) if state.is_world_process_zero else None):
            self._tell(args, state, control, result, parts.get("lr_scheduler"))

    def _tell(self, args: Any, state: Any, control: Any, result: Result, scheduler: Any) -> None:
        if result.metrics and result.step not in self._told:
            self._told.add(result.step)
            row = {**result.metrics, "epoch": result.epoch}
            state.log_history.append({**row, "step": result.step})
            past = copy.copy(state)
            past.global_step, past.epoch = result.step, result.epoch
            wishes = control.should_log, control.should_save
            self._trainer.callback_handler.on_log(args, past, control, dict(row))
            self._trainer.callback_handler.on_evaluate(args, past, control, dict(row))
            control.should_log, control.should_save = wishes
            is_whole = self._keys[self._metric] in result.metrics  # of a suite, on all collections
            if is_whole and type(scheduler).__name__ in ("ReduceLROnPlateau", "GreedyLR"):
                scheduler.step(result.value)
        if result.is_best:  # after on_evaluate: early stopping compares with what was the best before
            self._set_best(args, state, result.step, result.value)

    def _set_best(self, args: Any, state: Any, step: int, value: float) -> None:
        state.best_metric, state.best_global_step = value, step
        place = place_of(Path(args.output_dir), step)
        state.best_model_checkpoint = None if place is None else str(place)

    def _shared(self, args: Any, mine: Any) -> Any:
        """What rank 0 has, on every rank."""
        if args.world_size == 1:
            return mine
        import torch.distributed as dist

        held = [mine]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def _finish(self, args: Any, state: Any, control: Any, parts: Mapping[str, Any]) -> None:
        began, is_over, late, self._is_ending = time.monotonic(), False, False, True
        while not is_over:
            self._next_look = 0.0
            self._deliver(args, state, control, parts)
            late = time.monotonic() - began > self._settings.exit_timeout_s
            is_over = self._shared(args, state.is_world_process_zero and (not self._waiting.waiting or late or self._is_dead()))
            if not is_over:
                time.sleep(WAIT_S / 4)
        self._waited_s += time.monotonic() - began
        if state.is_world_process_zero and self._waiting.waiting:
            steps = ", ".join(map(str, self._waiting.waiting))
            why = f"within exit_timeout_s={self._settings.exit_timeout_s:g}" if late else "any more: the watcher has ended"
            log.warning("validation: no result of steps %s %s; the ledger keeps what is done", steps, why)
        best = None
        if self._best is not None and self._child is not None:  # rank 0
            best = self._best.final(self._child.revised, self._waiting.identities.values())
        best = self._shared(args, best)
        if best is not None:
            self._set_best(args, state, *best)

    # What follows is done by rank 0 alone.

    def _collect(self, args: Any, state: Any) -> list[Result]:
        """What has come since the last time, by step; the best among it is known."""
        assert self._child is not None and self._best is not None
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + LOOK_EVERY_S
        self._is_dead()
        results, overtaken = [], []
        for identity, report in self._waiting.settled(self._child.latest):
            step, snapshot = identity.step, self._waiting.waiting[identity.step].snapshot
            if report.status != "done":
                if is_expected(report):
                    overtaken.append(str(step))
                else:
                    log.warning("validation: no result of step %d: %s", step, report.error)
                results.append(Result(step=step, epoch=identity.epoch, metrics=self._of_collections(report)))
            else:
                results.append(self._result(args, report, step, identity.epoch))
                if results[-1].is_best and snapshot is not None:
                    self._best.keep(snapshot.folder)
            self._waiting.remove(step)
        if overtaken:
            log.info("validation: overtaken by a newer checkpoint, and skipped: step %s", ", ".join(overtaken))
        if results:
            self._rotate(args)
        return results

    def _result(self, args: Any, report: Report, step: int, epoch: float) -> Result:
        assert self._best is not None
        is_best = args.metric_for_best_model is not None and self._best.offer(report, step)
        value = float(report.metrics[self._metric].value)
        metrics = {**self._of_collections(report), **values_of(report, self._keys)}
        return Result(step=step, epoch=epoch, metrics=metrics, value=value, is_best=is_best)

    def _of_collections(self, report: Report) -> dict[str, float]:
        """Of a suite the values on each collection that did not fail."""
        assert self._child is not None
        metrics = self._run.settings.metrics
        found: dict[str, float] = {}
        for one in self._child.by_collection.get(report.checkpoint.digest, []):
            found |= values_of(one, {metric: f"eval_{one.dataset}_{metric}" for metric in metrics})
        return found

    def _snapshot(self, state: Any, *, wait: bool) -> None:
        assert self._snapshots is not None
        self._wait_for_results()
        if state.global_step in self._waiting.waiting:
            return
        snapshot = self._snapshots.take(state.global_step, wait=wait or self._settings.backpressure != "newest")
        if snapshot is None:
            log.info("validation: no snapshot of step %d, the one before is still being written", state.global_step)
            return
        self._waiting.add_snapshot(snapshot, state.epoch or 0.0)
        if self._settings.backpressure == "newest":  # the oldest may be in work, the newest will be: the others are overtaken
            for waiting in list(self._waiting.waiting.values())[1:-1]:
                if waiting.snapshot is not None and waiting.snapshot.written.is_set():
                    self._snapshots.remove(waiting.snapshot)

    def _wait_for_results(self) -> None:
        """With backpressure=wait: until no result is outstanding."""
        began = time.monotonic()
        while self._settings.backpressure == "wait" and not self._is_dead():
            assert self._child is not None
            if len(self._waiting.settled(self._child.latest)) == len(self._waiting.waiting):
                break
            time.sleep(WAIT_S / 4)
        self._waited_s += time.monotonic() - began

    def _is_dead(self) -> bool:
        """Whether no further result can come. Raises SetupError for wrong settings, but not once the training is over."""
        try:
            return self._child is None or not self._child.check()
        except SetupError as error:
            if not self._is_ending:
                raise
            log.error("validation: %s", error)
            return True

    def _rotate(self, args: Any) -> None:
        steps = sorted(step for step in self._mine if (Path(args.output_dir) / f"checkpoint-{step}").is_dir())
        kept = [*self._waiting.waiting, *([] if self._best is None else [self._best.step])]
        self._delete(args, to_delete(steps, self._limit, kept))

    def _delete(self, args: Any, steps: Sequence[int]) -> None:
        for step in steps:
            shutil.rmtree(Path(args.output_dir) / f"checkpoint-{step}", ignore_errors=True)
            self._mine.discard(step)

    def _check_loaded(self, state: Any, model: Any) -> None:
        known, place = self._waiting.identities.get(state.best_global_step), Path(state.best_model_checkpoint)
        is_same_file = known is not None and (self._settings.every is None or place.name.startswith("best-"))
        check_loaded(unwrapped(model), place, known.weights_sha256 if known is not None and is_same_file else "")

    @contextlib.contextmanager
    def _blocks(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._blocked_s += time.monotonic() - began
