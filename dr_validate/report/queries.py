"""Which queries moved between two checkpoints, and by how much, from the values per query beside the ledger."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_validate.dataset.corpus import ArrowCorpus, is_usable
from dr_validate.fidelity.comparison import Z_95
from dr_validate.ledger.per_query import Retrieved, read_query_texts, read_query_values, read_top
from dr_validate.report.gather import Section, Strategy, best_of
from dr_validate.values import Float64, Report

MOST_SHOWN = 10  # queries that gained most, and as many that lost most
Top = Mapping[str, Sequence[Retrieved]]  # query -> its first documents
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """From checkpoint `before` to the later `after`: `metric` of each query that both have, in the same order."""

    metric: str
    strategy: Strategy
    before: Report
    after: Report
    query_ids: tuple[str, ...]
    values_before: Float64  # (num_queries,)
    values_after: Float64  # (num_queries,)

    @property
    def changes(self) -> Float64:
        """(num_queries,) after minus before."""
        return self.values_after - self.values_before

    @property
    def mean(self) -> float:
        return float(self.changes.mean())

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% for the mean change over other queries like these (paired, normal); None from fewer than ten queries."""
        if len(self.query_ids) < 10:
            return None
        reach = Z_95 * float(self.changes.std(ddof=1)) / math.sqrt(len(self.query_ids))
        return self.mean - reach, self.mean + reach

    def largest(self, sign: int) -> list[int]:
        """Places of the queries that gained (`sign` 1) or lost (-1) most, the largest first, ties by id."""
        moved = [place for place, change in enumerate(self.changes) if sign * change > 0]
        return sorted(moved, key=lambda place: (-sign * self.changes[place], self.query_ids[place]))[:MOST_SHOWN]


def movement(section: Section, state_dir: Path) -> Movement | None:
    """Between the best checkpoint and the last one, or the one before where the best is the last.

    On the full corpus where both have values there, else on the first sample that has; None where no values are kept.
    """
    judge, metric = section.judge, section.metric
    done = [report for report in judge.done if metric in report.metrics] if judge else []
    if metric is None or len(done) < 2:
        return None
    best = best_of(done, metric)
    other = done[-1] if done[-1] is not best else done[-2]
    pair = sorted((best, other), key=lambda report: report.checkpoint.step)
    for strategy in [strategy for strategy in (section.full, *section.sampled) if strategy]:
        found = {report.checkpoint.digest: report for report in strategy.done}
        if all(report.checkpoint.digest in found for report in pair):
            before, after = (found[report.checkpoint.digest] for report in pair)
            old, new = (_values(report, metric, state_dir) for report in (before, after))
            if shared := [query for query in old if query in new]:
                return Movement(
                    metric=metric,
                    strategy=strategy,
                    before=before,
                    after=after,
                    query_ids=tuple(shared),
                    values_before=np.array([old[query] for query in shared]),
                    values_after=np.array([new[query] for query in shared]),
                )
    return None


def _values(report: Report, metric: str, state_dir: Path) -> Mapping[str, float]:
    try:
        return read_query_values(state_dir, report, metric)
    except OSError as error:
        log.warning("%s; the page goes without the queries that moved", error)
        return {}


def top_of(movement: Movement, wanted: Collection[str], state_dir: Path) -> tuple[Top, Top]:
    """Before and after; empty where nothing was kept (an older version, or a file that cannot be read)."""
    found: list[Top] = []
    for report in (movement.before, movement.after):
        try:
            found.append(read_top(state_dir, report, wanted))
        except OSError as error:
            log.warning("%s; the page goes without the documents of these queries", error)
            found.append({})
    return found[0], found[1]


def document_texts(wanted: Collection[str], strategy: Strategy, state_dir: Path) -> Mapping[str, str]:
    """From the cache of data sets, as far as it still has the corpus that the ledger names; none for token ids."""
    key = strategy.description.get("corpus")
    folder = state_dir / "datasets" / str(key)
    if not wanted or not key or not is_usable(folder):
        return {}
    corpus, ids = ArrowCorpus(folder), sorted(wanted)
    places = corpus.find(ids)
    known = [(identity, place) for identity, place in zip(ids, places.tolist(), strict=True) if place >= 0]
    texts = corpus.texts(np.array([place for _, place in known], dtype=np.int64))
    return {identity: text for (identity, _), text in zip(known, texts, strict=True) if isinstance(text, str)}


def query_texts(wanted: Collection[str], state_dir: Path, strategy: Strategy) -> Mapping[str, str]:
    """Texts of the queries as kept when they were validated; none where they cannot be read."""
    try:
        return read_query_texts(state_dir, str(strategy.description.get("dataset_fingerprint", "")), wanted)
    except OSError as error:
        log.warning("%s; the page shows ids", error)
        return {}
