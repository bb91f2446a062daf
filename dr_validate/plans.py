"""Which samples a run validates on: one; with early decisions its nested levels; with epochs those of each epoch."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dr_validate.baselines import Baselines
from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.early import EarlySampler, ends_early
from dr_validate.epochs import Epoch, Epochs, EpochSampler
from dr_validate.errors import SetupError
from dr_validate.estimates import has_intervals
from dr_validate.estimator.evidence import FORMAT
from dr_validate.estimator.priors import PRIORS
from dr_validate.stages import Sampler
from dr_validate.values import Sample, TestSet

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to validate: a sample of the test set and the spec that its scores belong to.

    `part` is its name within the spec and a path: "" for a spec with one sample, else such as `level-1`, `epoch-2/level-3`.
    """

    spec: str
    sampler: str
    sample: Sample
    part: str = ""
    epoch: int = 0
    level: int = 0

    @property
    def name(self) -> str:
        """Of files that are this sample's alone."""
        return "-".join([self.spec, *filter(None, self.part.split("/"))])


class Plans:
    """Drawn for `run` when they are asked for; the whole sample of epoch 0 and the full corpus at once."""

    def __init__(self, run: Run, test_set: TestSet, full: Sampler) -> None:
        """Raises SetupError where a sample cannot be drawn, or where early decisions could never be made."""
        self._run, self._test_set = run, test_set
        state_dir = run.settings.state_dir
        self._levels: dict[int, Sequence[Plan]] = {0: self._first()}
        corpus = full.draw(test_set, run.settings.seed, state_dir / "runs")
        self._full = Plan(spec=self._spec(corpus, {}), sampler=_name(full), sample=corpus)
        if self.follow_drift and not run.fidelity.runs_in("follow"):
            log.warning("sampler.epochs=drift: fidelity.baseline=off computes no baseline that could show a drift")
        if self[False].spec == self._full.spec:  # every document is in: it is the full corpus, whatever it is called
            self._full = self[False]
        self.epochs = Epochs(state_dir / "epochs" / f"{self[False].spec}.json")
        self.baselines = Baselines(state_dir / "baselines" / self._full.spec)

    def __getitem__(self, full: bool) -> Plan:
        """The full corpus, or the sample of epoch 0, all of it."""
        return self._full if full else self._levels[0][-1]

    def levels(self, epoch: int) -> Sequence[Plan]:
        """Shallow first, all of the sample last. Raises SetupError where the epoch's baseline is gone or damaged."""
        if epoch not in self._levels:
            found = self.epochs.all()[epoch - 1]
            try:
                self._levels = {0: self._levels[0], epoch: self._redrawn(found)}  # others are not asked for again
            except OSError as error:
                raise SetupError(
                    f"the full-corpus ranking of {found.anchor}, by which the sample of epoch {epoch} is drawn, cannot be read "
                    f"({error}); put baselines/ back from a copy, or begin anew with another seed or state_dir"
                ) from error
        return self._levels[epoch]

    @property
    def current(self) -> Sequence[Plan]:
        """The levels of the epoch that is."""
        return self.levels(len(self.epochs.all()))

    @property
    def follow_drift(self) -> bool:
        """Whether a baseline may open a new epoch."""
        return isinstance(self._run.sampler, EpochSampler) and self._run.sampler.epochs == "drift"

    def named(self, part: str) -> Plan:
        """The plan whose `part` this is, in whatever process."""
        first = part.split("/")[0]
        epoch = int(first.removeprefix("epoch-")) if first.startswith("epoch-") else 0
        return next(plan for plan in self.levels(epoch) if plan.part == part)

    def advance(self, has_met: Callable[[Plan, str], bool]) -> int:
        """The epoch for the next checkpoint, a new one where the latest baseline asks for it.

        `has_met(plan, digest)`: whether that checkpoint was validated on the plan's sample, without which checkpoints of two
        epochs would not compare. Baselines of checkpoints from before the last anchor (by step) open nothing.
        """
        sampler = self._run.sampler
        if not self.follow_drift or not isinstance(sampler, EpochSampler):
            return 0
        before = self.epochs.all()
        plans, since = self.levels(len(before)), before[-1].anchor_step if before else -1
        steps = self.baselines.steps()
        known = [digest for digest, step in steps.items() if step > since and any(has_met(plan, digest) for plan in plans)]
        latest = max(known, key=lambda digest: (steps[digest], digest), default=None)
        if latest is None:
            return len(before)
        try:
            drift = sampler.drifted(plans[-1].sample, self.baselines.ranking(latest))
            if drift is not None:
                self._open(Epoch(number=len(before) + 1, anchor=latest, anchor_step=steps[latest], drift=drift))
        except (
            OSError,
            ValueError,
        ) as error:  # the user's to mend, and no reason to end: the sample in use is as good as it was
            log.warning("no epoch begins with the full-corpus ranking of %s: %s", latest, error)
        return len(self.epochs.all())

    def _open(self, epoch: Epoch) -> None:
        plans = self._redrawn(epoch)
        self.epochs.add(epoch)  # after the draw, which may fail
        self._levels = {0: self._levels[0], epoch.number: plans}
        log.info(
            "epoch %d begins: %.0f%% of what %s (step %d) retrieves first is not certain to be in the sample, which is redrawn",
            *(epoch.number, 100 * epoch.drift, epoch.anchor, epoch.anchor_step),
        )

    def _first(self) -> Sequence[Plan]:
        sampler, seed, cache = self._run.sampler, self._run.settings.seed, self._run.settings.state_dir / "runs"
        if isinstance(sampler, EarlySampler):
            samples, rules = sampler.draw_levels(self._test_set, seed, cache), sampler.rules()
        else:
            samples, rules = {0: sampler.draw(self._test_set, seed, cache)}, {}
        return self._named(samples, self._spec(list(samples.values())[-1], rules), 0)

    def _spec(self, sample: Sample, rules: Mapping[str, Any]) -> str:
        run = self._run
        parts = {
            "test_set": self._test_set.fingerprint,
            "sample": "full" if sample.is_full else sample.fingerprint,
            "encoder": dict(run.encoder.fingerprint()),
            "index": dict(run.index.fingerprint()),
            "metrics": list(run.settings.metrics),
            "top_k": run.settings.top_k,
        }
        if has_intervals(sample):  # values are corrected: by other constants they would be others
            parts["estimator"] = {"format": FORMAT, **asdict(PRIORS)}
        return fingerprint({**parts, "rules": dict(rules)} if rules else parts)

    def _redrawn(self, epoch: Epoch) -> Sequence[Plan]:
        sampler, settings = self._run.sampler, self._run.settings
        assert isinstance(sampler, EpochSampler)
        baseline, cache = self.baselines.ranking(epoch.anchor), settings.state_dir / "runs"
        samples = sampler.redraw_levels(self._test_set, settings.seed, cache, baseline, epoch.number)
        return self._named(samples, self[False].spec, epoch.number)

    def _named(self, samples: Mapping[int, Sample], spec: str, epoch: int) -> Sequence[Plan]:
        """Levels that give no interval are left out: they would decide nothing."""
        *parts, deepest = samples
        usable = [level for level in parts if has_intervals(samples[level])]
        early = ends_early(self._run.sampler)
        if early and not usable and not epoch:
            raise SetupError(
                f"sampler.precision, sampler.decide: half of the {len(samples[deepest].ordinals)} documents are too few "
                "for an interval, so that nothing could be decided before the end; set a larger sampler.fraction, or neither "
                "of the two"
            )
        name = _name(self._run.sampler)
        levels = {level: level if early else 0 for level in [*usable, deepest]}
        return [
            Plan(spec=spec, sampler=name, sample=samples[level], part=part_name(epoch, shown), epoch=epoch, level=shown)
            for level, shown in levels.items()
        ]


def part_name(epoch: int, level: int) -> str:
    """`Plan.part`; 0 of either is the only one there is, or the first."""
    return "/".join([f"epoch-{epoch}"] * (epoch > 0) + [f"level-{level}"] * (level > 0))


def _name(sampler: Sampler) -> str:
    return type(sampler).__module__.rpartition(".")[2]
