"""Which documents a run validates on: its sample, and the full corpus of baselines; each with the spec of its scores."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.estimator.evidence import FORMAT
from dr_validate.estimator.priors import PRIORS
from dr_validate.stages import Sampler
from dr_validate.values import Sample, TestSet
from dr_validate.worker.baselines import Baselines
from dr_validate.worker.estimates import has_intervals


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecSample:
    """A sample of the test set, the sampler that drew it, and the spec that scores over it belong to."""

    spec: str
    sampler: str
    sample: Sample
    is_baseline: bool = False  # beside a sample that checkpoints are validated on


class Samples:
    """`sampled`: what the sampler of `run` drew; `full`: the full corpus, the same object where the sample is all of it.

    `baselines`: the rankings over `full` that are kept.
    """

    def __init__(self, run: Run, test_set: TestSet, full: Sampler) -> None:
        """Raises SetupError where the sample cannot be drawn."""
        settings = run.settings
        drawn = [_drawn(run, test_set, sampler) for sampler in (run.sampler, full)]
        self.sampled = self.full = drawn[0]
        if drawn[0].spec != drawn[1].spec:
            self.full = replace(drawn[1], is_baseline=True)
        self.baselines = Baselines(settings.state_dir / "baselines" / self.full.spec)


def _drawn(run: Run, test_set: TestSet, sampler: Sampler) -> SpecSample:
    settings = run.settings
    sample = sampler.draw(test_set, settings.seed, settings.state_dir / "runs")
    parts: dict[str, Any] = {
        "test_set": test_set.fingerprint,
        "sample": "full" if sample.is_full else sample.fingerprint,
        "encoder": dict(run.encoder.fingerprint()),
        "index": dict(run.index.fingerprint()),
        "metrics": list(settings.metrics),
        "top_k": settings.top_k,
    }
    if has_intervals(sample):  # values are corrected: by other constants they would be others
        parts["estimator"] = {"format": FORMAT, **asdict(PRIORS)}
    return SpecSample(spec=fingerprint(parts), sampler=str(sampler.fingerprint()["sampler"]), sample=sample)
