"""One attempt at one checkpoint: recorded before it begins, ended in the ledger whatever happens."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import MEAN, Run
from dr_validate.errors import (
    CheckpointDeleted,
    CheckpointError,
    Interrupted,
    NoMemory,
    NotStated,
    Outage,
    SetupError,
    TimedOut,
)
from dr_validate.files import interruptible, is_disk_full, is_read_only
from dr_validate.ledger.ledger import Attempt, Ledger
from dr_validate.ledger.made import command_line
from dr_validate.ledger.reports import SAME_WEIGHTS, EstimateDetails, latest_of, named_folder, of_training, revised
from dr_validate.process import printable
from dr_validate.values import Checkpoint, Incomplete, Listing, Report, Status
from dr_validate.watcher.lock import Claimed, claim
from dr_validate.watcher.polling import SourcePoller
from dr_validate.watcher.schedule import Target
from dr_validate.watcher.worker_pool import WorkerPool
from dr_validate.watcher.worker_process import Tick, WorkerClient

MAX_INTERRUPTIONS_PER_ATTEMPT = 5
log = logging.getLogger(__name__)
LEAST_REVISION = 0.0005  # smaller changes of earlier values are not worth a line
MOST_TOLD = 3


class Attempts:
    """Runs attempts and keeps their books; `poller` brings the copies, `now` gives ISO 8601 times."""

    def __init__(
        self, run: Run, ledger: Ledger, worker: WorkerClient | WorkerPool, poller: SourcePoller, now: Callable[[], str]
    ) -> None:
        self.run, self.ledger, self.worker, self.poller, self.now = run, ledger, worker, poller, now
        self._is_known_training = False
        self._reported_as: dict[tuple[str, str], Checkpoint] = {}  # digest and spec -> under which name they are settled
        self._skipped: set[tuple[str, ...]] = set()  # told in this process; the ledger keeps each skip once, ever

    def validate(self, checkpoint: Checkpoint, target: Target, tick: Tick, *, more: bool = False) -> Report | None:
        """Try once; `more` collections of the checkpoint follow at once. Returns the final Report (done, failed for good, or
        skipped as gone), or None if it may be tried again.

        Raises Interrupted and SetupError after giving the attempt back: it does not count. What is not stated about the
        encoder is the run's mistake, until a checkpoint has been validated without it.
        """
        attempt = self.ledger.begin(checkpoint, target.spec, self.now())
        try:
            if attempt.interruptions > MAX_INTERRUPTIONS_PER_ATTEMPT * self.run.watch.max_attempts:
                raise CheckpointError(f"interrupted {attempt.interruptions} times: does it bring the whole process down?")
            report = self._run(checkpoint, target, tick, more)
        except Outage as error:  # nobody's fault: later, and no attempt less
            log.info("%s: %s", target.label(checkpoint), error)
            self.ledger.release(checkpoint.digest, target.spec)
            return None
        except CheckpointDeleted as error:
            self.ledger.release(checkpoint.digest, target.spec)  # nothing was tried; and only what waits can be skipped
            return self._end(checkpoint, target, "skipped", str(error), attempt.attempts)
        except NotStated as error:
            if not self._has_validated(target):
                self.ledger.release(checkpoint.digest, target.spec)
                raise SetupError(f"{checkpoint.label}: {error}") from error
            return self._end(checkpoint, target, "failed", str(error), attempt.attempts)
        except (TimedOut, NoMemory) as error:
            return self._retry(checkpoint, target, str(error), attempt)
        except CheckpointError as error:
            return self._end(checkpoint, target, "failed", str(error), attempt.attempts)
        except (Interrupted, SetupError, KeyboardInterrupt, SystemExit):
            self.ledger.release(checkpoint.digest, target.spec)
            raise
        except Exception as error:  # whatever it was: it costs this attempt, not the watcher
            if is_disk_full(error) or is_read_only(error):
                self.ledger.release(checkpoint.digest, target.spec)
                raise
            log.debug("attempt failed", exc_info=True)
            return self._retry(checkpoint, target, str(error) or type(error).__name__, attempt)
        return self.finish(dataclasses.replace(report, attempts=attempt.attempts), target)

    def skip(self, checkpoint: Checkpoint, target: Target, reason: str) -> None:
        """Report that a checkpoint will not be validated, once per reason."""
        if (checkpoint.name, checkpoint.version, target.spec, reason) not in self._skipped:
            level = logging.INFO if target.collection is None else logging.DEBUG  # of a suite the mean is told
            self._end(checkpoint, target, "skipped", reason, level=level)

    def skip_same_weights(self, listing: Listing, target: Target) -> None:
        """Report that one evaluation serves several checkpoints, for each but the one that has the Report, whatever came of its
        folder since and whichever training it is of; as long as there is none, for each but the first."""
        settled, first = self.ledger.settled(target.spec), dict[str, Checkpoint]()
        for one in listing.checkpoints:
            key = (one.digest, target.spec)
            if one.digest in settled and key not in self._reported_as:
                self._reported_as[key] = self.ledger.reported_as(*key)
            other = self._reported_as[key] if one.digest in settled else first.setdefault(one.digest, one)
            is_same_run = one.training_run == other.training_run or one.uri == other.uri  # which was without a name then
            if one.label != other.label or not is_same_run:
                where = "" if is_same_run else f" of {other.training_run or Path(other.uri).parent}"
                name = other.version if one.name == other.name else other.label
                self.skip(one, target, f"{SAME_WEIGHTS}{name}{where}")

    def refuse_another_training(self, listing: Listing, *targets: Target) -> None:
        """Raise SetupError where checkpoints of another folder stand in the ledger, both trainings without a name: their rows
        would mix. The same training in a folder that was moved or renamed shows by its digests."""
        here = [one for one in listing.checkpoints if not one.training_run and one.uri.startswith("/")]
        if not here or self._is_known_training:
            return
        self._is_known_training = True
        settled = [one for target in targets for one in self.ledger.reports(target.spec, ("done", "failed"))]
        known = [report.checkpoint for report in settled if not report.checkpoint.training_run]
        places = [{Path(one.uri).parent.resolve() for one in found} for found in (known, here)]
        if not known or places[0] & places[1] or _is_same_training(known, here):
            return
        there, ours = (sorted(map(str, found))[0] for found in places)
        raise SetupError(
            f"source.path: state_dir {self.run.settings.state_dir} has rows of another training, from {there}, and those of "
            f"{ours} would mix with them; set another state_dir, or tell this training apart by a name: source.name=NAME"
        )

    def skip_incomplete(self, part: Incomplete, target: Target) -> None:
        """Report what was never completed, or never seen; it has no digest, so its name stands for one."""
        if (part.name, part.name, target.spec, part.reason) in self._skipped:
            return
        known = self.ledger.reported_labels if part.is_deleted else self.ledger.settled_names
        if part.name in known(target.spec):
            return  # it was complete once, and is being deleted now; or its end has been reported
        checkpoint = Checkpoint(
            name=part.name,
            version=part.name,
            digest=f"incomplete:{part.name}",
            step=max(part.step, 0),
            step_from="folder name",
            created_at=self.now(),
            uri=part.uri,
            training_run=part.training_run,
            group=part.group,
        )
        self.skip(checkpoint, target, part.reason)

    def _has_validated(self, target: Target) -> bool:
        """Whether the encoder as configured has done for any checkpoint, so that another's lack is its own."""
        return any("done" in self.ledger.settled(spec).values() for spec in (target.spec, target.sampled_spec))

    def _run(self, checkpoint: Checkpoint, target: Target, tick: Tick, more: bool) -> Report:
        if (failure := self.poller.failure(checkpoint)) is not None:
            raise failure
        state_dir = self.run.settings.state_dir
        with contextlib.ExitStack() as stack:
            with interruptible(lambda: tick(None)):  # the copy may have to be read
                folder = stack.enter_context(self.run.store.lease(checkpoint.digest, state_dir))
            weights_sha256 = self.run.store.weights_sha256(checkpoint.digest, state_dir)
            checkpoint = dataclasses.replace(checkpoint, weights_sha256=weights_sha256)
            which: dict[str, Any] = {} if target.collection is None else {"collection": target.collection, "more": more}
            with _named_as_in_source(checkpoint, Path(folder)):
                report = self.worker.validate(checkpoint, Path(folder), full=target.is_baseline, tick=tick, **which)
        download = self.poller.fetch_seconds(checkpoint)
        total = report.seconds["total"] + download
        return dataclasses.replace(report, seconds={"download": download, **report.seconds, "total": total})

    def finish(self, report: Report, target: Target) -> Report:
        """Record a final Report, now; returns it with its agreement, which is that of its training."""
        report = dataclasses.replace(report, at=self.now())
        sampled, full = self.ledger.reports(target.sampled_spec), self.ledger.reports(target.full_spec)
        before = revised(sampled, full)
        (full if target.is_baseline else sampled).append(report)
        now = revised(sampled, full)
        if target.sampled_spec != target.full_spec:
            _, mine = of_training(report, now, self.run.source.training_run, named_folder(self.run.source))
            agreement = self.run.fidelity.compare(latest_of(mine), full, self.run.settings.metrics[0])
            report = dataclasses.replace(report, agreement=agreement)
        self.ledger.finish(report)
        if report.status != "done":
            log.error("failed %s: %s", target.label(report.checkpoint), report.error)
            return report
        metric, estimate = next(iter(report.metrics.items()))
        done = "baseline of" if target.is_baseline else "validated"
        done = f"mean, {done}" if report.dataset == MEAN and target.collection is None else done
        log.info(
            "%s %s: %s %.4f (%d documents, %.1f s%s)",
            *(done, target.label(report.checkpoint), metric, estimate.value),
            *(report.corpus["encoded"], report.seconds["total"]),
            ", ranked ahead" if report.notes.get("ranked_ahead") else "",
        )
        if words := _revisions(before, now, metric):
            where = "" if target.collection is None else f" on {target.dataset}"
            log.info("by what is known now%s: %s", where, words)
        return report

    def _retry(self, checkpoint: Checkpoint, target: Target, error: str, attempt: Attempt) -> Report | None:
        limit = self.run.watch.max_attempts
        if attempt.attempts >= limit:
            return self._end(checkpoint, target, "failed", f"{error} (attempt {attempt.attempts} of {limit})", attempt.attempts)
        self.ledger.retry_later(checkpoint.digest, target.spec, printable(error, keep="\n"), self.now())
        log.warning("%s: %s (attempt %d of %d; will try again)", target.label(checkpoint), error, attempt.attempts, limit)
        return None

    def _end(
        self, checkpoint: Checkpoint, target: Target, status: Status, error: str, attempts: int = 1, level: int = logging.INFO
    ) -> Report:
        """Record why there is no value, and never will be."""
        self._skipped.add((checkpoint.name, checkpoint.version, target.spec, error))
        report = Report(
            checkpoint=checkpoint,
            dataset=target.dataset,
            sampler="full" if target.is_baseline else target.sampler,
            spec=target.spec,
            status=status,
            at=self.now(),
            attempts=attempts,
            error=printable(error, keep="\n"),
        )
        self.ledger.finish(report)
        level = logging.ERROR if status == "failed" else level
        log.log(level, "%s %s: %s", status, target.label(checkpoint), error)
        return report


@contextlib.contextmanager
def _named_as_in_source(checkpoint: Checkpoint, copy: Path) -> Iterator[None]:
    """Have errors name the folder that the user knows, or the version in W&B, where the worker names the copy of it."""
    try:
        yield
    except Exception as error:
        own = checkpoint.uri if checkpoint.uri.startswith("/") else checkpoint.label
        for path in dict.fromkeys((str(copy.resolve()), str(copy.absolute()), str(copy))):  # the last may be the end of another
            error.args = tuple(part.replace(path, own) if isinstance(part, str) else part for part in error.args)
        raise


def _revisions(before: Sequence[Report], now: Sequence[Report], metric: str) -> str:
    """Which values of earlier checkpoints moved most, by more than a rounding, with what they were at first."""
    was = {report.checkpoint.digest: report.metrics[metric].value for report in before if metric in report.metrics}
    moved = [
        (abs(one.metrics[metric].value - was[one.checkpoint.digest]), one.checkpoint.step, one)
        for one in now
        if metric in one.metrics and one.checkpoint.digest in was
    ]
    largest = sorted(
        ((change, step, one) for change, step, one in moved if change >= LEAST_REVISION), key=lambda part: part[:2]
    )
    told = []
    for _, _, one in reversed(largest[-MOST_TOLD:]):
        first = EstimateDetails.of(one).as_reported[metric]
        told.append(f"{one.checkpoint.label} {metric} {one.metrics[metric].value:.4f} (first {first:.4f})")
    return ", ".join([*told, *([f"{len(largest) - MOST_TOLD} more"] if len(largest) > MOST_TOLD else [])])


def _is_same_training(known: Sequence[Checkpoint], here: Sequence[Checkpoint]) -> bool:
    """Whether they have weights in common, and no two of one name are different."""
    digests: dict[str, set[str]] = {}
    for one in known:
        digests.setdefault(one.name, set()).add(one.digest)
    if any(one.name in digests and one.digest not in digests[one.name] for one in here):
        return False
    return bool({one.digest for one in known} & {one.digest for one in here})


def open_books(run: Run, ledger: Ledger, described: Mapping[Target, Mapping[str, Any]], at: str) -> None:
    """Of targets and what the ledger is to say of them: nothing is running yet, and failures are tried again, or named."""
    for target, names in described.items():
        warn_of_another_spec(ledger, target, names)
        ledger.end_interrupted(target.spec)  # what a killed watcher was doing
        if target.baseline != target:
            with contextlib.suppress(Claimed), claim(run.settings.state_dir, target.full_spec, at):
                ledger.end_interrupted(target.full_spec)
        for one in {target, target.baseline}:
            baseline = {"baseline": one.is_baseline, "sampler": "full" if one.is_baseline else target.sampler}
            ledger.register_spec(one.spec, {**names, "spec": one.spec, **baseline, "command": command_line()}, at)
    specs = {spec for target in described for spec in (target.spec, target.full_spec)}
    retry_or_name(ledger, specs, retry=run.watch.retry_failed)
    for target, names in described.items():
        log.info(
            "validating on %s: %s, %d queries, %d of %d documents (sampler %s, spec %s)",
            *(names["device"], names["dataset"], names["queries"], names["encoded"], names["documents"]),
            *(target.sampler, target.spec),
        )


def warn_of_another_spec(ledger: Ledger, target: Target, names: Mapping[str, Any]) -> None:
    """Where an earlier start with these settings had another spec: a file that they name is another one now, or gone."""
    known = {spec: told for spec, told in ledger.specs().items() if not told.get("baseline")}
    if target.spec in known:
        return
    settings = json.loads(json.dumps(names.get("made")))  # tuples are lists in the ledger
    for spec, told in reversed(known.items()):
        if settings is None or told.get("made") != settings or told.get("dataset") != target.dataset:
            continue
        parts = {"dataset_fingerprint": "the files of the collection", "sample_fingerprint": "the runs that the sampler takes"}
        if changed := next((words for key, words in parts.items() if told.get(key) != names.get(key)), ""):
            log.warning(
                "%s: %s are others than at an earlier start with these settings (changed, removed or added): spec %s now, %s "
                "then; their rows lie side by side in state_dir and are not compared with each other",
                *(target.dataset, changed, target.spec, spec),
            )
        return


def retry_or_name(ledger: Ledger, specs: set[str], *, retry: bool) -> None:
    """Forget those failures if `retry`; else name them, and the way to have them tried again."""
    for spec in sorted(specs):
        if "failed" not in ledger.settled(spec).values():
            continue  # states read every Report
        failed = [state for state in ledger.states(spec) if state.state == "failed"]
        names = ", ".join(state.name for state in failed)
        if retry:
            for state in failed:
                ledger.retry(state.digest, spec)
            log.info("tried again, though failed for good before: %s", names)
        else:
            log.warning("failed for good before, and not tried again: %s (watch.retry_failed=true tries them)", names)
