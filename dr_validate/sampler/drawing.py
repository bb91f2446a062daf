"""What samplers share: permanent random numbers, the budget, and the Sample made of the chosen ordinals."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_validate.component import fingerprint
from dr_validate.errors import SetupError
from dr_validate.values import Float64, Int64, Sample, TestSet

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


def budget(test_set: TestSet, fraction: float) -> int:
    """Documents that a fraction of the whole corpus stands for, rounded up. Raises SetupError if the judged ones do not fit."""
    num_documents, num_judged = len(test_set.corpus), len(test_set.judged)
    documents = min(num_documents, math.ceil(round(fraction * num_documents, 6)))  # 0.1 * 30 is 3, not 4
    if documents < num_judged:
        least = math.ceil(num_judged / num_documents * 1e6) / 1e6
        raise SetupError(
            f"sampler.fraction: got {fraction}, which is {documents} of {num_documents} documents of {test_set.name}, but its "
            f"{num_judged} judged documents are always in; set sampler.fraction={least} or more"
        )
    return documents


def others(test_set: TestSet) -> Int64:
    """Ordinals of the documents that are not judged, ascending."""
    keep = np.ones(len(test_set.corpus), dtype=bool)
    keep[test_set.judged] = False
    return np.flatnonzero(keep)


def sample_of(test_set: TestSet, chosen: Int64, odds: float, provenance: Mapping[str, Any]) -> Sample:
    """The judged documents with odds 1 and the `chosen` others, each with `odds`; `provenance` (JSON values) says how."""
    judged = test_set.judged
    ordinals = np.concatenate([judged, chosen])
    inclusion: Float64 = np.concatenate([np.ones(len(judged)), np.full(len(chosen), odds)])
    order = np.argsort(ordinals)
    ordinals = ordinals[order].astype(np.int64)
    parts = {
        "test_set": test_set.fingerprint,
        **provenance,
        "ordinals": hashlib.sha256(ordinals.astype("<i8").tobytes()).hexdigest(),
    }
    return Sample(
        ordinals=ordinals,
        inclusion=inclusion[order],
        num_documents=len(test_set.corpus),
        fingerprint=fingerprint(parts),
    )
