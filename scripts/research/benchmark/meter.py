"""CPU and wall seconds by phase, and the tokens that went through the model: what each contender's process writes down."""

import contextlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PHASES = ("start", "load", "tokenize", "encode", "search", "score")


@dataclass(slots=True, kw_only=True)
class Meter:
    """Seconds of a phase do not count in the one around it. `device`: seconds between two events on a GPU, or nothing."""

    on_gpu: bool = False
    cpu: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    device: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: Counter[str] = field(default_factory=Counter)  # real, squares (of lengths), computed
    marks: dict[str, float] = field(default_factory=dict)
    _inside: list[list[float]] = field(default_factory=list)

    def started(self) -> None:
        """Everything since the process began was its start."""
        self.cpu["start"] = time.process_time()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what happens in the block, in all threads of this process, to `name`."""
        event = self._event()
        cpu, wall = time.process_time(), time.perf_counter()
        self._inside.append([0.0, 0.0])
        try:
            yield
        finally:
            if event is not None:
                end = self._event()
                end.synchronize()
                self.device[name] += event.elapsed_time(end) / 1000
            spent = [time.process_time() - cpu, time.perf_counter() - wall]
            inner = self._inside.pop()
            self.cpu[name] += spent[0] - inner[0]
            self.wall[name] += spent[1] - inner[1]
            if self._inside:
                outer = self._inside[-1]
                outer[0] += spent[0]
                outer[1] += spent[1]

    def mark(self, name: str) -> None:
        """CPU seconds of this process when something happens for the first time."""
        self.marks.setdefault(name, time.process_time())

    def count(self, lengths: Sequence[int], computed: int) -> None:
        """One batch: the real lengths of its texts, and how many tokens the model computes for it."""
        self.tokens["real"] += sum(lengths)
        self.tokens["squares"] += sum(length * length for length in lengths)
        self.tokens["computed"] += computed

    def save(self, path: Path, ndcg: float) -> None:
        """For the process that compares."""
        self.cpu["total"] = time.process_time()
        parts = {name: dict(getattr(self, name)) for name in ("cpu", "wall", "device", "tokens", "marks")}
        path.write_text(json.dumps({**parts, "ndcg": ndcg}))

    def _event(self) -> Any:
        if not self.on_gpu:
            return None
        import torch

        cuda: Any = torch.cuda  # untyped in part
        event = cuda.Event(enable_timing=True)
        event.record()
        return event
