"""How the numbers of a section were made: what was measured, with what, on which sample, and how to make them again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dr_validate.ledger.made import presentable
from dr_validate.report.gather import Section, Strategy
from dr_validate.report.markup import Markup, el, join
from dr_validate.report.words import count, percent, steps
from dr_validate.values import Report

SIDES = {"query": "queries", "document": "documents"}
Fact = tuple[str, str]  # its name and what it is; "" where nothing is known


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
    made = _made(description)
    yield "data set", _joined([section.dataset, _settings(made.get("dataset"))])
    yield "its fingerprint", str(description.get("dataset_fingerprint", ""))
    yield "metrics", ", ".join(map(str, made.get("metrics", section.metrics)))
    yield "top_k", str(made.get("top_k", ""))
    yield "index", _settings(made.get("index"))


def _sample(strategy: Strategy) -> Iterable[Fact]:
    description, is_full = strategy.description, strategy.name == "full corpus"
    size = [description.get(key) for key in ("encoded", "documents")]
    encoded, documents = [size[1] if is_full else size[0], size[1]]
    told = f"{encoded:,} of {count(documents, 'document')} ({percent(encoded / documents)})" if encoded and documents else ""
    made = _made(description)
    drawn = ["" if is_full else _settings(made.get("sampler")), "" if is_full or not made else f"seed {made.get('seed')}"]
    yield strategy.name, _joined([*drawn, told, f"spec {strategy.spec}"])


def _made(description: Mapping[str, Any]) -> Mapping[str, Any]:
    found = description.get("made")
    return found if isinstance(found, dict) else {}


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
    found = report.notes.get("encoder")
    return found if isinstance(found, dict) else {}


def _of_sides(report: Report, key: str, say: Callable[[Any], str]) -> str:
    """One word for both sides where they agree."""
    sides = {noun: _contract(report).get(side) for side, noun in SIDES.items()}
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
    return "; ".join(f"{told} ({steps(sorted(set(at)))})" for told, at in found.items())


def _joined(parts: Sequence[str]) -> str:
    return "; ".join(part for part in parts if part)
