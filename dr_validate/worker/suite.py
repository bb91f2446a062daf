"""The collections of a run, one pipeline each. They take turns with a checkpoint, whose weights are loaded once for all."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dr_validate.config import Run, of_member
from dr_validate.errors import SetupError
from dr_validate.stages import Control, Encoder, Model
from dr_validate.values import Checkpoint, Report
from dr_validate.worker.pipeline import Pipeline, RankedAhead

Job = tuple[str, int, bool]
"""Digest of a checkpoint, number of the collection, whether on the full corpus."""


class HeldModel:
    """The model of one checkpoint, kept between the collections of a suite until it is released."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._key: tuple[str, str] | None = None
        self._stated: Mapping[str, Any] = {}
        self._model: Model

    @contextlib.contextmanager
    def load(self, encoder: Encoder, digest: str, folder: Path, device: str) -> Iterator[Model]:
        """See `Encoder.load`; with the weights that are held, where they are of this checkpoint (`digest`)."""
        stated = encoder.fingerprint()
        if self._key != (digest, device):
            self.release()
            self._model = self._stack.enter_context(encoder.load(folder, device))
            self._key, self._stated = (digest, device), stated
        if stated == self._stated:
            yield self._model
            return
        with encoder.load(folder, device, self._model) as model:
            yield model

    def release(self) -> None:
        """Free the weights."""
        self._key = None
        with contextlib.suppress(AttributeError):
            del self._model
        self._stack.close()


class Suite:
    """The pipelines of a run: one, or one for each member of dataset=suite, in their order."""

    def __init__(self, run: Run, device: str) -> None:
        self._names = list(run.members)
        self._held = HeldModel() if run.members else None
        load = self._held.load if self._held else None
        self._pipelines = [Pipeline(one, device, load) for one in run.collections]
        self._run, self._device = run, device
        self._ranked: dict[Job, RankedAhead] = {}
        self._engine = contextlib.ExitStack()

    def open(self) -> None:
        """Open every pipeline, on one engine. Raises SetupError with what is wrong with any, by the keys of the member."""
        ranker = self._engine.enter_context(self._run.engine.start(self._device))
        if not self._names:
            self._pipelines[0].open(ranker)
            return
        problems = []
        for name, pipeline in zip(self._names, self._pipelines, strict=True):
            try:
                pipeline.open(ranker)
            except SetupError as error:
                problems.append(of_member(name, str(error)))
        if problems:
            raise SetupError("\n".join(problems))
        self._refuse_doubles()

    def close(self) -> None:
        """Let go of the device, or of many."""
        self._engine.close()

    def describe(self) -> Mapping[str, Any]:
        """`Pipeline.describe`, of a suite that of each member as `collections`."""
        described = [pipeline.describe() for pipeline in self._pipelines]
        return {"collections": described} if self._names else described[0]

    def rank(
        self, checkpoint: Checkpoint, folder: Path, *, collection: int, full: bool, keep: Collection[Job], control: Control
    ) -> None:
        """Rank ahead: `validate` then begins with the ranking. Of what is ranked already only `keep` stays."""
        self._ranked = {job: ranked for job, ranked in self._ranked.items() if job in keep}
        ranked = self._pipelines[collection].rank(checkpoint, folder, full=full, control=control)
        self._ranked[checkpoint.digest, collection, full] = ranked

    def validate(
        self, checkpoint: Checkpoint, folder: Path, *, collection: int, full: bool, more: bool, control: Control
    ) -> Report:
        """`Pipeline.validate` of one collection. `more`: others of the same checkpoint follow, for which its model is held."""
        is_held = False
        ahead = self._ranked.pop((checkpoint.digest, collection, full), None)
        try:
            report = self._pipelines[collection].validate(checkpoint, folder, full=full, control=control, ahead=ahead)
            is_held = more
        finally:
            if self._held and not is_held:
                self._held.release()
        return report

    def _refuse_doubles(self) -> None:
        """In a mean they would count twice; and Reports, keys and curves go by names."""
        first: dict[tuple[str, str], str] = {}
        for name, pipeline in zip(self._names, self._pipelines, strict=True):
            kinds = {
                ("hold the same documents, queries and judgements", pipeline.test_set.fingerprint),
                ("have the same name", pipeline.test_set.name),
            }
            for what, key in sorted(kinds):
                if (other := first.setdefault((what, key), name)) != name:
                    keys = f"dataset.members.{other} and dataset.members.{name}"
                    raise SetupError(f"{keys} {what} ({key}): each collection may be in a suite once; leave one out")
