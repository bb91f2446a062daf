"""The judged documents and a simple random sample of the rest."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from dr_validate.component import component
from dr_validate.sampler.design import LEAST_REST, budget, drawn, fraction_for, others, sample_of
from dr_validate.values import Sample, TestSet

log = logging.getLogger(__name__)


@component
class RandomSampler:
    """`fraction` of the whole corpus, judged documents included; a smaller fraction's sample lies within a larger one's.

    The rest of the budget goes to the documents with the smallest permanent random numbers: each document that is not
    judged has the inclusion probability n / (documents - judged), n the number taken. With n under 40, values are not
    corrected, which is said once.
    """

    fraction: float = Field(gt=0, le=1)

    def draw(self, test_set: TestSet, seed: int, cache: Path) -> Sample:
        """See `Sampler.draw`. Raises SetupError if the judged documents do not fit, naming the smallest fraction that works."""
        num_taken = budget(test_set, self.fraction) - len(test_set.judged)
        rest = others(test_set)
        taken = drawn(rest, num_taken, test_set, seed)
        log.info("random sample of %s: %d judged and %d other documents", test_set.name, len(test_set.judged), num_taken)
        if num_taken < min(LEAST_REST, len(rest)):
            log.warning(
                "sampler.fraction=%s leaves %d documents beside the judged ones, and under %d nothing is known about the rest: "
                "values stay as they are on the sample, too high, with intervals down to 0; set sampler.fraction=%s or more",
                self.fraction,
                num_taken,
                LEAST_REST,
                fraction_for(test_set, len(test_set.judged) + min(LEAST_REST, len(rest))),
            )
        inclusion = num_taken / len(rest) if len(rest) else 1.0
        return sample_of(test_set, taken, inclusion, {**self.fingerprint(), "seed": seed})

    def check(self, test_set: TestSet) -> None:
        """See `Sampler.check`."""
        budget(test_set, self.fraction)

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values of the draw."""
        return {"sampler": "random", "fraction": self.fraction}
