"""Metrics by name, by ranx's, as far as they equal trec_eval for every query; and each as a sum over the relevant documents of
a query, of a falling function of its rank.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dr_validate.errors import DrValidateError
from dr_validate.values import Float64, Int64, Qrels

BLOCK = 2_000  # rows held at once


class _Kind(NamedTuple):
    cutoff: str  # "required", "optional" or "none"
    levels: bool  # whether `-l2` and so on equals trec_eval's --level_for_rel


# Left out on purpose: ranx's bpref, f1 and rbp, and recall, precision and hit_rate without a cutoff, have no counterpart in
# trec_eval or differ from it; its ndcg drops gains under the level, which trec_eval does not.
_KINDS = {
    "ndcg": _Kind("optional", False),
    "mrr": _Kind("optional", True),
    "map": _Kind("optional", True),
    "recall": _Kind("required", True),
    "precision": _Kind("required", True),
    "hit_rate": _Kind("required", True),
    "r-precision": _Kind("none", True),
}
_OWN = _Kind("required", False)
KNOWN = (
    "ndcg, ndcg@K, mrr, mrr@K, map, map@K, recall@K, precision@K, hit_rate@K, r-precision; all but ndcg also with -lG; "
    "or a function of your own, my_package.metrics.function@K"
)


class Metric(NamedTuple):
    """A parsed name: `recall@100-l2` is base `recall`, cutoff 100, documents count as relevant from gain 2 on.

    A base with a dot is a function of another package, see `ranx.py`.
    """

    base: str
    cutoff: int | None
    relevant_from: int

    @property
    def package(self) -> str | None:
        """The top-level package of a metric of one's own; None for ours."""
        return self.base.partition(".")[0] if "." in self.base else None


def parse(name: str) -> Metric:
    """Raises DrValidateError that lists the known names."""
    stem, has_level, level = name.partition("-l")
    base, has_cutoff, cutoff = stem.partition("@")
    kind = _OWN if "." in base and all(part.isidentifier() for part in base.split(".")) else _KINDS.get(base)
    good = kind is not None
    if kind is not None:
        good = _is_count(cutoff) if has_cutoff else kind.cutoff != "required"
        good = good and not (has_cutoff and kind.cutoff == "none")
        good = good and (not has_level or (kind.levels and _is_count(level)))
    if not good:
        raise DrValidateError(f"got {name!r}, expected one of {KNOWN} (K a cutoff such as 10, G the least relevant gain)")
    return Metric(base=base, cutoff=int(cutoff) if has_cutoff else None, relevant_from=int(level) if has_level else 1)


def deepest_cutoff(names: Sequence[str]) -> int:
    """The deepest rank that any of the metrics looks at by its name; 0 where none has a cutoff."""
    return max((parse(name).cutoff or 0 for name in names), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """`weight[row] * value(rank)` is what a relevant document at a rank (1 is the first) within its query's cutoff adds."""

    rows: Int64  # (num_rows,) positions among the documents given
    query: Int64  # (num_rows,) as the next three
    rank: Int64
    weight: Float64
    cutoff: Int64
    value: Callable[[Float64], Float64]
    scored: Int64  # queries that count, ascending: those that have a relevant document, and those that are `not_found`
    num_queries: int

    @property
    def is_flat(self) -> bool:
        """Whether every rank within the cutoff is worth the same."""
        return self.value is _one

    @property
    def deepest(self) -> int:
        """The largest cutoff."""
        return int(self.cutoff.max(initial=1))

    def per_query(self, values: Float64) -> Float64:
        """(num_queries,) sums of one value a row; NaN where there is nothing relevant."""
        sums = np.full(self.num_queries, np.nan)
        sums[self.scored] = np.bincount(self.query, values, self.num_queries)[self.scored]
        return sums

    def worth(self) -> Float64:
        """(num_rows,) what each row adds at its rank."""
        found: Float64 = np.where(self.rank <= self.cutoff, self.weight * self.value(self.rank.astype(np.float64)), 0)
        return found

    def worth_below(self) -> Iterator[tuple[Int64, Float64]]:
        """Blocks of rows, each with (number, len(block)) of what a row adds 0, 1, ... places below its rank."""
        value = self.value(np.arange(1, self.deepest + 1, dtype=np.float64))
        further = self.cutoff - self.rank  # (num_rows,) places to the last that adds something
        order = np.argsort(further)  # like beside like, so that a block is only as wide as its rows need
        order = order[np.searchsorted(further[order], 0) :]
        for part in np.array_split(order, 1 + len(order) // BLOCK):
            place = np.arange(int(further[part].max(initial=-1)) + 1)[:, None]
            worth = value[np.minimum(self.rank[part] + place, len(value)) - 1]
            yield part, np.where(place <= further[part], self.weight[part] * worth, 0)


def gains(name: str, query: Int64, rank: Int64, gain: Int64, qrels: Qrels, depth: int) -> Gains:
    """`query`, `rank` (0 is the first) and `gain` of documents in the ranking, all relevant ones among them, by ascending
    (query, rank); `depth` of the ranking is the cutoff of a metric without one."""
    metric = parse(name)
    judged = np.repeat(np.arange(len(qrels.offsets) - 1), np.diff(qrels.offsets))
    relevant = qrels.gains >= metric.relevant_from
    number = np.bincount(judged[relevant], minlength=len(qrels.offsets) - 1)
    scored = number > 0 if qrels.not_found is None else (number > 0) | qrels.not_found
    rows = np.flatnonzero(gain >= metric.relevant_from)
    of_query = query[rows]
    starts = np.flatnonzero(np.diff(of_query, prepend=-1) != 0)
    place = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows)))) + 1  # among relevant ones, from 1
    cutoff = np.full(len(rows), metric.cutoff or depth, dtype=np.int64)
    weight, value = np.ones(len(rows)), _one
    if metric.base in ("mrr", "hit_rate"):
        rows, cutoff, weight = rows[place == 1], cutoff[place == 1], weight[place == 1]
        value = _reciprocal if metric.base == "mrr" else _one
    elif metric.base == "precision":
        weight = weight / cutoff
    elif metric.base in ("recall", "r-precision"):
        weight = weight / number[of_query]
        cutoff = cutoff if metric.base == "recall" else number[of_query]
    elif metric.base == "map":
        weight, value = place / number[of_query], _reciprocal
    else:
        assert metric.base == "ndcg", metric.base
        weight, value = gain[rows] / _ideal(judged, qrels, metric.cutoff)[of_query], _discount
    return Gains(
        rows=rows,
        query=query[rows],
        rank=rank[rows] + 1,
        weight=weight,
        cutoff=cutoff,
        value=value,
        scored=np.flatnonzero(scored),
        num_queries=len(scored),
    )


def means(names: Iterable[str], documents: Int64, qrels: Qrels) -> dict[str, float]:
    """Metrics of a ranking (num_queries, top_k) as it is."""
    gain = gains_retrieved(documents, qrels)
    query, rank = np.nonzero(gain)
    tables = {name: gains(name, query, rank, gain[query, rank], qrels, documents.shape[1]) for name in names}
    return {name: float(np.nanmean(table.per_query(table.worth()))) for name, table in tables.items()}


def gains_retrieved(documents: Int64, qrels: Qrels, least: int | None = 1) -> Int64:
    """(num_queries, top_k) gain of each retrieved document that is judged `least` or better, None for any; else 0."""
    many = int(max(documents.max(initial=0), qrels.documents.max(initial=0))) + 1
    rows = np.repeat(np.arange(len(documents)), np.diff(qrels.offsets))
    relevant = np.full(len(rows), True) if least is None else qrels.gains >= least
    keys = rows[relevant] * many + qrels.documents[relevant]
    order = np.argsort(keys)
    keys, gains = keys[order], qrels.gains[relevant][order]
    for_any = np.zeros(many, dtype=np.bool_)  # few documents are relevant for any query: only those are searched for
    for_any[qrels.documents[relevant]] = True
    query, rank = np.nonzero(for_any[documents] & (documents >= 0))
    wanted = query * many + documents[query, rank]
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = np.zeros_like(documents)
    found[query, rank] = np.where(keys[place] == wanted, gains[place], 0)
    return found


def _ideal(judged: Int64, qrels: Qrels, cutoff: int | None) -> Float64:
    """(num_queries,) discounted gain of the best possible ranking."""
    keep = qrels.gains >= 1
    query, gain = judged[keep], qrels.gains[keep]
    order = np.lexsort((-gain, query))
    query, gain = query[order], gain[order]
    starts = np.flatnonzero(np.diff(query, prepend=-1) != 0)
    rank = np.arange(len(query)) - np.repeat(starts, np.diff(np.append(starts, len(query)))) + 1
    within = rank <= (cutoff or len(qrels.gains) + 1)
    discounted = gain[within] * _discount(rank[within].astype(np.float64))
    return np.bincount(query[within], discounted, len(qrels.offsets) - 1).astype(np.float64)


def _one(rank: Float64) -> Float64:
    return np.ones_like(rank)


def _reciprocal(rank: Float64) -> Float64:
    return 1 / rank


def _discount(rank: Float64) -> Float64:
    return 1 / np.log2(1 + rank)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.startswith("0")
