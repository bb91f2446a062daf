"""The checkpoints of a training: which wait for their validation, which of those with a result is the best, which go.

One that waits lies where the watcher looks, as hard links to its files (on another disk, copies): whatever the trainer deletes,
they stay until the result is there. What a link leads to could be written again: the watcher copies it and checks its digest.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dr_validate.encoder.backbone import TOKENIZER_FILES
from dr_validate.encoder.spec import CONTRACT_FILE
from dr_validate.errors import SetupError
from dr_validate.files import sha256_of_file, sha256_of_files, write_atomically
from dr_validate.integrations.publish import STATE_FILE, Snapshot, write_contract
from dr_validate.ledger.per_query import paired_difference
from dr_validate.ledger.reports import best_of, revised
from dr_validate.source.folder import wanted_files
from dr_validate.values import Report

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which weights a step had: `digest` as the folder source gives it, `weights_sha256` as a Report does."""

    step: int
    epoch: float
    digest: str
    weights_sha256: str


@dataclass(slots=True, kw_only=True)
class Waiting:
    """A step whose result is not there yet; `identity` is None of one that was not written."""

    identity: "Future[Identity | None]"
    snapshot: Snapshot | None = None


class WaitingSteps:
    """Steps that wait, in `folder`; identities of all steps so far are in `record`, for a training that resumes."""

    def __init__(self, folder: Path, record: Path) -> None:
        self.folder, self._record = folder, record
        self.waiting: dict[int, Waiting] = {}
        self.identities: dict[int, Identity] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dr_validate-digests")

    def resume(self, step: int, checkpoints: Mapping[int, Path], epoch: float) -> None:
        """Go on from `step`: what is known up to it waits for the ledger, what came after it did not happen.

        `checkpoints`: folders that the training has on disk; `epoch` that of `step`.
        """
        with contextlib.suppress(FileNotFoundError):
            lines = self._record.read_text(encoding="utf-8").splitlines()
            known = [Identity(**json.loads(line)) for line in lines if line.endswith("}")]
            self.identities = {one.step: one for one in known if one.step <= step}
        self._rewrite_record()
        for place in sorted(self.folder.glob("checkpoint-*")):
            if int(place.name.rpartition("-")[2]) > step:
                shutil.rmtree(place, ignore_errors=True)
        for one in self.identities.values():
            identity: Future[Identity | None] = Future()
            identity.set_result(one)
            self.waiting[one.step] = Waiting(identity=identity)
        for number, place in checkpoints.items():
            if number <= step and number not in self.identities:
                self.add(number, place, epoch * number / step)

    def add(self, step: int, checkpoint: Path, epoch: float) -> None:
        """Link a saved checkpoint's files to where the watcher looks."""
        place = self.folder / f"checkpoint-{step}"
        building = place.with_name(f".{place.name}")
        shutil.rmtree(building, ignore_errors=True)
        for name, path in {**wanted_files(checkpoint), STATE_FILE: checkpoint / STATE_FILE}.items():
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, building / name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, building / name)
        shutil.rmtree(place, ignore_errors=True)
        building.rename(place)
        self.waiting[step] = Waiting(identity=self._thread.submit(self._identify, step, epoch, place))

    def add_snapshot(self, snapshot: Snapshot, epoch: float) -> None:
        """The same for one that is being written where the watcher looks."""
        identity = self._thread.submit(self._identify_snapshot, snapshot, epoch)
        self.waiting[snapshot.step] = Waiting(identity=identity, snapshot=snapshot)

    def settled(self, reports: Iterable[Report]) -> list[tuple[Identity, Report]]:
        """Waiting steps that have a final Report, by step."""
        final: dict[str, Report] = {}
        for report in reports:
            keys = [report.checkpoint.digest]
            if report.status == "done" and report.checkpoint.weights_sha256:
                keys.append(report.checkpoint.weights_sha256)  # of a watcher on a folder with other files beside the weights
            for key in keys:
                if key not in final or final[key].status != "done":
                    final[key] = report
        found = []
        for step in sorted(self.waiting):
            identity = self.waiting[step].identity
            one = identity.result() if identity.done() else None
            keys = [] if one is None else [key for key in (one.digest, one.weights_sha256) if key in final]
            if one is not None and keys:
                found.append((one, final[keys[0]]))
            elif identity.done() and one is None:
                del self.waiting[step]
        return found

    def remove(self, step: int) -> None:
        """It waits no longer: its result is there."""
        shutil.rmtree(self.folder / f"checkpoint-{step}", ignore_errors=True)
        del self.waiting[step]

    def _identify_snapshot(self, snapshot: Snapshot, epoch: float) -> Identity | None:
        snapshot.written.wait()
        return None if snapshot.folder is None else self._identify(snapshot.step, epoch, snapshot.folder)

    def _identify(self, step: int, epoch: float, place: Path) -> Identity | None:
        try:
            digests = {name: sha256_of_file(path) for name, path in wanted_files(place).items()}
        except FileNotFoundError:  # replaced, or overtaken, meanwhile
            return None
        one = Identity(step=step, epoch=epoch, digest=sha256_of_files(digests), weights_sha256=digest_of_weights(digests))
        self.identities[step] = one
        with self._record.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(one)) + "\n")
        return one

    def _rewrite_record(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._record, "".join(json.dumps(asdict(one)) + "\n" for one in self.identities.values()))


def digest_of_weights(digests: Mapping[str, str]) -> str:
    """Of the weights among files and their hex digests, as `Checkpoint.weights_sha256` has it."""
    weights = {name: value for name, value in digests.items() if name.endswith(".safetensors")}
    return next(iter(weights.values())) if len(weights) == 1 else sha256_of_files(weights).removeprefix("sha256:")


def add_what_is_missing(checkpoint: Path, tokenizer: Any, contract: Mapping[str, Any]) -> None:
    """Add to a checkpoint what its trainer leaves out: the tokenizer (Tevatron), and the encoder contract. Only to be called
    when it has just been saved: a trainer takes the folder that was written to last for the newest."""
    if tokenizer is not None and not any((checkpoint / name).is_file() for name in ("modules.json", *TOKENIZER_FILES)):
        tokenizer.save_pretrained(str(checkpoint))
    if contract and not (checkpoint / CONTRACT_FILE).is_file():
        write_contract(checkpoint, contract)


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Folders `checkpoint-STEP` by ascending step."""
    names = [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name.rpartition("-")[2].isdecimal()]
    return dict(sorted((int(path.name.rpartition("-")[2]), path) for path in names))


def to_delete(steps: Sequence[int], limit: int | None, kept: Iterable[int]) -> list[int]:
    """Which of the saved `steps` (ascending) go, oldest first, until `limit` are left: never the newest, nor those `kept`."""
    if limit is None or limit <= 0:
        return []
    safe = {*kept, *steps[-1:]}
    going = [step for step in steps if step not in safe]
    return going[: max(0, len(steps) - limit)]


class BestSoFar:
    """The best of the results so far, by one metric; -1 as `step` before there is one."""

    def __init__(self, out: Path, metric: str, state_dir: Path, min_confidence: float | None) -> None:
        self._out, self._metric, self._state_dir, self._min_confidence = out, metric, state_dir, min_confidence
        self._report: Report | None = None
        self.step = -1

    def offer(self, report: Report, step: int) -> bool:
        """Whether it takes the place of the best."""
        if self._report is not None and not is_better(
            report, self._report, self._metric, self._state_dir, self._min_confidence
        ):
            return False
        self._report, self.step = report, step
        return True

    def keep(self, snapshot: Path | None) -> None:
        """Copy the best's snapshot, which goes when its result is there, to `best-STEP` beside the checkpoints, unless it is
        one of these; the best before goes."""
        mine = self._out / f"best-{self.step}"
        if not (self._out / f"checkpoint-{self.step}").is_dir():
            if snapshot is None or not snapshot.is_dir():
                log.warning("validation: step %d is the best, but its snapshot has been overtaken", self.step)
                return
            shutil.copytree(snapshot, mine, dirs_exist_ok=True)
        for other in self._out.glob("best-*"):
            if other != mine:
                shutil.rmtree(other, ignore_errors=True)

    def final(self, revised: Callable[[], Sequence[Report]], identities: Iterable[Identity]) -> tuple[int, float] | None:
        """Step and value of the best by all that is known now, of those that are on disk: a sampled value may have moved."""
        if self._report is None:
            return None
        if self._min_confidence is None:
            here = {one.digest: one.step for one in identities if place_of(self._out, one.step) is not None}
            if best := best_of([one for one in revised() if one.checkpoint.digest in here], self._metric):
                return here[best.checkpoint.digest], best.metrics[self._metric].value
        return self.step, float(self._report.metrics[self._metric].value)


def place_of(out: Path, step: int) -> Path | None:
    """The folder of a step that can be loaded."""
    return next((place for name in ("checkpoint", "best") if (place := out / f"{name}-{step}").is_dir()), None)


def is_better(report: Report, best: Report, metric: str, state_dir: Path, min_confidence: float | None) -> bool:
    """Whether `report` has the greater value; with `min_confidence` only if a one-sided test over the queries' differences, on
    a sample with what the estimator knows of the two together, is at least that sure."""
    if min_confidence is None:
        return report.metrics[metric].value > best.metrics[metric].value
    report, best = revised([report, best])  # by what was known when the later one came
    try:
        found = paired_difference(state_dir, report, best, metric)
    except OSError as error:
        log.warning("min_confidence: %s; the best stays", error)
        return False
    if found is None:
        why = "it is an upper bound, or of fewer than ten queries"
        log.warning("min_confidence: how sure a difference in %s is, is not known (%s); the best stays", metric, why)
        return False
    gain, spread = found
    return gain > statistics.NormalDist().inv_cdf(min_confidence) * spread and gain > 0


def check_loaded(model: Any, folder: Path, weights_sha256: str) -> None:
    """Raises SetupError unless every weight in `folder`, which was validated as `weights_sha256`, is in the model.

    Tevatron's names of weights lack the prefix that its model has, so that its trainer loads nothing: that is done here.
    """
    files = {name: path for name, path in wanted_files(folder).items() if name.endswith(".safetensors")}
    if len(files) == 1 and weights_sha256 and sha256_of_file(next(iter(files.values()))) != weights_sha256:
        raise SetupError(f"{folder} was validated as the best, but its weights have been changed since")
    if not _missing(model, files):
        log.info("validation: the weights of %s are loaded, compared one by one", folder.name)
        return
    if hasattr(model, "encoder") and hasattr(model.encoder, "save_pretrained"):
        from safetensors.torch import load_file

        model.encoder.load_state_dict(
            {key: one for path in files.values() for key, one in load_file(path).items()}, strict=False
        )
    if missing := _missing(model, files):
        raise SetupError(
            f"the best checkpoint is {folder}, but the trainer has not loaded it (its log says why): {len(missing)} of its "
            f"weights are not in the model, such as {missing[0]}; load it from that folder, the model in memory is another one"
        )
    log.info("validation: the trainer had not loaded the weights of %s: loaded under the names of its encoder", folder.name)


def _missing(model: Any, files: Mapping[str, Path]) -> list[str]:
    """Names of weights in the files that are nowhere in the model, going by content: names differ from library to library."""
    from safetensors.torch import load_file

    there = {_content(one) for one in model.state_dict().values() if hasattr(one, "numel")}
    return [name for path in files.values() for name, one in load_file(path).items() if _content(one) not in there]


def _content(tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
    import torch

    plain = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(plain.flatten().view(torch.uint8).numpy().data if plain.numel() else b"").digest()
    return str(plain.dtype), tuple(plain.shape), digest
