"""What samplers share: permanent random numbers, the budget, how it is divided, and the Sample of the chosen ordinals."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.component import fingerprint
from dr_validate.errors import SetupError
from dr_validate.values import Float64, Int64, Sample, TestSet

LEAST_REST = 40  # fewer say nothing about what the sample leaves out, and the estimator would give no interval
UInt64 = NDArray[np.uint64]


def permanent_random_numbers(id_hash: UInt64, seed: int) -> UInt64:
    """One number per document that depends on its id and the seed alone, so samples nest and survive a new order of documents.

    The finalizer of splitmix64 (Steele, Lea, Flood 2014), a bijection: different id hashes never meet.
    """
    x = id_hash ^ np.uint64(int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "little"))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: UInt64 = x ^ (x >> np.uint64(31))
    return numbers


def drawn(members: Int64, count: int, test_set: TestSet, seed: int) -> Int64:
    """A simple random sample: the `count` of `members` (ordinals) with the smallest permanent random numbers.

    It needs no state, is the same for every checkpoint and in any order of documents, and lies within every draw of as many
    or more from the same members or fewer of them.
    """
    assert 0 <= count <= len(members), "drawn: more documents than there are"
    if count in (0, len(members)):
        return members[:count]
    numbers = permanent_random_numbers(test_set.corpus.id_hash[members], seed)
    return members[np.argpartition(numbers, count - 1)[:count]]


def num_documents(test_set: TestSet, fraction: float) -> int:
    """Documents that a fraction of the whole corpus stands for, rounded up."""
    total = len(test_set.corpus)
    return min(total, math.ceil(round(fraction * total, 6)))  # 0.1 * 30 is 3, not 4


def fraction_for(test_set: TestSet, documents: int) -> float:
    """A short fraction that stands for `documents` or a few more."""
    return math.ceil(documents / len(test_set.corpus) * 1e6) / 1e6


def budget(test_set: TestSet, fraction: float) -> int:
    """Documents that a fraction of the whole corpus stands for. Raises SetupError if the judged ones do not fit."""
    documents, num_judged = num_documents(test_set, fraction), len(test_set.judged)
    if documents < num_judged:
        raise SetupError(
            f"sampler.fraction: got {fraction}, which is {documents} of {len(test_set.corpus)} documents of {test_set.name}, "
            f"but its {num_judged} judged documents are always in; set "
            f"sampler.fraction={fraction_for(test_set, num_judged)} or more"
        )
    return documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Documents of a corpus by what is known before the draw."""

    judged: int
    others: int
    candidates: int  # of the others: those that the runs name, and so put in pool order


@dataclass(frozen=True, slots=True, kw_only=True)
class Strata:
    """Documents in each stratum beside the judged ones; the pool is in as a whole, of the rest `rest_drawn` are."""

    pool: int
    rest: int
    rest_drawn: int

    @property
    def rest_inclusion(self) -> float:
        """Inclusion probability of a document of the rest, 1 where there is none."""
        return self.rest_drawn / self.rest if self.rest else 1.0

    def __str__(self) -> str:
        return f"a pool of {self.pool}, {self.rest_drawn} of the other {self.rest}"


def divide(budget: int, population: Population, pool_share: float) -> Strata | None:
    """Share out `budget` documents, `pool_share` of what the judged ones leave to the pool, the remainder to the rest; None
    where that leaves fewer than 40 for a rest of which not all are in.

    As the budget grows, neither the pool nor what is drawn of the rest shrinks. What the pool has no candidates for goes to
    the rest.
    """
    room = budget - population.judged
    if room < 0:
        return None
    pool = min(math.floor(round(pool_share * room, 6)), population.candidates)  # 0.7 * 10 is 7, not 6
    strata = Strata(pool=pool, rest=population.others - pool, rest_drawn=room - pool)
    return strata if strata.rest_drawn >= min(LEAST_REST, strata.rest) else None


def others(test_set: TestSet, taken: Int64 | None = None) -> Int64:
    """Ordinals of the documents that are neither judged nor among `taken`, ascending."""
    keep = np.ones(len(test_set.corpus), dtype=bool)
    keep[test_set.judged] = False
    if taken is not None:
        keep[taken] = False
    return np.flatnonzero(keep)


def sample_of(test_set: TestSet, chosen: Int64, inclusion: float | Float64, provenance: Mapping[str, Any]) -> Sample:
    """The judged documents for certain and the `chosen` others with inclusion probability `inclusion`, one for all or one each.

    `provenance` (JSON values) says all that the probabilities follow from: with the chosen documents, it makes the fingerprint.
    """
    judged = test_set.judged
    ordinals = np.concatenate([judged, chosen])
    probabilities: Float64 = np.concatenate([np.ones(len(judged)), np.full(len(chosen), inclusion)])
    order = np.argsort(ordinals)
    ordinals = ordinals[order].astype(np.int64)
    parts = {
        "test_set": test_set.fingerprint,
        **provenance,
        "ordinals": hashlib.sha256(ordinals.astype("<i8").tobytes()).hexdigest(),
    }
    return Sample(
        ordinals=ordinals,
        inclusion=probabilities[order],
        num_documents=len(test_set.corpus),
        fingerprint=fingerprint(parts),
    )
