"""The whole study: read, draw, tabulate."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_validate.errors import SetupError
from dr_validate.files import write_atomically
from dr_validate.ledger.ledger import Ledger
from dr_validate.metrics.gains import deepest_cutoff
from dr_validate.values import TestSet
from scripts.research.study.collection import first_queries, read_collection
from scripts.research.study.draws import Drawn, Study, Task, Truth, Workers, workers
from scripts.research.study.encoded import Encoded, chosen, configured, encoded_in_full, in_folder, kept_vectors, read_stored
from scripts.research.study.ranking import Rankings
from scripts.research.study.strategies import Samplers, Strategy, run_paths, strategies
from scripts.research.study.table import Cell, tables

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is studied; `others` are vectors that a pool may be made of."""

    test_set: TestSet
    checkpoints: Sequence[Encoded]
    others: Mapping[str, Encoded]


def study(options: argparse.Namespace) -> str:
    """The tables. Raises DrValidateError for what cannot be used."""
    commit = _commit()  # now: a checkout may move on while this process runs what it has imported
    with tempfile.TemporaryDirectory() as name, material_of(options) as material:
        work = options.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        paths = run_paths(options.runs, material.others, material.test_set, work)
        wanted = _wanted(strategies(list(paths)), options.strategies)
        shared = prepare(options, material, paths, work)
        with workers(shared, options.jobs) as processes:
            truths = processes.truths()
            exact = {metric: np.array([truth.values[metric] for truth in truths]) for metric in options.metrics}
            head = _head(options, material, truths, commit)
            cells: list[Cell] = []
            for budget in options.budgets:
                cells += _cells(processes, shared, wanted, budget, range(options.seed, options.seed + options.draws))
                text = f"{head}\n{tables(cells, exact)}"
                if options.out:
                    write_atomically(options.out, text)
    return text


@contextmanager
def material_of(options: argparse.Namespace) -> Iterator[Material]:
    """From a folder of arrays or a state_dir. Raises SetupError where something is missing."""
    if options.vectors is not None:
        folder, suffix = options.vectors, options.suffix
        test_set = first_queries(read_collection(options.collection or folder / "coll.json"), options.queries)
        names = in_folder(folder, suffix)
        runs = [name for name in names if name in options.runs]
        found = [name for name in names if name not in runs]
        read = {name: read_stored(folder, name, suffix, test_set) for name in [*chosen(found, options.checkpoints), *runs]}
        yield _checked([read[name] for name in read if name not in runs], test_set, {name: read[name] for name in runs}, folder)
        return
    where = [f"dataset={options.dataset}", *([f"dataset.path={options.data}"] if options.data else [])]
    run = configured(options.state_dir, [*where, *options.overrides])
    with Ledger(options.state_dir / "ledger.db", read_only=True):
        pass  # there is one: else nothing is converted into a folder that was mistyped
    whole = run.dataset.open(options.state_dir / "datasets")
    test_set = first_queries(whole, options.queries)
    checkpoints = {checkpoint.label: checkpoint for checkpoint in encoded_in_full(options.state_dir, whole)}
    these = [checkpoints[label] for label in chosen(list(checkpoints), options.checkpoints)]
    with kept_vectors(run, whole, these, len(test_set.query_ids)) as kept:
        yield _checked(kept, test_set, {each.name: each for each in kept}, options.state_dir)


def _checked(checkpoints: Sequence[Encoded], test_set: TestSet, others: Mapping[str, Encoded], folder: Path) -> Material:
    if len(checkpoints) < 2:
        raise SetupError(f"{folder}: got {len(checkpoints)} checkpoint(s), but comparing takes two")
    return Material(test_set=test_set, checkpoints=checkpoints, others=others)


def _wanted(known: Sequence[Strategy], names: Sequence[str] | None) -> list[Strategy]:
    unknown = set(names or ()) - {strategy.name for strategy in known}
    if unknown:
        raise SetupError(f"--strategies: got {sorted(unknown)}, expected some of {[strategy.name for strategy in known]}")
    return [strategy for strategy in known if not names or strategy.name in names]


def prepare(options: argparse.Namespace, material: Material, paths: Mapping[str, str], work: Path) -> Study:
    """What is the same for all draws."""
    top_k = max(options.top_k, deepest_cutoff(options.metrics))
    samplers = Samplers(material.test_set, paths, work)
    rankings = Rankings(material.test_set, top_k)
    rankings.load(material.checkpoints, options.memory_gib * 2**30)
    names = [each.name for each in material.checkpoints]
    known = [names.index(name) for name in chosen(names, options.baselines)] if options.baselines else []
    everything = np.arange(len(material.test_set.corpus))
    return Study(
        test_set=material.test_set,
        rankings=rankings,
        samplers=samplers,
        num_checkpoints=len(material.checkpoints),
        metrics=tuple(options.metrics),
        top_k=top_k,
        online=options.online,
        baselines={number: rankings.of(number, everything) for number in known},
    )


def _cells(processes: Workers, shared: Study, wanted: Sequence[Strategy], budget: float, seeds: Sequence[int]) -> list[Cell]:
    """All strategies at one budget; those of one sampler share its draws."""
    refused: dict[str, str] = {}
    tasks: list[Task] = []
    for sampler in dict.fromkeys(strategy.sampler for strategy in wanted):
        try:
            shared.samplers.draw(sampler, budget, seeds[0])
        except SetupError as error:  # too small a budget: so it is for every seed
            refused[sampler] = str(error)
            continue
        corrected = any(strategy.corrected for strategy in wanted if strategy.sampler == sampler)
        tasks += [Task(sampler=sampler, fraction=budget, seed=seed, corrected=corrected) for seed in seeds]
    draws: dict[str, list[Drawn]] = {}
    for task, drawn in zip(tasks, _shown(processes.draws(tasks), len(tasks), f"{budget:.2%}"), strict=True):
        draws.setdefault(task.sampler, []).append(drawn)
    return [
        Cell(budget=budget, strategy=each, draws=draws.get(each.sampler, ()), refused=refused.get(each.sampler, ""))
        for each in wanted
    ]


def _shown(draws: Iterable[Drawn], total: int, what: str) -> Iterator[Drawn]:
    """The same, with progress where somebody looks."""
    began = time.monotonic()
    for number, drawn in enumerate(draws, start=1):
        if sys.stderr.isatty():
            left = (time.monotonic() - began) / number * (total - number)
            sys.stderr.write(f"\r{what}: {number} of {total} draws, {left:.0f} s left ")
            sys.stderr.write("\n" if number == total else "")
        yield drawn


def _head(options: argparse.Namespace, material: Material, truths: Sequence[Truth], commit: str) -> str:
    test_set, names = material.test_set, [encoded.name for encoded in material.checkpoints]
    error = max(truth.largest_error for truth in truths)
    known = "the earlier checkpoints only" if options.online else "all checkpoints"
    if options.baselines:
        known += f" and full-corpus baselines of {', '.join(options.baselines)}"
    return (
        f"# {test_set.name}{f' ({options.suffix})' if options.suffix else ''}\n\n"
        f"{len(test_set.corpus):,} documents, {len(test_set.query_ids):,} queries, {len(test_set.judged):,} judged documents, "
        f"{len(names)} checkpoints ({names[0]} to {names[-1]}).\n"
        f"{options.draws} draws for each budget, from seed {options.seed} on; pool of: {', '.join(options.runs)}; "
        f"corrected with {known}; commit {commit}.\n"
        f"With everything in the sample, estimate and exact metric differ by at most {error:.1g} on any query.\n"
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
