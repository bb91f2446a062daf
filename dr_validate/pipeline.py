"""One checkpoint, from its folder to its Report: the whole story. The worker process keeps it between checkpoints."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate import results
from dr_validate.config import Run
from dr_validate.early import reason_to_stop
from dr_validate.epochs import NotKept
from dr_validate.estimates import Outcome
from dr_validate.made import settings_of, versions
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.outcomes import Outcomes
from dr_validate.plans import Plan, Plans
from dr_validate.sampler.full import FullSampler
from dr_validate.stages import Control, Ranked
from dr_validate.values import Checkpoint, Float64, Ranking, Report, Scores, TestSet
from dr_validate.work import Bench, Hand, Work
from dr_validate.worker_team import WorkerTeam

PerQuery = Mapping[str, Float64]  # metric -> (num_queries,)
log = logging.getLogger(__name__)


class Pipeline:
    """`open()` once, then `validate()` per checkpoint; nothing that two checkpoints share is done twice."""

    def __init__(self, run: Run, device: str, team: WorkerTeam | None = None) -> None:
        """`team`: the processes that do the work where `device` names several; this one only deals and merges."""
        self.run = run
        self.device = device
        self.team = team
        self.state_dir = run.settings.state_dir
        self.metrics = RanxMetrics(names=run.settings.metrics)
        self._warm_up = threading.Thread(target=self.metrics.warm_up, name="metrics-warm-up", daemon=True)

    def open(self) -> None:
        """Read the test set and draw the sample. Raises SetupError where either cannot be used."""
        if self.team:
            self.team.start()  # they import what they need meanwhile
            self._begin_warm_up()
        self.open_data()
        self._write_samples(self.plans.levels(0))
        results.write_queries(self.state_dir, self.test_set)
        if self.team:
            self.team.open(self.specs)

    def close(self) -> None:
        """End the processes of a team, if there is one."""
        if self.team:
            self.team.close()

    def open_data(self) -> None:
        """What a member of a team needs: it neither scores nor writes."""
        self.test_set: TestSet = self.run.dataset.open(self.state_dir / "datasets")
        self.metrics.check(self.test_set.qrels, self.test_set.name)
        self.plans = Plans(self.run, self.test_set, FullSampler())
        self.bench = Bench(self.run, self.device, self.test_set)
        self.outcomes = Outcomes(self.run.settings, self.test_set, self.plans)

    def validate(self, checkpoint: Checkpoint, folder: Path, *, full: bool, control: Control) -> Report:
        """Encode, search, score, report. `full` encodes the whole corpus whatever the sampler says (a baseline)."""
        clock, encoded_now, reason = _Clock(), 0, None
        earlier: dict[str, Any] = {}
        with self._in_hand(checkpoint, folder) as hand:
            for plan in [self.plans[True]] if full else self._sampled():
                ranked = self._rank(hand, plan, control)
                clock.lap("rank", ranked.seconds)
                encoded_now += ranked.encoded_now
                control.progress("scoring", 0, 0)
                self._begin_warm_up()  # nothing was loaded if all vectors were kept
                self._warm_up.join()
                scores = self.metrics.score(ranked.ranking, self.test_set.qrels)
                clock.lap("score")
                self._meet_anchor(plan, control)
                control.progress("estimating", 0, 0)
                outcome = self.outcomes.of(plan, checkpoint.digest, ranked.ranking, scores)
                earlier |= outcome.notes.get("estimate", {}).get("earlier", {})  # of those that met this level
                clock.lap("estimate")
                if reason := self._reason_to_stop(checkpoint, plan, outcome):
                    break
            clock.spent({"load": hand.model.load_s})
        control.progress("writing results", 0, 0)
        self._keep(checkpoint, plan, ranked.ranking, (outcome.per_query, scores.per_query))
        return Report(
            checkpoint=checkpoint,
            dataset=self.test_set.name,
            sampler=plan.sampler,
            spec=plan.spec,
            status="done",
            at=checkpoint.created_at,  # the watcher, which owns the clock, puts the real time here
            metrics=outcome.metrics,
            corpus=self._counts(plan, encoded_now),
            seconds=clock.seconds(),
            notes={
                "encoder": ranked.contract,
                **self._notes(plan, scores, reason),
                **_with_earlier(outcome, earlier),
                **self._taught(plan),
            },
        )

    def work(self, hand: Hand, *, full: bool, part: str) -> Work:
        """What a member of a team ranks; `part`: see `Plan`."""
        return self.bench.work(hand, self.plans[True] if full else self.plans.named(part))

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
        """Beside the first encoding, which needs little of Python; the start, all of it Python, would take longer by it."""
        if self._warm_up.ident is None:
            self._warm_up.start()

    def _sampled(self) -> Sequence[Plan]:
        """The samples for the next checkpoint: it is done with the first that says enough."""
        plans = self.plans.levels(self.plans.advance(self.outcomes.has_met))
        self._write_samples(plans)
        return plans

    def _write_samples(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            results.write_sample(self.state_dir, self.test_set, plan.sample)

    @contextlib.contextmanager
    def _in_hand(self, checkpoint: Checkpoint, folder: Path) -> Iterator[Hand]:
        """On this device, or on those of the team."""
        with contextlib.ExitStack() as stack:
            hand = stack.enter_context(self.bench.in_hand(checkpoint.digest, folder, self._begin_warm_up))
            if self.team:
                stack.enter_context(self.team.in_hand(checkpoint.digest, folder))
            yield hand

    def _rank(self, hand: Hand, plan: Plan, control: Control) -> Ranked:
        work = self.bench.work(hand, plan)
        workload = replace(work.workload, gives_way=plan is self.plans[True] and plan is not self.plans[False])
        if self.team is None:
            ranked = self.run.engine.rank(work.model, workload, self.run.index, control, self.device)
            seconds = {"tokenize": work.tokenize_s, **ranked.seconds}
            return replace(ranked, contract=work.contract(), seconds=seconds)
        with self.team.at_work(full=plan is self.plans[True], part=plan.part):
            return self.run.engine.rank_shared(self.team, workload, self.run.index, control)

    def _meet_anchor(self, plan: Plan, control: Control) -> None:
        """Rank the checkpoint by which this sample was drawn on it, too, if its vectors are kept: nothing is encoded for it."""
        anchor = self.outcomes.missing_anchor(plan)
        if anchor is None:
            return
        device = self.device if self.team is None else "cpu"
        try:
            with self.bench.in_hand(anchor, None) as hand:
                ranked = self.run.engine.rank(hand.model, self.bench.work(hand, plan).workload, self.run.index, control, device)
        except NotKept:
            log.warning("vectors of %s are not kept: no checkpoint of this epoch compares with those of earlier ones", anchor)
        else:
            self.outcomes.meet(plan, anchor, ranked.ranking)

    def _reason_to_stop(self, checkpoint: Checkpoint, plan: Plan, outcome: Outcome) -> str | None:
        if plan is self.plans.current[-1]:
            return None  # nothing more would be encoded anyway
        reason = reason_to_stop(self.run.sampler, outcome) if plan.level else None
        if reason:
            log.info("%s needs no more than %d documents: %s", checkpoint.label, len(plan.sample.ordinals), reason)
        return reason

    def _counts(self, plan: Plan, encoded_now: int) -> dict[str, float]:
        documents, encoded = plan.sample.num_documents, len(plan.sample.ordinals)
        return {"documents": documents, "encoded": encoded, "encoded_now": encoded_now, "fraction": encoded / documents}

    def _notes(self, plan: Plan, scores: Scores, reason: str | None) -> dict[str, Any]:
        left_out = int(np.isnan(next(iter(scores.per_query.values()))).sum())
        queries = {"queries": len(self.test_set.query_ids), "queries_without_relevant_documents": left_out}
        made = {"device": self.device, "versions": versions(), **queries}
        if not plan.level:
            return made
        share = len(plan.sample.ordinals) / plan.sample.num_documents
        early = {"level": plan.level, "fraction": share, "reason": reason or "end of the sample"}
        return {**made, "early": early}

    def _taught(self, plan: Plan) -> dict[str, Any]:
        """Of a baseline: the sampled values that it has changed."""
        sampled = self.plans[False]
        if plan is sampled or plan is not self.plans[True]:
            return {}
        seen = self.outcomes.seen(self.plans.current)
        return {"sampled": {"spec": sampled.spec, "earlier": seen}} if seen else {}

    def _keep(self, checkpoint: Checkpoint, plan: Plan, ranking: Ranking, values: tuple[PerQuery, PerQuery]) -> None:
        place = f"{plan.spec}/{_file_name(checkpoint.digest)}"
        results.write_query_values(self.state_dir / "queries" / f"{place}.parquet", self.test_set, *values)
        results.write_top(self.state_dir / "top" / f"{place}.parquet", self.test_set, ranking)
        if self.run.settings.write_ranking:
            results.write_ranking(self.state_dir / "rankings" / f"{place}.trec", self.test_set, ranking, checkpoint.name)
        if plan is self.plans[True]:
            self.plans.baselines.keep(checkpoint, ranking)


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

    def seconds(self) -> dict[str, float]:
        return {**self._laps, "total": self._last - self._start}


def _with_earlier(outcome: Outcome, earlier: Mapping[str, Any]) -> Mapping[str, Any]:
    estimate = outcome.notes.get("estimate")
    return {**outcome.notes, "estimate": {**estimate, "earlier": earlier}} if estimate and earlier else outcome.notes


def _file_name(digest: str) -> str:
    return digest.replace(":", "-")
