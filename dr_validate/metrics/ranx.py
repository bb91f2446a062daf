"""Metrics per query by ranx, fed with arrays of ordinals: no dictionaries of strings, and our own order among ties.

Beside its metrics, those of one's own: `my_package.metrics.function@K`, a function outside this package.
"""

import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dr_validate.component import component
from dr_validate.errors import DatasetError, SetupError
from dr_validate.files import cache_folder, is_writable
from dr_validate.metrics.gains import gains_retrieved, parse
from dr_validate.values import Float64, Int64, Qrels, Ranking, Scores

log = logging.getLogger(__name__)
MOST_CELLS = 1 << 23  # of 16 bytes
_one_at_a_time = threading.Lock()  # compiled code of two threads would end the process: numba's own threads serve one
Function = Callable[[Int64, Qrels], Float64]


@component
class RanxMetrics:
    """`names` in ranx's form (see `metrics/gains.py`); values equal trec_eval's, cutoffs counted in our order of ties."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            parse(name)

    def check(self, qrels: Qrels, dataset: str) -> None:
        """Raises DatasetError for metrics that no query counts for: their mean would be of nothing. SetupError for a metric of
        one's own that cannot be imported."""
        for name in self.names:
            if parse(name).package is not None:
                function_of(name)
        highest = int(qrels.gains.max(initial=0))
        if beyond := [name for name in self.names if parse(name).relevant_from > highest]:
            raise DatasetError(
                f"metrics: got {', '.join(beyond)}, but no judgement of {dataset} has a grade above {highest}, so that no "
                "query has a relevant document; take metrics with a lower -l, or other qrels"
            )

    def warm_up(self) -> None:
        """Compile: about a minute the first time on a machine, a second once numba has it on disk."""
        one = np.zeros((1, 1, 2))
        _evaluate(one, one, self._of_ranx)

    def score(self, ranking: Ranking, qrels: Qrels) -> Scores:
        """(num_queries,) of each metric. A name without a cutoff looks at the whole ranking."""
        if not len(ranking.documents):
            return Scores(per_query={name: np.empty(0) for name in self.names})
        values = {name: np.empty(len(ranking.documents)) for name in self._of_ranx}
        for some in _blocks(qrels):
            judged, most_gain = _judged(qrels, some)
            found = _evaluate(judged, _retrieved(ranking.documents[some]), self._of_ranx)
            no_answer = np.zeros(len(some), dtype=np.bool_) if qrels.not_found is None else qrels.not_found[some]
            for name, value in found.items():
                is_scored = most_gain >= parse(name).relevant_from
                values[name][some] = np.where(is_scored, value, np.where(no_answer, 0.0, np.nan))
        values |= {name: own_values(name, ranking, qrels) for name in self.names if name not in values}
        return Scores(per_query={name: values[name] for name in self.names})

    @property
    def _of_ranx(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if parse(name).package is None)


def _blocks(qrels: Qrels) -> list[Int64]:
    """Rows of queries whose judgements fit side by side into a table of MOST_CELLS; all at once for most collections, few at a
    time where one has a million, as answers that are years have in Wikipedia."""
    sizes = np.diff(qrels.offsets)
    if len(sizes) * int(sizes.max()) <= MOST_CELLS:
        return [np.arange(len(sizes))]
    order = np.argsort(sizes, kind="stable")
    blocks, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * int(sizes[order[end]]) > MOST_CELLS:
            blocks.append(order[start:end])
            start = end
    return blocks


def _judged(qrels: Qrels, some: Int64) -> tuple[Float64, Float64]:
    """(num_queries, most, 2) of document and gain, best first, filled up with -1 and 0; and the highest gain of each query."""
    num_queries, sizes = len(some), np.diff(qrels.offsets)[some]
    rows = np.repeat(np.arange(num_queries), sizes)
    places = np.arange(len(rows)) + np.repeat(qrels.offsets[some] - (np.cumsum(sizes) - sizes), sizes)
    # trec_eval takes gains below 1 for not relevant; so does ranx, but only if it does not see them.
    relevant = qrels.gains[places] >= 1
    rows, documents, gains = (array[relevant] for array in (rows, qrels.documents[places], qrels.gains[places]))
    order = np.lexsort((documents, -gains, rows))  # ranx takes the ideal ranking from the order of the judgements
    rows, documents, gains = rows[order], documents[order], gains[order]
    counts = np.bincount(rows, minlength=num_queries)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    judged = np.zeros((num_queries, max(1, int(counts.max())), 2))
    judged[:, :, 0] = -1  # ranx also reads the judgements as a ranking, where ordinal 0 would be a document
    judged[rows, columns, 0] = documents
    judged[rows, columns, 1] = gains
    return judged, judged[:, 0, 1]


def _retrieved(documents: Int64) -> Float64:
    """(num_queries, top_k, 2) of document and a score that falls with the rank; the -1 of an empty place is no document."""
    falling = np.broadcast_to(np.arange(documents.shape[1], 0, -1), documents.shape)
    return np.ascontiguousarray(np.stack([documents, falling], axis=2), dtype=np.float64)


def _evaluate(judged: Float64, retrieved: Float64, names: tuple[str, ...]) -> dict[str, Float64]:
    """What `ranx.evaluate` computes from arrays."""
    _choose_numba_cache()
    metric_switch = importlib.import_module("ranx.metrics").metric_switch
    values = {}
    for name in names:
        metric = parse(name)
        with _one_at_a_time:
            scores = metric_switch(metric.base)(judged, retrieved, metric.cutoff or 0, metric.relevant_from)
        values[name] = np.array(scores, dtype=np.float64)
    return values


def _choose_numba_cache() -> None:
    """Where site-packages is read-only, compiled code would be lost with the process: give numba a folder of the user's."""
    spec = importlib.util.find_spec("ranx")
    if "NUMBA_CACHE_DIR" in os.environ or spec is None or spec.origin is None:
        return
    if is_writable(Path(spec.origin).parent / "metrics" / "__pycache__"):
        return
    folder = cache_folder() / "numba"
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    log.info("compiled metrics are kept in %s", folder)


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
    gains = gains_retrieved(ranking.documents[:, :cutoff], qrels, least=None)
    values = np.array(function_of(name)(gains, qrels), dtype=np.float64)
    if values.shape != (len(gains),) or np.nanmin(values, initial=0) < 0 or np.nanmax(values, initial=0) > 1:
        raise SetupError(
            f"metrics: {name} gave an array of shape {values.shape}, from {np.nanmin(values, initial=0)} to "
            f"{np.nanmax(values, initial=0)}, expected ({len(gains)},), a number from 0 to 1 for each query"
        )
    return values
