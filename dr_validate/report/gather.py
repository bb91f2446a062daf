"""What the ledger holds, put together as the page shows it: a section per test collection and training run."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dr_validate.fidelity.comparison import Comparison, compare
from dr_validate.ledger.database import State
from dr_validate.ledger.ledger import Ledger
from dr_validate.report.words import percent
from dr_validate.values import Report

MOST = 0.8  # of the documents: a baseline after its sample has the sample's vectors, and still tells what a baseline costs


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
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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
    def judge(self) -> Strategy | None:
        """Whose values decide which checkpoint is best: the full corpus where it knows every checkpoint, else the sample."""
        if self.full is None or not self.sampled:
            return self.full or next(iter(self.sampled), None)
        known = {report.checkpoint.digest for report in self.full.done}
        validated = {report.checkpoint.digest for report in self.sampled[0].done}
        return self.full if validated <= known and known else self.sampled[0]

    @property
    def best(self) -> Report | None:
        """The checkpoint that the headline names, as the judge knows it."""
        judge, metric = self.judge, self.metric
        done = [report for report in judge.done if metric in report.metrics] if judge else []
        return best_of(done, metric) if done and metric else None

    def comparison(self, strategy: Strategy, metric: str) -> Comparison | None:
        """Of a sampled strategy with the full corpus; None for the full corpus itself, and without a baseline."""
        if self.full is None or strategy is self.full:
            return None
        return compare(strategy.done, self.full.done, metric)


def best_of(done: Sequence[Report], metric: str) -> Report:
    """The highest value, the earliest of several."""
    return max(done, key=lambda report: (report.metrics[metric].value, -report.checkpoint.step))


def gather(ledger: Ledger, only: str = "") -> list[Section]:
    """Sections in the order in which their specs came; with `only`, those that this full-corpus spec judges."""
    described = ledger.specs()
    full_specs = {spec: str(description.get("full_spec", spec)) for spec, description in described.items()}
    found = []
    for full_spec in dict.fromkeys(full for full in full_specs.values() if only in ("", full)):
        specs = [spec for spec in described if full_specs[spec] == full_spec]
        contents = {spec: (_latest(ledger.refined(spec)), ledger.states(spec)) for spec in specs}
        found += _sections(full_spec, {spec: described[spec] for spec in specs}, contents)
    return _named_apart(found)


def _latest(reports: Sequence[Report]) -> list[Report]:
    """Of a checkpoint that was skipped first and validated later the later Report counts; by ascending step."""
    by_place = {(r.checkpoint.label, r.checkpoint.uri): r for r in sorted(reports, key=lambda report: report.at)}
    return sorted(by_place.values(), key=lambda report: (report.checkpoint.step, report.checkpoint.label))


def _sections(
    full_spec: str,
    described: Mapping[str, Mapping[str, Any]],
    contents: Mapping[str, tuple[list[Report], list[State]]],
) -> list[Section]:
    """Split by training run: their steps are not those of one curve."""
    reports = [report for found, _ in contents.values() for report in found]
    run_of = {report.checkpoint.name: report.checkpoint.training_run for report in reports if report.checkpoint.training_run}
    # Not the values of `run_of`: versions of one artifact may come from several runs.
    runs = list(dict.fromkeys(report.checkpoint.training_run for report in reports if report.checkpoint.training_run))
    only = runs[0] if len(runs) == 1 else ""  # what does not say whose it is (incomplete ones) belongs to the only run

    def belongs(name: str) -> str:
        return run_of.get(name, run_of.get(name.partition(":")[0], only))

    names = [report.checkpoint.name for report in reports] + [s.name for _, states in contents.values() for s in states]
    found = []
    for run in dict.fromkeys([*runs, *map(belongs, names)]) or [""]:
        strategies = []
        for spec, (all_reports, states) in contents.items():
            mine = [
                report for report in all_reports if (report.checkpoint.training_run or belongs(report.checkpoint.name)) == run
            ]
            unfinished = [state for state in states if state.state in ("running", "waiting") and belongs(state.name) == run]
            strategies.append(_strategy(spec, described[spec], mine, unfinished))
        found.append(_section(full_spec, run, described, [s for s in strategies if s.reports or s.unfinished]))
    return found


def _strategy(spec: str, description: Mapping[str, Any], reports: Sequence[Report], unfinished: Sequence[State]) -> Strategy:
    again = {state.digest for state in unfinished}
    kept = tuple(report for report in reports if report.checkpoint.digest not in again)
    is_full = spec == description.get("full_spec", spec)
    encoded, documents = description.get("encoded"), description.get("documents")
    sampler = str(description.get("sampler", "sample"))
    share = f" {percent(encoded / documents)}" if encoded and documents else ""
    name = "full corpus" if is_full else f"{sampler}{share}"
    return Strategy(spec=spec, name=name, reports=kept, unfinished=tuple(unfinished), description=description)


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
        dataclasses.replace(strategy, name=f"{strategy.name} ({strategy.spec[:6]})")
        if names.count(strategy.name) > 1
        else strategy
        for strategy in strategies
    ]


def _named_apart(sections: Sequence[Section]) -> list[Section]:
    """One collection has a title for each training run, and for each encoder setting or list of metrics."""
    for addition in (lambda section: section.run, lambda section: f"spec {section.key[:6]}"):
        titles = [section.title for section in sections]
        sections = [
            dataclasses.replace(section, title=f"{section.title}, {addition(section)}")
            if titles.count(section.title) > 1 and addition(section)
            else section
            for section in sections
        ]
    return list(sections)
