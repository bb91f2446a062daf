"""Measured contenders to markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.research.benchmark.meter import PHASES


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One contender in its best round; `documents` is how many it encoded, over all checkpoints. `meter`: see Meter.save."""

    label: str
    documents: int
    cpu_s: float
    wall_s: float
    peak_mib: float
    ndcg: float
    meter: Mapping[str, Any] = field(default_factory=dict)
    idle: tuple[float, float] | None = None  # seconds, see `idle_and_whole`
    kernels: tuple[str, ...] = ("float32, torch", "float32, oneDNN")  # what its products are compared with: the fastest


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What they are compared with: labels of contenders, GFLOP/s by kernel, sizes of the model (none: not BERT-shaped)."""

    bases: tuple[str, ...]
    products: Mapping[str, Mapping[str, float]]
    numbers: Mapping[str, int] | None


def whole(rows: Sequence[Measured], setting: Setting) -> str:
    """A checkpoint or several, from the start of the process to its end."""
    bases = [row for row in rows if row.label in setting.bases]
    head = ["contender", "documents encoded", "CPU s", "wall s", "documents per CPU s", "per s"]
    head += [f"as fast as {base.label}: CPU, wall" for base in bases] + ["peak MiB", "nDCG@10"]
    in_a_row = any(row.idle for row in rows)
    head += ["idle between two checkpoints"] * in_a_row
    lines = []
    for row in rows:
        cells = [row.label, f"{row.documents:,}", f"{row.cpu_s:.1f}", f"{row.wall_s:.1f}"]
        cells += [f"{row.documents / row.cpu_s:.0f}", f"{row.documents / row.wall_s:.0f}"]
        cells += [f"{base.cpu_s / row.cpu_s:.1f}x, {base.wall_s / row.wall_s:.1f}x" for base in bases]
        cells += [f"{row.peak_mib:,.0f}", f"{row.ndcg:.6f}"]
        lines.append([*cells, _share(row.idle)] if in_a_row else cells)
    return markdown(head, lines)


def _share(idle: tuple[float, float] | None) -> str:
    return "-" if idle is None else f"{idle[0]:.1f} s, {idle[0] / idle[1]:.0%}"


def phases(rows: Sequence[Measured], setting: Setting) -> str:
    """CPU seconds by phase, and how near encoding comes to the matrix product; real tokens count, padding does not."""
    head = ["contender", *PHASES, "other", "computed/real tokens", "GFLOP per CPU s", "of the product"]
    lines = []
    for row in rows:
        if not row.meter:
            continue
        cpu, tokens = row.meter["cpu"], row.meter["tokens"]
        seconds = [cpu.get(phase, 0.0) for phase in PHASES]
        cells = [row.label, *(f"{s:.2f}" for s in seconds), f"{max(0.0, cpu['total'] - sum(seconds)):.2f}"]
        rate = gflop(tokens, setting.numbers) / (row.meter["device"].get("encode") or cpu["encode"])
        product = max((setting.products[name]["cpu"] for name in row.kernels if name in setting.products), default=0.0)
        cells.append(f"{tokens['computed'] / tokens['real']:.2f}")
        lines.append([*cells, f"{rate:.0f}" if rate else "-", f"{rate / product:.0%}" if rate and product else "-"])
    return markdown(head, lines)


def products(setting: Setting) -> str:
    """The matrix products themselves."""
    rows = [[name, f"{rate['cpu']:.0f}", f"{rate['wall']:.0f}"] for name, rate in setting.products.items()]
    return markdown(["matrix product", "GFLOP per CPU s, one thread", "GFLOP/s, all threads"], rows)


def gflop(tokens: Mapping[str, int], numbers: Mapping[str, int] | None) -> float:
    """Of real tokens through a BERT-shaped model: its matrix products and its attention; 0 where the shape is not known."""
    if numbers is None:
        return 0.0
    layers, width, inner = (numbers[name] for name in ("layers", "width", "inner"))
    linear = (8 * width * width + 4 * width * inner) * tokens["real"]
    return layers * (linear + 4 * width * tokens["squares"]) / 1e9


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"
