"""Every document: the reference that samples are held against."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dr_validate.component import component
from dr_validate.sampler.design import others, sample_of
from dr_validate.values import Sample, TestSet


@component
class FullSampler:
    """The whole corpus, whatever the seed."""

    def draw(self, test_set: TestSet, seed: int, cache: Path) -> Sample:
        """See `Sampler.draw`."""
        return sample_of(test_set, others(test_set), 1.0, self.fingerprint())

    def check(self, test_set: TestSet) -> None:
        """See `Sampler.check`: always large enough."""

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values for the spec."""
        return {"sampler": "full"}
