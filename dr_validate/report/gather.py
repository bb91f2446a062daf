"""What the ledger holds, put together as the page shows it: a section per test collection and training run.

Of it, from the values per query beside the ledger, which queries moved between two checkpoints, and by how much.
"""

import logging
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.dataset.corpus import ArrowCorpus, is_usable
from dr_validate.fidelity.comparison import Comparison, compare
from dr_validate.ledger.database import State
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.per_query import (
    LEAST_QUERIES,
    Retrieved,
    paired_difference,
    read_query_texts,
    read_query_values,
    read_top,
)
from dr_validate.ledger.reports import best_of, latest_of
from dr_validate.report.words import percent
from dr_validate.values import Z_95, Float64, Report

log = logging.getLogger(__name__)
MOST = 0.8  # of the documents: a baseline after its sample has the sample's vectors, and still tells what a baseline costs
UNFINISHED = ("running", "waiting")
MOST_SHOWN = 10  # queries that gained most, and as many that lost most
Top = Mapping[str, Sequence[Retrieved]]  # query -> its first documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to validate the checkpoints of one training run: a spec, and what became of each checkpoint under it.

    `reports`: by ascending step, one for each checkpoint; `unfinished`: those that run or wait for another attempt;
    `description`: what the ledger says of the spec.
    """

    spec: str
    name: str
    reports: tuple[Report, ...]
    unfinished: tuple[State, ...] = ()
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether it encodes the full corpus."""
        return _is_full(self.spec, self.description)

    @property
    def done(self) -> tuple[Report, ...]:
        return tuple(report for report in self.reports if report.status == "done")

    @property
    def documents(self) -> float | None:
        """Encoded for one checkpoint, the mean; None before the first."""
        known = self._of_corpus("encoded")
        return round(statistics.fmean(known)) if known else None

    @property
    def fraction(self) -> float | None:
        """The share of the corpus that this is."""
        known = self._of_corpus("fraction")
        return statistics.fmean(known) if known else None

    def _of_corpus(self, name: str) -> list[float]:
        return [report.corpus[name] for report in self.done if report.corpus.get(name) is not None]

    @property
    def seconds(self) -> float | None:
        """The median over the checkpoints, whole attempts; of those alone that found few of their vectors kept."""
        known = [report.seconds["total"] for report in self.done if "total" in report.seconds and _encoded_most(report)]
        return statistics.median(known) if known else None


def _encoded_most(report: Report) -> bool:
    encoded = report.corpus.get("encoded", 0)
    return report.corpus.get("encoded_now", encoded) >= MOST * encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One test collection, one training run. `full` is the full corpus (None if it was never encoded), `sampled` the rest,
    the most telling strategy first."""

    key: str
    full_spec: str  # which sections of one collection, encoder setting and list of metrics have in common
    title: str
    dataset: str
    run: str
    documents: int | None
    queries: int | None
    metrics: tuple[str, ...]
    full: Strategy | None
    sampled: tuple[Strategy, ...]

    @property
    def metric(self) -> str | None:
        """The first one asked for: the one that verdicts are about."""
        return self.metrics[0] if self.metrics else None

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        return (*self.sampled, self.full) if self.full else self.sampled

    @property
    def deciding(self) -> Strategy | None:
        """Whose values decide which checkpoint is best: the full corpus where it knows every checkpoint, else the sample."""
        if self.full is None or not self.sampled:
            return self.full or next(iter(self.sampled), None)
        known = {report.checkpoint.digest for report in self.full.done}
        validated = {report.checkpoint.digest for report in self.sampled[0].done}
        return self.full if validated <= known and known else self.sampled[0]

    @property
    def best(self) -> Report | None:
        """The checkpoint that the headline names, at the value that decides."""
        deciding, metric = self.deciding, self.metric
        return best_of(deciding.done, metric) if deciding and metric else None

    def comparison(self, strategy: Strategy, metric: str) -> Comparison | None:
        """Of a sampled strategy with the full corpus; None for the full corpus itself, and without a baseline."""
        if self.full is None or strategy is self.full:
            return None
        return compare(strategy.done, self.full.done, metric)


def newest_and_best(steps: Iterable[int], best: int | None, most: int) -> list[int]:
    """For a table with a column for each: the last `most` of the steps, and that of the best checkpoint."""
    return sorted({*sorted(set(steps))[-most:], *([] if best is None else [best])})


def gather(ledger: Ledger, only: str = "") -> list[Section]:
    """Sections in the order in which their specs came; with `only`, those of this full-corpus spec."""
    described = ledger.specs()
    full_specs = {spec: str(description.get("full_spec", spec)) for spec, description in described.items()}
    found = []
    for full_spec in dict.fromkeys(full for full in full_specs.values() if only in ("", full)):
        specs = [spec for spec in described if full_specs[spec] == full_spec]
        contents = {spec: (latest_of(ledger.revised(spec)), ledger.states(spec)) for spec in specs}
        found += _sections(full_spec, {spec: described[spec] for spec in specs}, contents)
    return _named_apart(found)


def _sections(
    full_spec: str, described: Mapping[str, Mapping[str, Any]], contents: Mapping[str, tuple[list[Report], list[State]]]
) -> list[Section]:
    """Split by training run: their steps are not those of one curve."""
    reports = [report for found, _ in contents.values() for report in found]
    run_of = {report.checkpoint.name: report.checkpoint.training_run for report in reports if report.checkpoint.training_run}
    # Not the values of `run_of`: versions of one artifact may come from several runs.
    runs = list(dict.fromkeys(report.checkpoint.training_run for report in reports if report.checkpoint.training_run))
    only = runs[0] if len(runs) == 1 else ""  # what does not say whose it is (incomplete ones) belongs to the only run
    holders = {place.parent for report in reports if (place := _place_of(report))}

    def folder_of(report: Report) -> Path | None:
        """That of the training: what holds the checkpoint, or the model itself where others lie in it (a final model)."""
        place = _place_of(report)
        return place.parent if place and place not in holders else place

    folders = {folder_of(report): report.checkpoint.training_run for report in reports if report.checkpoint.training_run}

    def belongs(name: str) -> str:
        return run_of.get(name, run_of.get(name.partition(":")[0], only))

    def training_of(report: Report) -> str:
        """A training in a folder may have got its name later; another folder is another training."""
        nameless = folders.get(folder, "") if (folder := folder_of(report)) else belongs(report.checkpoint.name)
        return report.checkpoint.training_run or nameless

    waiting = [state.name for _, states in contents.values() for state in states if state.state in UNFINISHED]
    found = []
    for run in dict.fromkeys([*runs, *map(training_of, reports), *map(belongs, waiting)]) or [""]:
        strategies = []
        for spec, (all_reports, states) in contents.items():
            mine = [report for report in all_reports if training_of(report) == run]
            unfinished = [state for state in states if state.state in UNFINISHED and belongs(state.name) == run]
            strategies.append(_strategy(spec, described[spec], mine, unfinished))
        found.append(_section(full_spec, run, described, [s for s in strategies if s.reports or s.unfinished]))
    return found


def _place_of(report: Report) -> Path | None:
    """Where the checkpoint is, by whatever path it was named; None where that is no folder of this machine."""
    place = Path(report.checkpoint.uri)
    return place.parent.resolve() / place.name if place.is_absolute() else None


def _strategy(spec: str, description: Mapping[str, Any], reports: Sequence[Report], unfinished: Sequence[State]) -> Strategy:
    again = {state.digest for state in unfinished}
    kept = tuple(report for report in reports if report.checkpoint.digest not in again)
    encoded, documents = description.get("encoded"), description.get("documents")
    sampler = str(description.get("sampler", "sample"))
    share = f" {percent(encoded / documents)}" if encoded and documents else ""
    name = "full corpus" if _is_full(spec, description) else f"{sampler}{share}"
    return Strategy(spec=spec, name=name, reports=kept, unfinished=tuple(unfinished), description=description)


def _is_full(spec: str, description: Mapping[str, Any]) -> bool:
    return bool(spec == description.get("full_spec", spec))


def _section(full_spec: str, run: str, described: Mapping[str, Mapping[str, Any]], strategies: Sequence[Strategy]) -> Section:
    description = next(iter(described.values()))
    dataset = str(description.get("dataset", "dataset"))
    full = next((strategy for strategy in strategies if strategy.spec == full_spec), None)
    sampled = _distinct([strategy for strategy in strategies if strategy is not full])
    reports = [report for strategy in strategies for report in strategy.done]
    metrics = tuple(dict.fromkeys(name for report in reports for name in report.metrics))

    def telling(strategy: Strategy) -> tuple[float, float]:
        found = compare(strategy.done, full.done, metrics[0]) if full and metrics else None
        return -len(strategy.done), found.rmse if found else 0.0

    return Section(
        key=f"{full_spec}-{run}",
        full_spec=full_spec,
        title=f"mean of {len(members)} collections" if (members := description.get("members")) else dataset,
        dataset=dataset,
        run=run,
        documents=description.get("documents"),
        queries=description.get("queries"),
        metrics=metrics,
        full=full,
        sampled=tuple(sorted(sampled, key=telling)),
    )


def _distinct(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Two samples of one size by one sampler (another seed, another pool) are told apart by their specs."""
    names = [strategy.name for strategy in strategies]
    return [
        replace(strategy, name=f"{strategy.name} ({strategy.spec[:6]})") if names.count(strategy.name) > 1 else strategy
        for strategy in strategies
    ]


def _named_apart(sections: Sequence[Section]) -> list[Section]:
    """One collection has a title for each training run, and for each encoder setting or list of metrics."""
    for addition in (lambda section: section.run, lambda section: f"spec {section.key[:6]}"):
        titles = [section.title for section in sections]
        sections = [
            replace(section, title=f"{section.title}, {addition(section)}")
            if titles.count(section.title) > 1 and addition(section)
            else section
            for section in sections
        ]
    return list(sections)


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
    interval: tuple[float, float] | None  # 95% of the mean change for other queries like these; None where it is not known

    @property
    def changes(self) -> Float64:
        """(num_queries,) after minus before."""
        return self.values_after - self.values_before

    @property
    def mean(self) -> float:
        return float(self.changes.mean())

    def largest(self, sign: int) -> list[int]:
        """Places of the queries that gained (`sign` 1) or lost (-1) most, the largest first, ties by id."""
        moved = [place for place, change in enumerate(self.changes) if sign * change > 0]
        return sorted(moved, key=lambda place: (-sign * self.changes[place], self.query_ids[place]))[:MOST_SHOWN]


def movement(section: Section, state_dir: Path) -> Movement | None:
    """Between the best checkpoint and the last one, or the one before where the best is the last.

    On the full corpus where both have values there, else on the first sample that has; None where no values are kept.
    """
    deciding, metric, best = section.deciding, section.metric, section.best
    done = [report for report in deciding.done if metric in report.metrics] if deciding else []
    if metric is None or best is None or len(done) < 2:
        return None
    other = done[-1] if done[-1] is not best else done[-2]
    pair = sorted((best, other), key=lambda report: report.checkpoint.step)
    for strategy in [strategy for strategy in (section.full, *section.sampled) if strategy]:
        found = {report.checkpoint.digest: report for report in strategy.done}
        if all(report.checkpoint.digest in found for report in pair):
            before, after = (found[report.checkpoint.digest] for report in pair)
            old, new = (_values(report, metric, state_dir) for report in (before, after))
            if shared := [query for query in old if query in new]:
                found_before, found_after = (np.array([values[query] for query in shared]) for values in (old, new))
                mean = float((found_after - found_before).mean())
                reach = _reach_of_change(before, after, metric, state_dir) if len(shared) >= LEAST_QUERIES else None
                return Movement(
                    metric=metric,
                    strategy=strategy,
                    before=before,
                    after=after,
                    query_ids=tuple(shared),
                    values_before=found_before,
                    values_after=found_after,
                    interval=None if reach is None else (mean - reach, mean + reach),
                )
    return None


def _reach_of_change(before: Report, after: Report, metric: str, state_dir: Path) -> float | None:
    """Half the 95% interval of the mean change; None where it is not known."""
    try:
        found = paired_difference(state_dir, after, before, metric)
    except OSError:  # said when the values were read
        return None
    return None if found is None else Z_95 * found[1]


def _values(report: Report, metric: str, state_dir: Path) -> Mapping[str, float]:
    try:
        return read_query_values(state_dir, report, metric)
    except OSError as error:
        log.warning("%s; the page goes without the queries that moved", error)
        return {}


def kept_tops(movement: Movement, wanted: Collection[str], state_dir: Path) -> tuple[Top, Top]:
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
