"""A metric of one's own: `my_package.metrics.function@K`, a function outside this package, named in `metrics`."""

import importlib
from collections.abc import Callable

import numpy as np

from dr_validate.errors import SetupError
from dr_validate.metrics.names import parse
from dr_validate.values import Float64, Int64, Qrels, Ranking

Function = Callable[[Int64, Qrels], Float64]


def function_of(name: str) -> Function:
    """Import it. Raises SetupError where it is not there, or is not a function."""
    module, _, attribute = parse(name).base.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SetupError(f"metrics: got {name!r}, which cannot be imported ({error})") from error
    if not callable(found):
        raise SetupError(f"metrics: got {name!r}, which is no function")
    function: Function = found
    return function


def own_values(name: str, ranking: Ranking, qrels: Qrels) -> Float64:
    """(num_queries,) what the function makes of the grades of the first K documents; NaN: the query does not count.

    Raises SetupError for an answer of another shape, and for numbers beyond 0 to 1.
    """
    cutoff = parse(name).cutoff
    gains = gains_by_rank(Ranking(documents=ranking.documents[:, :cutoff], scores=ranking.scores[:, :cutoff]), qrels)
    values = np.array(function_of(name)(gains, qrels), dtype=np.float64)
    if values.shape != (len(gains),) or np.nanmin(values, initial=0) < 0 or np.nanmax(values, initial=0) > 1:
        raise SetupError(
            f"metrics: {name} gave an array of shape {values.shape}, from {np.nanmin(values, initial=0)} to "
            f"{np.nanmax(values, initial=0)}, expected ({len(gains)},), a number from 0 to 1 for each query"
        )
    return values


def gains_by_rank(ranking: Ranking, qrels: Qrels) -> Int64:
    """(num_queries, top_k) grade of each retrieved document, 0 for one that is not judged and for an empty place."""
    documents = ranking.documents
    rows = np.repeat(np.arange(len(documents)), np.diff(qrels.offsets))
    size = 1 + max(int(documents.max(initial=0)), int(qrels.documents.max(initial=0)))
    order = np.argsort(judged := rows * size + qrels.documents)
    wanted = np.arange(len(documents))[:, None] * size + np.maximum(documents, 0)
    place = np.minimum(np.searchsorted(judged, wanted, sorter=order), max(len(judged) - 1, 0))
    if not len(judged):
        return np.zeros(documents.shape, dtype=np.int64)
    found = (judged[order[place]] == wanted) & (documents >= 0)
    return np.where(found, qrels.gains[order[place]], 0).astype(np.int64)
