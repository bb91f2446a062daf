"""One draw after the other, through the sampling, ranking and estimating that dr_validate ships, in several processes."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from dr_validate.estimator.estimate import Estimated, differences, estimate
from dr_validate.estimator.evidence import RankEvidence, can_be_estimated, rank_evidence
from dr_validate.metrics.gains import means
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.values import Float64, Ranking, Sample, Scores, TestSet
from scripts.research.study.ranking import Rankings
from scripts.research.study.strategies import FULL, Samplers


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One draw; `corrected`: estimates are wanted, too."""

    sampler: str
    fraction: float
    seed: int
    corrected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What a Report would say of one metric. Pairs are those of `pairs`: the later checkpoint minus the earlier one."""

    value: Float64  # (num_checkpoints,), as low, high and outranking
    low: Float64
    high: Float64
    outranking: Float64
    difference: Float64  # (num_pairs,), as those that follow: NaN where there is no interval
    difference_low: Float64
    difference_high: Float64
    p: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What became of a task, by metric; `corrected` is empty where it was not wanted."""

    num_documents: int
    naive: Mapping[str, Float64]  # (num_checkpoints,)
    corrected: Mapping[str, Corrected]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """One checkpoint on the full corpus. `largest_error`: over metrics and queries, of the estimate with everything in."""

    values: Mapping[str, float]
    largest_error: float


def pairs(number: int) -> tuple[list[int], list[int]]:
    """Later and earlier checkpoint of every pair."""
    return [i for i in range(number) for _ in range(i)], [j for i in range(number) for j in range(i)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What all processes share. `online`: a checkpoint is corrected with itself and the earlier ones only; `baselines`: with
    the full-corpus rankings of these, but its own."""

    test_set: TestSet
    rankings: Rankings
    samplers: Samplers
    num_checkpoints: int
    metrics: tuple[str, ...]
    top_k: int
    online: bool
    baselines: Mapping[int, Ranking]

    def truth(self, number: int) -> Truth:
        """Of one checkpoint."""
        everything = self.samplers.draw(FULL, 1.0, 0)
        ranking = self.rankings.of(number, everything.ordinals)
        scores = self._score(ranking)
        known = self._evidence(ranking, everything)
        errors = []
        for metric, exact in scores.per_query.items():
            estimated = estimate([known], self.test_set.qrels, metric, self.top_k)[0]
            errors += [abs(estimated.value - scores.mean(metric)), float(np.nanmax(np.abs(estimated.per_query - exact)))]
        return Truth(values={metric: scores.mean(metric) for metric in self.metrics}, largest_error=max(errors))

    def draw(self, task: Task) -> Drawn:
        """One sample, ranked by every checkpoint."""
        sample = self.samplers.draw(task.sampler, task.fraction, task.seed)
        rankings = [self.rankings.of(number, sample.ordinals) for number in range(self.num_checkpoints)]
        scored = [self._score(ranking) for ranking in rankings]
        naive = {metric: np.array([scores.mean(metric) for scores in scored]) for metric in self.metrics}
        corrected: dict[str, Corrected] = {}
        if task.corrected and can_be_estimated(sample):
            history = [self._evidence(ranking, sample) for ranking in rankings]
            corrected = {metric: self._correct(history, metric) for metric in self.metrics}
        elif task.corrected:
            corrected = {metric: _uncorrected(values) for metric, values in naive.items()}
        return Drawn(num_documents=len(sample.ordinals), naive=naive, corrected=corrected)

    def _score(self, ranking: Ranking) -> Scores:
        return RanxMetrics(names=self.metrics).score(ranking, self.test_set.qrels)

    def _evidence(self, ranking: Ranking, sample: Sample) -> RankEvidence:
        return rank_evidence(ranking, self.test_set.qrels, sample, self.test_set.corpus.id_hash[sample.ordinals])

    def _correct(self, history: Sequence[RankEvidence], metric: str) -> Corrected:
        """Each checkpoint against the earlier ones, as when the last of them has just been validated."""
        if self.online:
            states = [self._estimate(history[: number + 1], metric) for number in range(len(history))]
        else:
            final = self._estimate(history, metric)
            states = [final[: number + 1] for number in range(len(history))]
        made = [state[-1] for state in states]
        against = [difference for state in states for difference in differences(state[-1], state[:-1])]
        return Corrected(
            value=np.array([each.value for each in made]),
            low=np.array([each.interval[0] for each in made]),
            high=np.array([each.interval[1] for each in made]),
            outranking=np.array([each.outranking for each in made], dtype=np.float64),
            difference=np.array([difference.value for difference in against]),
            difference_low=np.array([difference.low for difference in against]),
            difference_high=np.array([difference.high for difference in against]),
            p=np.array([difference.p for difference in against]),
        )

    def _estimate(self, history: Sequence[RankEvidence], metric: str) -> list[Estimated]:
        full = {place: ranking.documents for place, ranking in self.baselines.items() if place < len(history)}
        known = {place: means([metric], documents, self.test_set.qrels)[metric] for place, documents in full.items()}
        return estimate(history, self.test_set.qrels, metric, self.top_k, known)


class Workers:
    """The processes; with one job it is this one."""

    def __init__(self, study: Study, processes: ProcessPoolExecutor | None) -> None:
        self._number, self._processes = study.num_checkpoints, processes

    def truths(self) -> list[Truth]:
        """Of every checkpoint."""
        numbers = range(self._number)
        return list(self._processes.map(_truth, numbers) if self._processes else map(_truth, numbers))

    def draws(self, tasks: Sequence[Task]) -> Iterator[Drawn]:
        """What becomes of each, in order."""
        return self._processes.map(_draw, tasks) if self._processes else map(_draw, tasks)


@contextmanager
def workers(study: Study, num_jobs: int) -> Iterator[Workers]:
    """`num_jobs` processes within the block. They are forked, so that scores of gigabytes are shared."""
    _share(study)
    if num_jobs == 1:
        yield Workers(study, None)
    else:
        with ProcessPoolExecutor(num_jobs, get_context("fork"), _share, (study,)) as processes:
            yield Workers(study, processes)


def _uncorrected(naive: Float64) -> Corrected:
    """What a Report says where the sample tells nothing of the rest: the sampled value is an upper bound, 0 a lower one."""
    later, earlier = pairs(len(naive))
    unknown = np.full(len(later), np.nan)
    return Corrected(
        value=naive,
        low=np.zeros(len(naive)),
        high=naive,
        outranking=np.zeros(len(naive)),
        difference=naive[later] - naive[earlier],
        difference_low=unknown,
        difference_high=unknown,
        p=unknown,
    )


_shared: list[Study] = []


def _share(study: Study) -> None:
    _shared[:] = [study]


def _truth(number: int) -> Truth:
    return _shared[0].truth(number)


def _draw(task: Task) -> Drawn:
    return _shared[0].draw(task)
