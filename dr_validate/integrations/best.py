"""Which checkpoint is the best, by how much, and whether it is the one that was loaded at the end."""

import hashlib
import logging
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.errors import SetupError
from dr_validate.files import sha256_of_file
from dr_validate.integrations.announced import Identity
from dr_validate.ledger.per_query import paired_difference
from dr_validate.source.folder import wanted_files
from dr_validate.values import Report

log = logging.getLogger(__name__)


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
        """Copy the best's snapshot, which goes when its result is there, to `best-STEP` beside the checkpoints."""
        if (self._out / f"checkpoint-{self.step}").is_dir():
            return
        if snapshot is None or not snapshot.is_dir():
            log.warning("validation: step %d is the best, but its snapshot has been overtaken", self.step)
            return
        mine = self._out / f"best-{self.step}"
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
            if found := best_of(revised(), here, self._metric):
                return found
        return self.step, float(self._report.metrics[self._metric].value)


def place_of(out: Path, step: int) -> Path | None:
    """The folder of a step that can be loaded."""
    return next((place for name in ("checkpoint", "best") if (place := out / f"{name}-{step}").is_dir()), None)


def is_better(report: Report, best: Report, metric: str, state_dir: Path, min_confidence: float | None) -> bool:
    """Whether `report` has the greater value, and with `min_confidence` whether that is as sure as that for other queries like
    these: by the difference of each query, and on a sample by what the estimator says of the two together."""
    if not report.metrics[metric].value > best.metrics[metric].value:
        return False
    if min_confidence is None:
        return True
    if (found := paired_difference(state_dir, report, best, metric)) is None:
        return False
    gain, error = found
    return gain > statistics.NormalDist().inv_cdf(min_confidence) * error and gain > 0


def best_of(reports: Iterable[Report], steps: Mapping[str, int], metric: str) -> tuple[int, float] | None:
    """Step and value of the best among those whose digest is in `steps`; of equal ones the earliest. None without any."""
    found = [
        (steps[report.checkpoint.digest], report.metrics[metric].value)
        for report in reports
        if report.status == "done" and report.checkpoint.digest in steps
    ]
    return max(sorted(found), key=lambda one: one[1], default=None)


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
