"""The tables of the page: strategies, queries that moved most, all checkpoints; and how the numbers were made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dr_validate.fidelity.comparison import Comparison
from dr_validate.ledger.database import State
from dr_validate.ledger.made import presentable
from dr_validate.ledger.per_query import Retrieved
from dr_validate.ledger.reports import EstimateDetails, lag_s
from dr_validate.report.gather import Movement, Section, Strategy, Top, newest_and_best
from dr_validate.report.markup import EMPTY, Cell, Column, Markup, TableRow, el, join, numeric, table, text
from dr_validate.report.words import count, duration, interval, number, percent, shortened, signed, steps_in_words
from dr_validate.values import Estimate, Report

MOST_STEPS = 8  # of a table with a column for each
WHICH = (Column(name="step"), Column(name="checkpoint", number=False))
METRIC_COLUMNS = ("value", "95% interval", "any queries", "uncorrected", "full", "difference")
NOUNS = {"query": "queries", "document": "documents"}
Fact = tuple[str, str]  # its name and what it is; "" where nothing is known


def strategies_table(section: Section) -> Markup:
    """What each strategy costs and how far its values are off, on the first metric."""
    metric = section.metric or ""
    heads = ("documents", "share", "validated", "compared", "bias", "RMSE", "tau", "95% interval", "regret", "covered")
    columns = [Column(name="strategy", number=False), *(Column(name=head) for head in heads)]
    rows = [_strategy_row(strategy, section.comparison(strategy, metric)) for strategy in section.strategies]
    return table(columns, rows, f"Strategies, {metric}")


def _strategy_row(strategy: Strategy, found: Comparison | None) -> TableRow:
    documents, fraction = strategy.documents, strategy.fraction
    cost = [
        text(strategy.name),
        numeric(documents, f"{documents or 0:,.0f}"),
        numeric(fraction, percent(fraction or 0)),
        numeric(len(strategy.done), f"{len(strategy.done):,}"),
    ]
    if found is None:
        return [*cost, *[EMPTY] * 7]
    tau = "undefined" if found.tau is None and found.checkpoints > 1 else number(found.tau, 2)
    reach, share = found.tau_interval, found.covered / found.with_interval if found.with_interval else None
    return [
        *cost,
        numeric(found.checkpoints, f"{found.checkpoints:,}"),
        numeric(found.bias, signed(found.bias)),
        numeric(found.rmse, number(found.rmse)),
        Cell(shown=tau, sort=found.tau if found.tau is not None else -2.0),
        numeric(reach[0], interval(*reach, 2)) if reach else EMPTY,
        numeric(found.regret, number(found.regret)) if found.checkpoints > 1 else EMPTY,
        numeric(share, f"{found.covered:,} of {found.with_interval:,}"),
    ]


def queries_table(
    movement: Movement, sign: int, texts: Mapping[str, str], top: tuple[Top, Top], documents: Mapping[str, str]
) -> Markup:
    """The queries that gained (`sign` 1) or lost (-1) most, with what both checkpoints found first; nothing where none did.

    `texts` by query, `documents` by document, as far as they are known.
    """
    rows = []
    for place in movement.largest(sign):
        before, after, change = (float(v[place]) for v in (movement.values_before, movement.values_after, movement.changes))
        query = movement.query_ids[place]
        numbers = [numeric(before, number(before)), numeric(after, number(after)), numeric(change, signed(change))]
        rows.append([_query(query, texts.get(query), _found(movement, query, top, documents)), *numbers])
    if not rows:
        return Markup("")
    heads = (f"step {movement.before.checkpoint.step:,}", f"step {movement.after.checkpoint.step:,}", "change")
    names = [Column(name="query", number=False), *(Column(name=head) for head in heads)]
    return table(names, rows, "Largest gains" if sign > 0 else "Largest losses")


def _query(identity: str, known: str | None, found: Markup | None) -> Cell:
    """The text over the id, the id alone where no text is known; `found` to unfold."""
    shown = join(known or identity, None if known is None else el("small", identity), found)
    return Cell(shown=shown, sort=known or identity, look="text")


def _found(movement: Movement, query: str, top: tuple[Top, Top], documents: Mapping[str, str]) -> Markup | None:
    lists = []
    for report, found in zip((movement.before, movement.after), top, strict=True):
        items = [_document(one, documents.get(one.document)) for one in found.get(query, ())]
        lists.append(el("div", el("span", f"step {report.checkpoint.step:,}"), el("ol", *items)) if items else None)
    both = el("div", *lists, class_="both")
    return el("details", el("summary", "first documents"), both) if any(lists) else None


def _document(one: Retrieved, known: str | None) -> Markup:
    judged = None if one.gain is None else f"grade {one.gain}, relevant" if one.gain > 0 else "judged not relevant"
    told = None if judged is None else el("em", f" {judged}")
    text_of = None if known is None else el("small", shortened(known))
    return el("li", one.document, told, text_of, class_="relevant" if one.gain and one.gain > 0 else None)


def checkpoints_table(section: Section, strategy: Strategy) -> Markup:
    """Every checkpoint under one strategy: its numbers on the first metric, or why it has none."""
    metrics, exact = section.metrics[:1], _exact(section, strategy)
    numbers = [Column(name=name, group=metric) for metric in metrics for name in METRIC_COLUMNS]
    columns = [
        *WHICH,
        Column(name="status", number=False),
        *numbers,
        *(Column(name=name) for name in ("documents", "seconds", "lag", "attempts", "outranking")),
    ]
    rows = [_checkpoint_row(report, exact.get(report.checkpoint.digest), metrics) for report in strategy.reports]
    rows += [_unfinished_row(state, len(columns)) for state in strategy.unfinished]
    return table(columns, rows, f"Checkpoints, {strategy.name}")


def other_metrics_table(section: Section, strategy: Strategy) -> Markup:
    """The remaining metrics of the checkpoints that have them; nothing where there is one metric only."""
    metrics, exact = section.metrics[1:], _exact(section, strategy)
    if not metrics or not strategy.done:
        return Markup("")
    columns = [*WHICH, *(Column(name=name, group=metric) for metric in metrics for name in METRIC_COLUMNS)]
    rows = [
        [*_which(report), *(c for m in metrics for c in _metric_cells(report, exact.get(report.checkpoint.digest), m))]
        for report in strategy.done
    ]
    return table(columns, rows, f"Other metrics, {strategy.name}")


def _which(report: Report) -> TableRow:
    made = report.checkpoint
    return [numeric(made.step, f"{made.step:,}"), text(made.label, "name")]


def _exact(section: Section, strategy: Strategy) -> Mapping[str, Report]:
    """Full-corpus Reports to put beside those of a sampled strategy."""
    full = section.full.done if section.full and strategy is not section.full else ()
    return {report.checkpoint.digest: report for report in full}


def _checkpoint_row(report: Report, exact: Report | None, metrics: Sequence[str]) -> TableRow:
    encoded, total, lag = report.corpus.get("encoded"), report.seconds.get("total"), lag_s(report)
    done = report.status == "done"
    outranking = EstimateDetails.of(report).outranking.get(metrics[0]) if metrics else None
    return [
        *_which(report),
        _status(report.status, report.error),
        *(cell for metric in metrics for cell in _metric_cells(report, exact, metric)),
        numeric(encoded, f"{encoded or 0:,.0f}"),
        numeric(total, f"{total or 0:,.1f}"),
        numeric(lag if done else None, duration(lag)),
        numeric(report.attempts, str(report.attempts)) if report.attempts > 1 else EMPTY,
        numeric(outranking, number(outranking, 1)),
    ]


def _metric_cells(report: Report, exact: Report | None, metric: str) -> TableRow:
    estimate = report.metrics.get(metric)
    if estimate is None:
        return [EMPTY] * len(METRIC_COLUMNS)
    full = exact.metrics.get(metric) if exact else None
    value, naive = number(estimate.value), number(estimate.naive)
    return [
        Cell(shown=f"\u2264 {value}" if estimate.is_bound else value, sort=estimate.value, look="value"),
        numeric(estimate.low, interval(estimate.low, estimate.high)) if estimate.has_interval and not report.is_mean else EMPTY,
        _population(report, metric),
        numeric(estimate.naive, naive) if estimate.naive != estimate.value else EMPTY,
        numeric(full.value, number(full.value)) if full else EMPTY,
        _difference(estimate, full),
    ]


def _difference(estimate: Estimate, full: Estimate | None) -> Cell:
    return numeric(estimate.value - full.value, signed(estimate.value - full.value)) if full else EMPTY


def _population(report: Report, metric: str) -> Cell:
    ends = EstimateDetails.of(report).population.get(metric)
    return EMPTY if ends is None else numeric(ends[0], interval(*ends))


def _unfinished_row(state: State, width: int) -> TableRow:
    again = "running" if state.state == "running" else "waiting"
    blank = [EMPTY] * (width - 3)
    return [numeric(state.step, f"{state.step:,}"), text(state.name, "name"), _status(again, state.detail), *blank]


def _status(status: str, why: str | None) -> Cell:
    return Cell(shown=join(status, el("small", why) if why else None), sort=status, look=f"{status} why" if why else status)


def collections_table(section: Section, shown: Strategy, strategies: Mapping[str, Strategy]) -> Markup:
    """Of a mean, the first metric on each collection (`strategies` by spec) over the last steps, and at that of the best."""
    metric = section.metric or ""
    known = {name: strategies.get(spec) for name, spec in shown.description["members"].items()}
    rows = {name: {one.checkpoint.step: one for one in strategy.done} if strategy else {} for name, strategy in known.items()}
    rows["mean"] = {report.checkpoint.step: report for report in shown.done}
    best = section.best.checkpoint.step if section.best else None
    shown_at = newest_and_best((step for reports in rows.values() for step in reports), best, MOST_STEPS)
    columns = [Column(name="collection", number=False), *(Column(name=f"step {step:,}") for step in shown_at)]
    cells = [
        [text(name, "name"), *(_value_at(reports.get(step), metric, step == best) for step in shown_at)]
        for name, reports in rows.items()
    ]
    return table(columns, cells, f"{metric} by collection, {shown.name}")


def _value_at(report: Report | None, metric: str, is_best: bool) -> Cell:
    value = report.metrics[metric].value if report and metric in report.metrics else None
    return EMPTY if value is None else numeric(value, number(value), "value" if is_best else None)


def making(section: Section) -> Markup:
    """Facts and commands; what differs between checkpoints is told with their steps, what nobody recorded is left out."""
    done = sorted((r for strategy in section.strategies for r in strategy.done), key=lambda report: report.checkpoint.step)
    facts = [*_checkpoint(section.best), *_encoder(done), *_collection(section)]
    facts += [fact for strategy in section.strategies for fact in _sample(strategy)]
    facts += [(name, _by_steps(done, read)) for name, read in {"device": _device, "versions": _versions}.items()]
    rows = [join(el("dt", name), el("dd", told)) for name, told in facts if told]
    commands = dict.fromkeys(str(s.description.get("command") or "") for s in section.strategies)
    shown = [el("pre", command) for command in commands if command]
    return join(
        el("h3", "How this was made"),
        el("dl", *rows, class_="made"),
        el("p", "To make it again:") if shown else None,
        *shown,
    )


def _checkpoint(best: Report | None) -> Iterable[Fact]:
    if best is None:
        return
    known = asdict(best.checkpoint)
    origin = f" ({known['step_from']})" if known["step_from"] else ""
    yield "best checkpoint", f"{best.checkpoint.label}, step {best.checkpoint.step:,}{origin}"
    yield "source", str(presentable(known["uri"]))
    yield "SHA-256 of its weights", str(known.get("weights_sha256") or "")
    yield "its digest", known["digest"]


def _encoder(done: Sequence[Report]) -> Iterable[Fact]:
    def both(key: str, say: Callable[[Any], str]) -> str:
        return _by_steps(done, lambda report: _of_sides(report, key, say))

    yield "model", both("architecture", str)
    yield "kind", _by_steps(done, lambda report: str(_contract(report).get("kind", "")))
    yield "pooling", both("pooling", str)
    yield "after pooling", both("heads", lambda heads: ", ".join(map(str, heads)))
    yield "normalize", both("normalize", lambda yes: "yes" if yes else "no")
    yield "length", both("max_length", lambda length: f"{length} tokens")
    yield "prefix", both("prefix", lambda prefix: f"\u201c{prefix}\u201d" if prefix else "none")
    yield "dtype", _by_steps(done, lambda report: str(_contract(report).get("dtype", "")))


def _collection(section: Section) -> Iterable[Fact]:
    description = next((strategy.description for strategy in section.strategies), {})
    made = description.get("made") or {}
    yield "data set", _joined([section.dataset, _settings(made.get("dataset"))])
    yield "its fingerprint", str(description.get("dataset_fingerprint", ""))
    yield "metrics", ", ".join(map(str, made.get("metrics", section.metrics)))
    yield "top_k", str(made.get("top_k", ""))
    yield "index", _settings(made.get("index"))


def _sample(strategy: Strategy) -> Iterable[Fact]:
    description, is_full = strategy.description, strategy.is_full
    size = [description.get(key) for key in ("encoded", "documents")]
    encoded, documents = [size[1] if is_full else size[0], size[1]]
    told = f"{encoded:,} of {count(documents, 'document')} ({percent(encoded / documents)})" if encoded and documents else ""
    made = description.get("made") or {}
    drawn = ["" if is_full else _settings(made.get("sampler")), "" if is_full or not made else f"seed {made.get('seed')}"]
    yield strategy.name, _joined([*drawn, told, f"spec {strategy.spec}"])


def _settings(found: object) -> str:
    """`beir, path=data/nq, split=test`."""
    if not isinstance(found, dict):
        return ""
    known = {key: _plain(value) for key, value in found.items() if value not in (None, [], {})}
    return ", ".join(told if key == "choice" else f"{key}={told}" for key, told in known.items())


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{_settings(value)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _contract(report: Report) -> Mapping[str, Any]:
    return report.notes.get("encoder") or {}


def _of_sides(report: Report, key: str, say: Callable[[Any], str]) -> str:
    """One word for both sides where they agree."""
    sides = {noun: _contract(report).get(side) for side, noun in NOUNS.items()}
    known = {noun: say(tower[key]) for noun, tower in sides.items() if isinstance(tower, dict) and key in tower}
    if len(set(known.values())) == 1:
        return next(iter(known.values()))
    return ", ".join(f"{noun}: {told}" for noun, told in known.items())


def _device(report: Report) -> str:
    return str(report.notes.get("device", ""))


def _versions(report: Report) -> str:
    found = report.notes.get("versions")
    return ", ".join(f"{name} {version}" for name, version in found.items()) if isinstance(found, dict) else ""


def _by_steps(done: Sequence[Report], read: Callable[[Report], str]) -> str:
    """What `read` finds in all Reports, or each thing that it finds with the steps of its checkpoints."""
    found: dict[str, list[int]] = {}
    for report in done:
        if told := read(report):
            found.setdefault(told, []).append(report.checkpoint.step)
    if len(found) < 2:
        return "".join(found)
    return "; ".join(f"{told} ({steps_in_words(sorted(set(at)))})" for told, at in found.items())


def _joined(parts: Sequence[str]) -> str:
    return "; ".join(part for part in parts if part)
