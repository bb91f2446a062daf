"""The judged documents and a simple random sample of the rest."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from dr_validate.component import component
from dr_validate.sampler.design import budget, drawn, others, sample_of
from dr_validate.values import Sample, TestSet

log = logging.getLogger(__name__)


@component
class RandomSampler:
    """`fraction` of the whole corpus, judged documents included; a smaller fraction's sample lies within a larger one's.

    The rest of the budget goes to the documents with the smallest permanent random numbers: each document that is not
    judged has the inclusion probability n / (documents - judged), n the number taken.
    """

    fraction: float = Field(gt=0, le=1)

    def draw(self, test_set: TestSet, seed: int, cache: Path) -> Sample:
        """See `Sampler.draw`. Raises SetupError if the judged documents do not fit, naming the smallest fraction that works."""
        num_taken = budget(test_set, self.fraction) - len(test_set.judged)
        rest = others(test_set)
        taken = drawn(rest, num_taken, test_set, seed)
        log.info("random sample of %s: %d judged and %d other documents", test_set.name, len(test_set.judged), num_taken)
        inclusion = num_taken / len(rest) if len(rest) else 1.0
        return sample_of(test_set, taken, inclusion, {**self.fingerprint(), "seed": seed})

    def check(self, test_set: TestSet) -> None:
        """See `Sampler.check`."""
        budget(test_set, self.fraction)

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values of the draw."""
        return {"sampler": "random", "fraction": self.fraction}
