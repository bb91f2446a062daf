"""What the numbers say, in plain words: one headline and a few sentences for a test collection, strategies side by side.

`findings`: the same for those who never open the page, as trackers show it beside the rows, with tables of plain numbers that
compare samples with the full corpus. The other tables in W&B: of checkpoints and queries `tracker/rows.py`, of a sweep
`tracker/wandb.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dr_validate.estimator.estimate import holm, two_sided
from dr_validate.fidelity.comparison import Comparison, holds, paired
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import SAME_WEIGHTS, EstimateDetails, compared, is_expected, warnings_of
from dr_validate.report.gather import Movement, Section, Strategy, gather, movement
from dr_validate.report.words import count, interval, listed, number, percent, signed, steps_in_words, with_interval
from dr_validate.values import MAX_ROWS, Z_95, CellValue, Findings, Report, Table

# Kendall's tau from which an order is called the same, mostly the same, or roughly so.
SAME, MOSTLY, ROUGHLY = 0.9, 0.7, 0.4
LEAST_OUTRANKING = 3  # below this a corrected value is extrapolation, not evidence
DIGITS = 3
SAME_AS_ANOTHER, OVERTAKEN = "with the same weights as another", "overtaken by newer ones"
ENDS = ("failed", "skipped", SAME_AS_ANOTHER, OVERTAKEN)
SURE = 0.05  # p-value, over all that are held against the best
EQUAL_COST = 0.02  # strategies cost the same where their numbers of documents differ by no more than this share
PAIRS = ("step", "checkpoint", "metric", "sampled", "low", "high", "naive", "full", "difference", "inside")
STRATEGIES = (
    *("strategy", "spec", "metric", "documents", "share", "median_s", "validated", "checkpoints"),
    *("bias", "rmse", "tau", "tau_low", "tau_high", "regret", "covered", "with_interval"),
)
FIDELITY = ("step", "checkpoint", "metric", "checkpoints", "kendall_tau", "rmse", "bias", "regret")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`headline` names the best checkpoint, or why there is none; `sentences` say how far that can be trusted."""

    headline: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join((self.headline, *self.sentences))


def verdict(section: Section, moved: Movement | None = None) -> Verdict:
    """On the first metric of the section."""
    deciding, metric, best = section.deciding, section.metric, section.best
    if deciding is None or metric is None or best is None:
        return Verdict(headline="No checkpoint is validated yet.", sentences=tuple(_troubles(section)))
    done = [report for report in deciding.done if metric in report.metrics]
    apart = {} if _extrapolated(deciding, metric) else _told_apart(done, best, metric)
    parts = [*_rivals(done, best, metric, apart), *_course(done, best, metric, moved, apart), *_moved(moved, section)]
    sentences = (
        *_mean(deciding, best, metric),
        *parts,
        *_fidelity(section, metric),
        *_cost(section),
        *_troubles(section),
        *_warnings(section),
    )
    return Verdict(headline=_headline(section, deciding, best, metric), sentences=sentences)


def change_in_words(moved: Movement) -> str:
    """How many queries gained and lost, in one sentence."""
    gained, lost = (int((sign * moved.changes > 0).sum()) for sign in (1, -1))
    same = len(moved.query_ids) - gained - lost
    queries = count(len(moved.query_ids), "query")
    # The verdict says the mean, with its interval, where there are enough of them for one.
    mean = "" if moved.interval else f"; mean {signed(moved.mean)}"
    return f"Of {queries} {gained:,} gained, {lost:,} lost and {same:,} stayed the same{mean}."


def _headline(section: Section, deciding: Strategy, best: Report, metric: str) -> str:
    estimate, step = best.metrics[metric], best.checkpoint.step
    value = f"{metric} {with_interval(estimate, DIGITS)}"
    exact = " on the full corpus" if deciding is section.full else ""
    if len(deciding.done) == 1:
        return f"One checkpoint so far: step {step:,}, {value}{exact}."
    return f"Best of {len(deciding.done):,} checkpoints: step {step:,} ({value}{exact})."


def _mean(deciding: Strategy, best: Report, metric: str) -> list[str]:
    """Of a suite: what the value is the mean of."""
    members = list(deciding.description.get("members") or ())
    if not members:
        return []
    told = f"Its collections ({listed(members)}) count the same"
    reach = "; its interval is for other queries like theirs" if best.metrics[metric].has_interval else ""
    return [f"{told}{reach}."]


def _told_apart(done: list[Report], best: Report, metric: str) -> dict[str, bool]:
    """By digest, whether it can be told from the best, by the differences from that, in which errors that both share
    cancel; empty where the estimator does not say it of all. For these queries; of a mean, as its interval is, for others."""
    others = [report for report in done if report is not best]
    known = [compared(best, report, metric) for report in others]
    told = [one for one in known if one is not None]
    if len(told) < len(known) or not best.metrics[metric].has_interval:
        return {}
    values = [best.metrics[metric].value - report.metrics[metric].value for report in others]  # as they are known now
    ends = [one["population"] if best.is_mean else (one["low"], one["high"]) for one in told]
    errors = [(high - low) / 2 / Z_95 for low, high in ends]
    chances = holm([two_sided(value, error) for value, error in zip(values, errors, strict=True)])
    return {report.checkpoint.digest: p < SURE for report, p in zip(others, chances, strict=True)}


def _rivals(done: list[Report], best: Report, metric: str, apart: Mapping[str, bool]) -> list[str]:
    """Checkpoints that the values do not tell from the best."""
    top = best.metrics[metric]
    others = [report for report in done if report is not best]
    if not others:
        return []
    if same := [report.checkpoint.step for report in others if report.metrics[metric].value == top.value]:
        return [f"{steps_in_words(same).capitalize()} {'has' if len(same) == 1 else 'have'} the very same value."]
    if top.is_bound:
        return []
    if apart:
        near = [report for report in others if not apart[report.checkpoint.digest]]
        if not near:
            return ["All others are lower, by the differences from it (95%, over all of them)."]
    else:
        near = [r for r in others if r.metrics[metric].has_interval and r.metrics[metric].high >= top.low]
    if not near:
        return ["No other interval reaches into its own."] if top.has_interval else []
    near.sort(key=lambda report: -report.metrics[metric].value)
    steps = steps_in_words([report.checkpoint.step for report in near])
    if apart:
        rest = "" if len(near) == len(others) else "; all others are lower"
        return [f"It cannot be told from {steps}{rest} (95%, by the differences from it)."]
    theirs = f"{'that' if len(near) == 1 else 'those'} of {steps}"
    return [f"Its interval overlaps with {theirs}: these intervals cannot tell them apart."]


def _course(done: list[Report], best: Report, metric: str, moved: Movement | None, apart: Mapping[str, bool]) -> list[str]:
    """Whether the training has gone past its best: only if neither the sample nor the choice of queries explains it."""
    last = done[-1]
    if last is best or last.checkpoint.step <= best.checkpoint.step:
        return ["The last checkpoint is the best: the training may still be getting better."] if len(done) > 2 else []
    top, end = best.metrics[metric], last.metrics[metric]
    lost = top.value - end.value
    least = 10**-DIGITS
    much = f"less than {least}" if lost < least / 2 else number(lost, DIGITS)
    begin = f"The last checkpoint (step {last.checkpoint.step:,}) is {much} lower"
    if lost <= 0:
        return []
    if end.is_bound or top.is_bound:
        return [f"{begin} on the sample."]
    if apart and not apart[last.checkpoint.digest]:
        return [f"{begin}, too little to tell the two apart."]
    if not apart and end.high >= top.low:
        return [f"{begin}, within the intervals."]
    later = sum(report.checkpoint.step > best.checkpoint.step for report in done)
    if later < 2 or moved is None or moved.interval is None or moved.interval[1] >= 0:
        return [f"{begin}."]
    return [f"{begin}: the training seems to overfit since step {best.checkpoint.step:,}."]


def _moved(moved: Movement | None, section: Section) -> list[str]:
    if moved is None or moved.interval is None or not moved.changes.any():
        return []
    low, high = moved.interval
    change = f"{signed(moved.mean, DIGITS)} {interval(low, high, DIGITS)}"
    before, after = moved.before.checkpoint.step, moved.after.checkpoint.step
    where = " on the full corpus" if moved.strategy is section.full and section.deciding is not section.full else ""
    span = f"From step {before:,} to {after:,} the mean change of a query{where} is {change}"
    if low <= 0 <= high:
        return [f"{span}: with other queries it could have gone the other way."]
    if moved.strategy is not section.full and _extrapolated(moved.strategy, moved.metric):
        return [f"{span}, by extrapolation alone: that is no evidence of a change."]
    queries = f"the choice of these {len(moved.query_ids):,} queries"
    reason = f"{queries} explains" if moved.strategy is section.full else f"{queries} and the error of the sample explain"
    return [f"{span}, more than {reason}."]


def _fidelity(section: Section, metric: str) -> list[str]:
    if not section.sampled:
        return ["Every document was encoded: the values are exact for these queries."]
    first = section.sampled[0]
    found = section.comparison(first, metric)
    if found is None:
        return [
            f"No full-corpus baseline of these checkpoints yet, so how far {first.name} can be trusted is not known "
            "(fidelity.baseline=idle computes one while watch.mode=follow has nothing to do, always for each checkpoint).",
            *_extrapolated(first, metric),
        ]
    sentences = [_order(first, found), *_choice(found), _error(found), *_extrapolated(first, metric)]
    return [*sentences, *_best_strategy(section, metric)]


def _order(strategy: Strategy, found: Comparison) -> str:
    checkpoints = count(found.checkpoints, "checkpoint")
    if found.checkpoints < 2:
        return f"{checkpoints} has a full-corpus value, too: for an order there must be two."
    if found.tau is None:
        return f"Over {checkpoints} one side has the same value everywhere, so there is no order to compare."
    tau = f"tau {number(found.tau, 2)}"
    if found.tau_interval is None:
        return f"The sample ({strategy.name}) has {tau} with the full corpus over {checkpoints}: too few to say."
    tau += f" {interval(*found.tau_interval, 2)}"
    if found.tau_interval[0] <= 0:
        return f"Whether the sample ({strategy.name}) orders {checkpoints} as the full corpus does is not known yet: {tau}."
    grades = {SAME: "as", MOSTLY: "mostly as", ROUGHLY: "only roughly as"}
    grade = next((words for least, words in grades.items() if found.tau >= least), None)
    if grade is None:
        return f"The sample ({strategy.name}) does not order {checkpoints} as the full corpus does: {tau}."
    return f"The sample ({strategy.name}) orders {checkpoints} {grade} the full corpus does: {tau}."


def _choice(found: Comparison) -> list[str]:
    if found.checkpoints < 2:
        return []
    if found.regret == 0:
        return [f"Of these it picks the one that is best on the full corpus, step {found.chosen.checkpoint.step:,}."]
    chosen, best = found.chosen.checkpoint.step, found.best.checkpoint.step
    return [
        f"Of these it picks step {chosen:,}, which on the full corpus is {number(found.regret)} below the best, step {best:,}."
    ]


def _error(found: Comparison) -> str:
    off = f"{number(abs(found.bias), DIGITS)} too {'high' if found.bias > 0 else 'low'}"
    text = f"Sampled values are {'right' if abs(found.bias) < 0.0005 else off} on average (RMSE {number(found.rmse, DIGITS)})"
    if not found.with_interval:
        return f"{text}."
    return f"{text}; {found.covered:,} of {found.with_interval:,} of the 95% intervals hold the full-corpus value."


def _extrapolated(strategy: Strategy, metric: str) -> list[str]:
    return extrapolation(strategy.done, metric)


def extrapolation(done: Sequence[Report], metric: str) -> list[str]:
    """That the sample is too small to correct by, in a sentence, if the last of these Reports says so."""
    outranking = EstimateDetails.of(done[-1]).outranking.get(metric) if done else None
    if outranking is None or outranking >= LEAST_OUTRANKING:
        return []
    return [
        f"Sampled documents that rank above a relevant one: only {outranking:.4g}, in all queries together, at the last step. "
        "Corrected values are extrapolation, not evidence."
    ]


def _best_strategy(section: Section, metric: str) -> list[str]:
    found = [(strategy, section.comparison(strategy, metric)) for strategy in section.sampled]
    return smallest_errors(
        [Candidate(name=one.name, documents=one.documents, comparison=known) for one, known in found if known and one.documents]
    )


def _cost(section: Section) -> list[str]:
    first = next(iter(section.sampled), None)
    if first is None or first.fraction is None:
        return []
    return [f"The sample has {percent(first.fraction)} of the documents."]


def _end(report: Report) -> str:
    if not is_expected(report):
        return report.status
    return SAME_AS_ANOTHER if (report.error or "").startswith(SAME_WEIGHTS) else OVERTAKEN


def _troubles(section: Section) -> list[str]:
    sampled = section.sampled or section.strategies
    reports = {r.checkpoint.label: r for strategy in sampled for r in strategy.reports}
    ends = [_end(report) for report in reports.values() if report.status != "done"]
    parts = [f"{ends.count(end):,} {end}" for end in ENDS if end in ends]
    if waiting := len({state.digest for strategy in sampled for state in strategy.unfinished}):
        parts.append(f"{waiting:,} not finished")
    return [f"Of the other checkpoints {listed(parts)}; the table says why."] if parts else []


def _warnings(section: Section) -> list[str]:
    reports = [report for strategy in section.strategies for report in strategy.done]
    return [f"Warning: {said}." for said in dict.fromkeys(said for report in reports for said in warnings_of(report))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A sampled strategy that may be compared with others; `documents`: encoded for one checkpoint, the mean."""

    name: str
    documents: float
    comparison: Comparison


def smallest_errors(candidates: Sequence[Candidate]) -> list[str]:
    """A sentence on each group of strategies that cost the same and know the full-corpus values of the same checkpoints.

    All are of one test set, metric and training. Nothing is said of unequal cost: more documents make smaller errors.
    """
    known = [one for one in candidates if one.comparison.checkpoints > 1]
    groups: list[list[Candidate]] = []
    for one in sorted(known, key=lambda one: one.documents):
        for group in groups:
            same = one.comparison.digests == group[0].comparison.digests
            if same and one.documents <= (1 + EQUAL_COST) * group[0].documents:
                group.append(one)
                break
        else:
            groups.append([one])
    return [_smallest_error(group) for group in groups if len(group) > 1]


def _smallest_error(group: Sequence[Candidate]) -> str:
    least = min(one.comparison.rmse for one in group)
    names = [one.name for one in group if one.comparison.rmse == least]
    fewest, most = (f"{round(end(one.documents for one in group)):,}" for end in (min, max))
    size = f"{fewest} documents" if fewest == most else f"{fewest} to {most} documents"
    has = "has" if len(names) == 1 else "have"
    checkpoints = count(group[0].comparison.checkpoints, "checkpoint")
    error = f"RMSE {number(least, 3)} over {checkpoints}"
    return f"Of {len(group)} strategies with {size} for a checkpoint {listed(names)} {has} the smallest error ({error})."


def findings(ledger: Ledger, names: Mapping[str, Any], training_run: str) -> Findings:
    """Of the checkpoints of `training_run` under the spec of `names`; those that name no training belong to that of `names`."""
    section = _with_own_first(gather(ledger, names["full_spec"]), names, training_run)
    if section is None:
        return Findings()
    moved = movement(section, ledger.path.parent)
    own = [strategy for strategy in section.strategies if strategy.spec in (names["spec"], names["full_spec"])]
    tables = {
        "sampled_against_full": pairs_table(section, own),
        "error_and_cost": error_and_cost_table(section),
        "fidelity": fidelity_table([report for strategy in own for report in strategy.done]),
    }
    words = "" if moved is None else f"{_between(moved)}. {change_in_words(moved)}"
    return Findings(verdict=verdict(section, moved).text, queries=words, tables=tables)


def _between(moved: Movement) -> str:
    before, after = moved.before.checkpoint.step, moved.after.checkpoint.step
    return f"{moved.metric}, {moved.strategy.name}, from step {before:,} to {after:,}"


def _with_own_first(sections: Sequence[Section], names: Mapping[str, Any], training_run: str) -> Section | None:
    """With the strategy of this spec before the others: it is the one that the verdict is about."""
    by_run = {section.run: section for section in sections}
    found = by_run.get(training_run, by_run.get("") if training_run == names["training_run"] else None)
    if found is None:
        return None
    sampled = sorted(found.sampled, key=lambda strategy: strategy.spec != names["spec"])
    return replace(found, sampled=tuple(sampled))


def pairs_table(section: Section, strategies: Sequence[Strategy]) -> Table:
    """A row per checkpoint and metric with a sampled and a full-corpus value. `inside`: whether the interval holds the latter;
    None where there is no interval."""
    rows: list[list[CellValue]] = []
    full = section.full.done if section.full else ()
    for strategy in (strategy for strategy in strategies if strategy is not section.full):
        for metric in section.metrics:
            for report, exact in paired(strategy.done, full, metric)[-MAX_ROWS:]:
                estimate, value = report.metrics[metric], exact.metrics[metric].value
                made: list[CellValue] = [report.checkpoint.step, report.checkpoint.label, metric]
                known = [estimate.value, estimate.low, estimate.high, estimate.naive, value, estimate.value - value]
                rows.append([*made, *known, holds(report, metric, value)])
    return Table(columns=PAIRS, rows=rows)


def error_and_cost_table(section: Section) -> Table:
    """A row per metric and strategy in the state_dir, the full corpus last: what it costs, and how far its values are off.

    No rows before a sampled checkpoint is done. The numbers are those of the page; `checkpoints`: how many are compared.
    """
    if not any(strategy.done for strategy in section.sampled):
        return Table(columns=STRATEGIES, rows=[])
    pairs = [(strategy, metric) for metric in section.metrics for strategy in section.strategies]
    return Table(columns=STRATEGIES, rows=[_strategy_row(section, strategy, metric) for strategy, metric in pairs])


def _strategy_row(section: Section, strategy: Strategy, metric: str) -> list[CellValue]:
    named: list[CellValue] = [strategy.name, strategy.spec, metric]
    cost: list[CellValue] = [strategy.documents, strategy.fraction, strategy.seconds, len(strategy.done)]
    found = section.comparison(strategy, metric)
    if found is None:
        return [*named, *cost, *[None] * (len(STRATEGIES) - len(named) - len(cost))]
    low, high = found.tau_interval or (None, None)
    regret = found.regret if found.checkpoints > 1 else None
    error: list[CellValue] = [found.checkpoints, found.bias, found.rmse, found.tau, low, high, regret]
    return [*named, *cost, *error, found.covered, found.with_interval]


def fidelity_table(reports: Sequence[Report]) -> Table:
    """A row per Report that says how well sampled values stand in for full ones, by ascending step."""
    rows: list[list[CellValue]] = []
    for report in sorted(reports, key=lambda report: (report.checkpoint.step, report.at))[-MAX_ROWS:]:
        if (found := report.agreement) is not None:
            cells: list[CellValue] = [report.checkpoint.step, report.checkpoint.name, found.metric, found.checkpoints]
            rows.append([*cells, found.kendall_tau, found.rmse, found.bias, found.regret])
    return Table(columns=FIDELITY, rows=rows)
