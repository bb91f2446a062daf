"""Which metrics there are, by ranx's names: only those that equal trec_eval for every query."""

from collections.abc import Sequence
from typing import NamedTuple

from dr_validate.errors import DrValidateError


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


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.startswith("0")
