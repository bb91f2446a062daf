"""When a full-corpus ranking of an earlier checkpoint shows that the model has moved away from the pool."""

import hashlib

import numpy as np

from dr_validate.sampler.runs import Run
from dr_validate.values import Ranking, Sample


def drift(sample: Sample, baseline: Ranking, depth: int = 10) -> float:
    """Share of the baseline's first `depth` places, over all queries, that documents hold which are not certain to be in.

    0: whatever the baseline retrieves is in the pool or judged; 1: nothing of it. Empty places do not count. `baseline` is over
    the full corpus.
    """
    assert depth >= 1, f"drift: depth {depth} is not positive"
    top = baseline.documents[:, :depth]
    places = top[top >= 0]
    certain = sample.ordinals[sample.inclusion == 1]
    return float(np.mean(~np.isin(places, certain))) if len(places) else 0.0


def run_of(baseline: Ranking) -> Run:
    """A full-corpus ranking as one more run to fuse."""
    rows, ranks = np.nonzero(baseline.documents >= 0)
    return Run(rows=rows, documents=baseline.documents[rows, ranks], ranks=ranks)


def content_of(baseline: Ranking) -> str:
    """Digest of who is retrieved where; scores play no part."""
    return f"sha256:{hashlib.sha256(baseline.documents.astype('<i8').tobytes()).hexdigest()}"
