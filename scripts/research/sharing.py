"""What strategies and baselines share: documents encoded once for all, and how little a baseline delays a new checkpoint.

    python scripts/research/sharing.py --data DATA --checkpoints FOLDER [--fractions 0.2,0.25] [encoder.dtype=bfloat16 ...]

DATA is in BEIR's layout; FOLDER holds checkpoint-1, checkpoint-2, ..., of which the first eight are used. Every run is a
`python -m dr_validate` of its own on a fresh state_dir. What follows the options overrides the configuration of all of them.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MOST_CHECKPOINTS, COMERS = 8, 3
LIMIT_S = 1800
KEPT = np.dtype([("ordinal", "<u4"), ("checksum", "<u4")])  # of a document.records file, after a header of 16 bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a collection in BEIR's layout")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder with checkpoint-STEP folders")
    parser.add_argument("--fractions", default="0.2,0.25,0.3", help="three sizes of a sample (default: %(default)s)")
    options, overrides = parser.parse_known_args()
    found = sorted(options.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(folder=Path(name), data=options.data.resolve(), overrides=overrides)
        checkpoints = bench.put("checkpoints", found[:MOST_CHECKPOINTS])
        sys.stdout.write(strategies(bench, checkpoints, options.fractions.split(",")))
        sys.stdout.write("\n")
        sys.stdout.flush()
        sys.stdout.write(interrupted(bench, found[: COMERS + 1], options.fractions.split(",")[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    folder: Path
    data: Path
    overrides: Sequence[str]

    def put(self, name: str, checkpoints: Sequence[Path]) -> Path:
        """A folder `name` with these checkpoints."""
        place = self.folder / name
        place.mkdir()
        for checkpoint in checkpoints:
            shutil.copytree(checkpoint, place / checkpoint.name)
        return place

    def command(self, source: Path, state: str, *more: str) -> list[str]:
        places = [f"source.path={source}", "dataset=beir", f"dataset.path={self.data}", f"state_dir={self.folder / state}"]
        fixed = ["tracker=none", "watch.order=oldest_first"]
        return [sys.executable, "-m", "dr_validate", *more, *places, *fixed, *self.overrides]

    def run(self, source: Path, state: str, *more: str) -> float:
        """Wall seconds until it ends; its log is shown where it fails."""
        began = time.perf_counter()
        done = subprocess.run(self.command(source, state, *more), capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}\n{state}: exit status {done.returncode}")
        return time.perf_counter() - began

    def reports(self, state: str) -> list[dict[str, Any]]:
        path = self.folder / state / "reports.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def kept(self, state: str) -> list[list[int]]:
        """For each checkpoint, the ordinals of every document that was ever encoded and kept."""
        return list(kept(self.folder / state).values())


def kept(state_dir: Path) -> dict[str, list[int]]:
    """By folder of a checkpoint's vectors, the ordinals of documents that were ever encoded and kept, in that order."""
    found = {}
    for path in state_dir.glob("embeddings/[!.]*/document.records"):
        content = path.read_bytes()[16:]
        found[path.parent.name] = np.frombuffer(content[: len(content) // 8 * 8], dtype=KEPT)["ordinal"].tolist()
    return found


def strategies(bench: Bench, checkpoints: Path, fractions: Sequence[str]) -> str:
    """Six strategies over all checkpoints in one multirun, against the largest of them alone."""
    once = ("watch.mode=once", "fidelity.baseline=off")
    alone_s = bench.run(checkpoints, "alone", "sampler=stratified", f"sampler.fraction={fractions[-1]}", *once)
    names = f"sampler.fraction={','.join(fractions)}"
    all_s = bench.run(checkpoints, "six", "-m", "sampler=random,stratified", names, *once)
    alone, six, kept = bench.reports("alone"), bench.reports("six"), bench.kept("six")
    needed = sum(report["corpus"]["encoded"] for report in six)
    rows = [
        ("checkpoints", f"{len(kept)}"),
        ("strategies", f"{len({report['spec'] for report in six})}: random and stratified, {', '.join(fractions)}"),
        ("documents that the strategies need, each for itself", f"{needed:,}"),
        ("documents in their union, over all checkpoints", f"{sum(len(set(each)) for each in kept):,}"),
        ("documents encoded", f"{sum(report['corpus']['encoded_now'] for report in six):,}"),
        ("documents that the largest alone encodes", f"{sum(report['corpus']['encoded_now'] for report in alone):,}"),
        ("wall time of the multirun", f"{all_s:.1f} s"),
        ("wall time of the largest alone", f"{alone_s:.1f} s"),
        ("ratio", f"{all_s / alone_s:.2f}"),
    ]
    return "| one encode for every strategy | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def interrupted(bench: Bench, checkpoints: Sequence[Path], fraction: str) -> str:
    """Checkpoints that come one by one: to a watcher that has nothing to do, and to one in the middle of a baseline."""
    sample = ("sampler=stratified", f"sampler.fraction={fraction}")
    idle = [seconds for seconds, _ in _come(bench, checkpoints, "idle", *sample, "fidelity.baseline=off")]
    busy = _come(bench, checkpoints, "busy", *sample, "fidelity.baseline=idle")
    kept, size = bench.kept("busy"), bench.reports("busy")[0]["corpus"]["documents"]
    lines = ["| checkpoint | of its predecessor's baseline done | report after, s | with nothing else to do, s | delay, s |"]
    lines.append("|---|---|---|---|---|")
    for number, ((seconds, share), plain) in enumerate(zip(busy[1:], idle[1:], strict=True), start=1):
        row = (checkpoints[number].name, f"{share:.0%}", f"{seconds:.2f}", f"{plain:.2f}", f"{seconds - plain:+.2f}")
        lines.append(f"| {' | '.join(row)} |")
    twice = sum(len(each) - len(set(each)) for each in kept)
    log = (bench.folder / "busy.log").read_text()
    lines += ["", f"{log.count('is preempted by a new checkpoint')} times a baseline was preempted; "]
    lines[-1] += f"{sum(map(len, kept)):,} documents encoded for {len(kept)} checkpoints of {size:,}, {twice:,} of them twice."
    return "\n".join(lines) + "\n"


def _come(bench: Bench, checkpoints: Sequence[Path], state: str, *more: str) -> list[tuple[float, float]]:
    """For each checkpoint, seconds from its arrival to its report, and what share of a running baseline was done at arrival."""
    ready, source = bench.put(f"{state}-ready", checkpoints), bench.folder / f"{state}-source"
    source.mkdir()
    follow = bench.command(source, state, "watch.mode=follow", "watch.poll_s=0.1", *more)
    seen: list[tuple[float, float]] = []
    with _running(follow, bench.folder / f"{state}.log"):
        for number, checkpoint in enumerate(checkpoints):
            share = _middle_of_a_baseline(bench, state) if number and "fidelity.baseline=idle" in more else 0.0
            time.sleep(1)  # a watcher that has just reported has things to put away
            arrived = time.perf_counter()
            (ready / checkpoint.name).rename(source / checkpoint.name)
            _wait(functools.partial(_has_sampled, bench, state, checkpoint.name))
            seen.append((time.perf_counter() - arrived, share))
        if "fidelity.baseline=idle" in more:
            _wait(lambda: len(bench.reports(state)) == 2 * len(checkpoints))
    return seen


def _has_sampled(bench: Bench, state: str, name: str) -> bool:
    return any(each["checkpoint"]["name"] == name and each["sampler"] != "full" for each in bench.reports(state))


def _middle_of_a_baseline(bench: Bench, state: str) -> float:
    """Wait until a baseline has encoded a part of the corpus: which share of what the sample leaves."""
    first = bench.reports(state)[0]["corpus"]
    sample, size = int(first["encoded"]), int(first["documents"])

    def share() -> float:
        done = [(len(each) - sample) / (size - sample) for each in bench.kept(state)]
        return max((each for each in done if each < 1), default=0.0)

    _wait(lambda: share() > 0.15)
    return share()


@contextlib.contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    if not re.search(r"validated", log.read_text()):
        sys.exit(log.read_text())


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            sys.exit("waited too long")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
