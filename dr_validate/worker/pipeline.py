"""One checkpoint, from its folder to its Report: the whole story, in `Pipeline.validate`.

`Suite` is what the worker process keeps between checkpoints: the collections of a run, a pipeline each, which take turns with a
checkpoint; `HeldModel`: its weights, loaded once for all. `PipelineElsewhere`: the same on another device, for engine=ray.
"""

import contextlib
import functools
import json
import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.config import Run, build, of_member
from dr_validate.errors import SetupError
from dr_validate.files import name_of_digest
from dr_validate.ledger import per_query
from dr_validate.ledger.made import settings_of, versions
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.stages import Control, Encoder, Model, Ranked, Ranker
from dr_validate.values import Checkpoint, Float64, Ranking, RankingKey, Report, Sample, Scores, TestSet
from dr_validate.worker.encoding import CheckpointEncoding, Encoding, Load
from dr_validate.worker.estimates import Estimates, note_sample, revised_by
from dr_validate.worker.samples import Samples, SpecSample

PerQuery = Mapping[str, Float64]  # metric -> (num_queries,)
log = logging.getLogger(__name__)


class Pipeline:
    """`open()` once, then `validate()` per checkpoint; nothing that two checkpoints share is done twice."""

    ranker: Ranker

    def __init__(self, run: Run, device: str, load: Load | None = None) -> None:
        """`device`: see `Engine.find_device`. `load`: as `Encoding` has it."""
        self.run = run
        self.device = device
        self._load = load
        self._opened = contextlib.ExitStack()
        self.state_dir = run.settings.state_dir
        self.metrics = RanxMetrics(names=run.settings.metrics)
        self._warm_up = threading.Thread(target=self.metrics.warm_up, name="metrics-warm-up", daemon=True)

    def open(self, ranker: Ranker | None = None) -> None:
        """Read the test set and draw the sample; `ranker`: one that others use as well, in place of one of its own. Raises
        SetupError where the test set, the sample or the device cannot be used."""
        self.ranker = ranker or self._opened.enter_context(self.run.engine.start(self.device))
        self.open_data()
        sampled = self.samples.sampled
        note_sample(self.state_dir / "estimates" / sampled.spec, sampled.sample, self.samples.full.spec)
        per_query.write_sample(self.state_dir, self.test_set, sampled.sample)
        per_query.write_queries(self.state_dir, self.test_set)

    def close(self) -> None:
        """Let go of the device, or of many."""
        self._opened.close()

    def open_data(self) -> None:
        """What it takes to encode, without scoring or writing anything."""
        self.test_set: TestSet = self.run.dataset.open(self.state_dir / "datasets")
        self.metrics.check(self.test_set.qrels, self.test_set.name)
        self.samples = Samples(self.run, self.test_set)
        self.encoding = Encoding(self.run, self.device, self.test_set, self._load)

    def rank(self, checkpoint: Checkpoint, folder: Path, *, full: bool, control: Control) -> "RankedCheckpoint":
        """Encode and search. `full` encodes the whole corpus whatever the sampler says (a baseline)."""
        clock, sample = _Clock(), self.sample(full=full)
        with self.encoding.open(checkpoint.digest, folder, sample, self._begin_warm_up) as encoded:
            ranked = self._rank(encoded, checkpoint.digest, folder, sample, control)
            clock.lap("rank", ranked.seconds)
            clock.spent({"load": encoded.model.load_s})
        return RankedCheckpoint(ranked=ranked, clock=clock)

    def validate(
        self, checkpoint: Checkpoint, folder: Path, *, full: bool, control: Control, ahead: "RankedCheckpoint | None" = None
    ) -> Report:
        """Encode, search (unless `ahead` has what comes of it), score, report."""
        sample = self.sample(full=full)
        noted = {"ranked_ahead": True} if ahead else {}
        ahead = ahead or self.rank(checkpoint, folder, full=full, control=control)
        clock, ranked = ahead.clock, ahead.ranked
        clock.resume()
        control.progress("scoring", 0, 0)
        self._begin_warm_up()  # nothing was loaded if all vectors were kept
        self._warm_up.join()
        scores = self.metrics.score(ranked.ranking, self.test_set.qrels)
        clock.lap("score")
        control.progress("estimating", 0, 0)
        outcome = self._estimates(sample).of(checkpoint.digest, ranked.ranking, scores)
        clock.lap("estimate")
        control.progress("writing results", 0, 0)
        self._keep(checkpoint, sample, ranked.ranking, (outcome.per_query, scores.per_query))
        clock.lap("write")
        return Report(
            checkpoint=checkpoint,
            dataset=self.test_set.name,
            sampler=sample.sampler,
            spec=sample.spec,
            status="done",
            at=checkpoint.created_at,  # the watcher, which owns the clock, puts the real time here
            metrics=outcome.metrics,
            corpus=_counts(sample.sample, ranked.encoded_now),
            seconds=clock.seconds(),
            notes={
                "encoder": ranked.contract,
                **noted,
                **({"workers": list(ranked.workers)} if ranked.workers else {}),
                **self._notes(scores),
                **outcome.notes,
                **self._revised(checkpoint.digest, sample),
            },
        )

    def sample(self, *, full: bool) -> SpecSample:
        """What checkpoints are ranked on."""
        return self.samples.full if full else self.samples.sampled

    def describe(self) -> Mapping[str, Any]:
        """What the watcher needs to know: names, specs and sizes (JSON values)."""
        sampled, full = self.samples.sampled, self.samples.full
        return {
            "dataset": self.test_set.name,
            "dataset_fingerprint": self.test_set.fingerprint,
            "corpus": self.test_set.corpus_key,
            "documents": len(self.test_set.corpus),
            "queries": len(self.test_set.query_ids),
            "sampler": sampled.sampler,
            "sample_fingerprint": sampled.sample.fingerprint,
            "spec": sampled.spec,
            "encoded": len(sampled.sample.ordinals),
            "full_spec": full.spec,
            "device": self.device,
            "made": settings_of(self.run),
        }

    def _begin_warm_up(self) -> None:
        """Compile the metrics (numba) beside the first encoding, which needs little Python; the start would be slower by it."""
        if self._warm_up.ident is None:
            self._warm_up.start()

    def _rank(self, encoded: CheckpointEncoding, digest: str, folder: Path, sample: SpecSample, control: Control) -> Ranked:
        elsewhere = PipelineElsewhere(
            config=self.run.raw, spec=sample.spec, digest=digest, folder=folder, full=sample is self.samples.full
        )
        workload = replace(encoded.workload, elsewhere=elsewhere)
        ranked = self.ranker.rank(encoded.model, workload, self.run.index, control, self.device)
        return ranked if ranked.contract else replace(ranked, contract=encoded.contract())

    def _estimates(self, sample: SpecSample) -> Estimates:
        settings = self.run.settings
        folder = settings.state_dir / "estimates" / sample.spec
        return Estimates(folder, self.test_set, sample.sample, settings.top_k, self.samples.baselines)

    def _notes(self, scores: Scores) -> dict[str, Any]:
        left_out = int(np.isnan(next(iter(scores.per_query.values()))).sum())
        queries = {"queries": len(self.test_set.query_ids), "queries_without_relevant_documents": left_out}
        return {"device": self.device, "versions": versions(), **queries}

    def _revised(self, digest: str, sample: SpecSample) -> dict[str, Any]:
        """Of a full-corpus ranking: the sampled values that it has changed, those of other runs in this state_dir, too."""
        if sample is not self.samples.full:
            return {}
        settings, baselines = self.run.settings, self.samples.baselines
        estimates = self.state_dir / "estimates"
        found = revised_by(digest, estimates, sample.spec, self.test_set, settings.top_k, settings.metrics, baselines)
        return {"sampled": found} if found else {}

    def _keep(self, checkpoint: Checkpoint, sample: SpecSample, ranking: Ranking, values: tuple[PerQuery, PerQuery]) -> None:
        place = f"{sample.spec}/{name_of_digest(checkpoint.digest)}"
        per_query.write_query_values(self.state_dir / "queries" / f"{place}.parquet", self.test_set, *values)
        per_query.write_top(self.state_dir / "top" / f"{place}.parquet", self.test_set, ranking)
        if self.run.settings.write_ranking:
            per_query.write_ranking(self.state_dir / "rankings" / f"{place}.trec", self.test_set, ranking, checkpoint.name)
        if sample is self.samples.full:
            self.samples.baselines.keep(checkpoint, ranking)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCheckpoint:
    """What `Pipeline.rank` has found, and how long it took."""

    ranked: Ranked
    clock: "_Clock"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineElsewhere:
    """`engine.ray_workers.Elsewhere`: the same pipeline in another process, where it stays between checkpoints."""

    config: Mapping[str, Any]
    spec: str
    digest: str
    folder: Path
    full: bool

    @contextlib.contextmanager
    def open(self, folder: Path, device: str, *, keep: bool) -> Iterator[CheckpointEncoding]:
        """See `Elsewhere.open`."""
        pipeline = _pipeline(json.dumps(self.config), device)
        sample = pipeline.sample(full=self.full)
        if sample.spec != self.spec:
            raise SetupError(
                f"the sample of {pipeline.test_set.name} is another one here (spec {sample.spec}) than where the run was "
                f"started ({self.spec}): do data set or packages differ?"
            )
        with pipeline.encoding.open(self.digest, folder, sample, keep=keep) as encoded:
            yield encoded


@functools.cache  # one for each collection of a run, which no process outlives
def _pipeline(config: str, device: str) -> Pipeline:
    pipeline = Pipeline(build(json.loads(config)), device)
    pipeline.open_data()
    return pipeline


class _Clock:
    """Durations of phases, end to end: no second is counted twice or lost."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._laps = {"load": 0.0, "tokenize": 0.0}

    def lap(self, phase: str, parts: Mapping[str, float] | None = None) -> None:
        """What went by since the last lap belongs to `phase`, or was measured in `parts`."""
        now = time.monotonic()
        self.spent({phase: now - self._last} if parts is None else parts)
        self._last = now

    def spent(self, parts: Mapping[str, float]) -> None:
        """Seconds that were measured elsewhere."""
        for phase, seconds in parts.items():
            self._laps[phase] = self._laps.get(phase, 0.0) + seconds

    def resume(self) -> None:
        """Leave out what went by since the last lap: nothing was done for this checkpoint."""
        now = time.monotonic()
        self._start += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._laps, "total": self._last - self._start}


def _counts(sample: Sample, encoded_now: int) -> dict[str, float]:
    documents, encoded = sample.num_documents, len(sample.ordinals)
    return {"documents": documents, "encoded": encoded, "encoded_now": encoded_now, "fraction": encoded / documents}


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
        self._ranked: dict[RankingKey, RankedCheckpoint] = {}
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
        self,
        checkpoint: Checkpoint,
        folder: Path,
        *,
        collection: int,
        full: bool,
        keep: Collection[RankingKey],
        control: Control,
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
