"""One checkpoint, from its folder to its Report: the whole story. The worker process keeps it between checkpoints."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate import results
from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.estimates import Estimates
from dr_validate.lazy import LazyBlocks, LazyModel
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.sampler.full import FullSampler
from dr_validate.stages import Control, Model, TextBlocks, Vectors, Workload
from dr_validate.tokens import TokenCache
from dr_validate.values import Checkpoint, Float64, Ranking, Report, Sample, Scores, Side, TestSet
from dr_validate.worker_team import WorkerTeam

PerQuery = Mapping[str, Float64]  # metric -> (num_queries,)
SIDES: tuple[Side, Side] = ("query", "document")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to validate: a sample of the test set and the spec that its scores belong to."""

    spec: str
    sampler: str
    sample: Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A checkpoint in hand: its model and tokens, lazy, and what is to be ranked with them."""

    model: LazyModel
    texts: Mapping[Side, LazyBlocks]
    workload: Workload

    def contract(self) -> Mapping[str, Any]:
        """The model's, as it was when the first of its vectors was made."""
        return dict(self.workload.vectors.contract(lambda: self.model.contract))

    def seconds(self) -> dict[str, float]:
        """What loading and tokenizing took so far."""
        return {"load": self.model.load_s, "tokenize": sum(blocks.tokenize_s for blocks in self.texts.values())}


class Pipeline:
    """`open()` once, then `validate()` per checkpoint; nothing that two checkpoints share is done twice."""

    def __init__(self, run: Run, device: str, team: WorkerTeam | None = None) -> None:
        """`team`: the processes that do the work where `device` names several; this one only deals and merges."""
        self.run = run
        self.device = device
        self.team = team
        self.state_dir = run.settings.state_dir
        self.metrics = RanxMetrics(names=run.settings.metrics)
        self.tokens = TokenCache(self.state_dir / "tokens")
        self._warm_up = threading.Thread(target=self.metrics.warm_up, name="metrics-warm-up", daemon=True)

    def open(self) -> None:
        """Read the test set and draw the sample. Raises SetupError where either cannot be used."""
        if self.team:
            self.team.start()  # they import what they need meanwhile
        self._warm_up.start()
        self.open_data()
        results.write_sample(self.state_dir, self.test_set, self.plans[False].sample)
        if self.team:
            self.team.open(self.specs)

    def close(self) -> None:
        """End the processes of a team, if there is one."""
        if self.team:
            self.team.close()

    def open_data(self) -> None:
        """What a member of a team needs: it neither scores nor writes."""
        self.test_set: TestSet = self.run.dataset.open(self.state_dir / "datasets")
        self.plans = {False: self._plan(self.run.sampler), True: self._plan(FullSampler())}
        if self.plans[False].sample.is_full:  # every document is in: it is the full corpus, whatever it is called
            self.plans[True] = self.plans[False]

    def validate(self, checkpoint: Checkpoint, folder: Path, *, full: bool, control: Control) -> Report:
        """Encode, search, score, report. `full` encodes the whole corpus whatever the sampler says (a baseline)."""
        plan = self.plans[full]
        clock = _Clock()
        with self.prepare(checkpoint, folder, full=full) as work:
            if self.team is None:
                ranked = self.run.engine.rank(work.model, work.workload, self.run.index, control, self.device)
                contract, seconds = work.contract(), {**work.seconds(), **ranked.seconds}
            else:
                with self.team.at_work(checkpoint, folder, full=full):
                    ranked = self.run.engine.rank_shared(self.team, work.workload, self.run.index, control)
                contract, seconds = ranked.contract, dict(ranked.seconds)
        clock.lap("rank")
        self._warm_up.join()
        scores = self.metrics.score(ranked.ranking, self.test_set.qrels)
        clock.lap("score")
        outcome = self._estimates(plan).of(checkpoint.digest, ranked.ranking, scores)
        clock.lap("estimate")
        self._keep(checkpoint, plan, ranked.ranking, (outcome.per_query, scores.per_query))
        seconds |= clock.seconds()
        del seconds["rank"]
        return Report(
            checkpoint=checkpoint,
            dataset=self.test_set.name,
            sampler=plan.sampler,
            spec=plan.spec,
            status="done",
            at=checkpoint.created_at,  # the watcher, which owns the clock, puts the real time here
            metrics=outcome.metrics,
            corpus=self._counts(plan, ranked.encoded_now),
            seconds=seconds,
            notes={"encoder": contract, "device": self.device, **self._query_notes(scores), **outcome.notes},
        )

    @contextlib.contextmanager
    def prepare(self, checkpoint: Checkpoint, folder: Path, *, full: bool) -> Iterator[Work]:
        """All that ranking a checkpoint takes; nothing is loaded before it is used."""
        plan = self.plans[full]
        with self._kept_vectors(checkpoint) as vectors, LazyModel(lambda: self.run.encoder.load(folder, self.device)) as model:
            texts = {side: self._texts(side, plan.sample, model) for side in SIDES}
            yield Work(model=model, texts=texts, workload=self._workload(checkpoint, plan, texts, vectors))

    @property
    def specs(self) -> Sequence[str]:
        """Of the sample and of the full corpus: equal in processes that do the same work."""
        return [self.plans[full].spec for full in (False, True)]

    def describe(self) -> Mapping[str, Any]:
        """What the watcher needs to know: names, specs and sizes (JSON values)."""
        sampled, full = self.plans[False], self.plans[True]
        return {
            "dataset": self.test_set.name,
            "dataset_fingerprint": self.test_set.fingerprint,
            "documents": len(self.test_set.corpus),
            "queries": len(self.test_set.query_ids),
            "sampler": sampled.sampler,
            "sample_fingerprint": sampled.sample.fingerprint,
            "spec": sampled.spec,
            "encoded": len(sampled.sample.ordinals),
            "full_spec": full.spec,
            "device": self.device,
        }

    def _plan(self, sampler: Any) -> Plan:
        sample = sampler.draw(self.test_set, self.run.settings.seed, self.state_dir / "runs")
        spec = fingerprint(
            {
                "test_set": self.test_set.fingerprint,
                "sample": "full" if sample.is_full else sample.fingerprint,
                "encoder": dict(self.run.encoder.fingerprint()),
                "index": dict(self.run.index.fingerprint()),
                "metrics": list(self.run.settings.metrics),
                "top_k": self.run.settings.top_k,
            }
        )
        return Plan(spec=spec, sampler=type(sampler).__module__.rpartition(".")[2], sample=sample)

    def _kept_vectors(self, checkpoint: Checkpoint) -> AbstractContextManager[Vectors]:
        terms = {"encoder": dict(self.run.encoder.fingerprint()), "test_set": self.test_set.fingerprint}
        counts: dict[Side, int] = {"query": len(self.test_set.query_ids), "document": len(self.test_set.corpus)}
        kept: AbstractContextManager[Vectors] = self.run.store.vectors(checkpoint.digest, terms, counts, self.state_dir)
        return kept

    def _texts(self, side: Side, sample: Sample, model: Model) -> LazyBlocks:
        test_set = self.test_set
        if side == "query":
            key, number, block_size = f"queries-{test_set.fingerprint}", len(test_set.query_ids), len(test_set.query_ids)
        else:
            part = "full" if sample.is_full else sample.fingerprint
            key, number = f"documents-{test_set.fingerprint}-{part}", len(sample.ordinals)
            block_size = self.run.settings.block_documents

        def read(part: slice) -> Sequence[str] | Sequence[list[int]]:
            return test_set.query_texts[part] if side == "query" else test_set.corpus.texts(sample.ordinals[part])

        def open_blocks() -> TextBlocks:
            tokenizer = model.tokenizer(side)
            return self.tokens.open(tokenizer=tokenizer, texts_key=key, num_texts=number, read=read, block_size=block_size)

        return LazyBlocks(open_blocks, num_texts=number, block_size=block_size)

    def _workload(self, checkpoint: Checkpoint, plan: Plan, texts: Mapping[Side, LazyBlocks], vectors: Vectors) -> Workload:
        return Workload(
            queries=texts["query"],
            documents=texts["document"],
            vectors=vectors,
            ordinals=plan.sample.ordinals,
            own_documents=self.test_set.own_documents,
            tie_rank=self.test_set.corpus.tie_rank,
            top_k=self.run.settings.top_k,
            progress_file=self.state_dir / "progress" / f"{plan.spec}-{_file_name(checkpoint.digest)}.npz",
        )

    def _estimates(self, plan: Plan) -> Estimates:
        return Estimates(self.state_dir / "estimates" / plan.spec, self.test_set, plan.sample, self.run.settings.top_k)

    def _counts(self, plan: Plan, encoded_now: int) -> dict[str, float]:
        documents, encoded = plan.sample.num_documents, len(plan.sample.ordinals)
        return {"documents": documents, "encoded": encoded, "encoded_now": encoded_now, "fraction": encoded / documents}

    def _query_notes(self, scores: Scores) -> dict[str, int]:
        left_out = int(np.isnan(next(iter(scores.per_query.values()))).sum())
        return {"queries": len(self.test_set.query_ids), "queries_without_relevant_documents": left_out}

    def _keep(self, checkpoint: Checkpoint, plan: Plan, ranking: Ranking, values: tuple[PerQuery, PerQuery]) -> None:
        place = f"{plan.spec}/{_file_name(checkpoint.digest)}"
        results.write_query_values(self.state_dir / "queries" / f"{place}.parquet", self.test_set, *values)
        if self.run.settings.write_ranking:
            results.write_ranking(self.state_dir / "rankings" / f"{place}.trec", self.test_set, ranking, checkpoint.name)


class _Clock:
    """Durations of phases, end to end: no second is counted twice or lost."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self._laps[phase] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._laps, "total": self._last - self._start}


def _file_name(digest: str) -> str:
    return digest.replace(":", "-")
