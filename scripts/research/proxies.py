"""Can a small set be trusted? Four ways to validate a finished training cheaply, each against the full corpus.

    python -m dr_validate source.path=output dataset=beir dataset.path=nq sampler=full watch.mode=once state_dir=state
    python scripts/research/proxies.py --state-dir state --dataset beir --data nq --figure proxies.png

Encoder keys of that run are repeated at the end (`encoder.pooling=cls`); vectors from elsewhere come as for fidelity_study.py
(`--vectors FOLDER --checkpoints 'c*'`). One table and one picture of

- samples of 1, 2 and 5%: `sampler=stratified` with a pool of BM25, corrected as a Report has it;
- the same samples, uncorrected;
- subsets like NanoBEIR's: 50 of the queries, and as a corpus what is relevant for them and BM25's first 100 of each. NanoBEIR
  has 50 queries a collection (for NQ 5,035 documents); how its documents were chosen is not published, here BM25 does it;
- re-ranking, as TAS-B chooses its checkpoint: of each query BM25's first 100, and nothing that BM25 does not find.

tau: Kendall's tau-b with the order of the full corpus and all queries. regret: what its best checkpoint loses there. Samples
and subsets are drawn again and again: the mean, and behind it what 5% of the draws are worse than.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.research.fidelity_study import material_options, with_material

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dr_validate.sampler.bm25 import RetrievedRun
    from dr_validate.values import Float64, Int64
    from scripts.research.study.draws import Study, Workers

CORRECTED, UNCORRECTED, NANO, RERANKED = "sample, corrected", "sample, uncorrected", "like NanoBEIR", "BM25 re-ranked"
LOOKS = {CORRECTED: ("#0072b2", "o"), UNCORRECTED: ("#7a828c", "v"), NANO: ("#c04a00", "s"), RERANKED: ("#00785a", "D")}
LABELS = {"tau": "Kendall's tau with the full corpus's order", "regret": "regret: {} lost by its choice"}
WRITTEN = {"mrr": "MRR", "ndcg": "nDCG", "recall": "Recall", "map": "MAP"}
BESIDE = 1.07  # two kinds that cost the same are drawn so far from each other
WORSE = 0.05  # share of draws that are worse than what stands behind the mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """`values` (num_draws, num_checkpoints) of the metric; `documents`: encoded for a checkpoint, the mean over the draws."""

    kind: str
    name: str
    documents: float
    queries: int
    values: "Float64"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A proxy against the full corpus: each draw, (num_draws,)."""

    proxy: Proxy
    tau: "Float64"
    regret: "Float64"
    bias: float


def main() -> None:
    options = parse(sys.argv[1:])
    # Before numpy is imported, as in fidelity_study.py.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from dr_validate.errors import DrValidateError

    try:
        sys.stdout.write(proxies(options))
    except DrValidateError as error:
        sys.exit(str(error))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    material_options(parser)
    what = parser.add_argument_group("what to measure")
    what.add_argument("--metric", default="mrr@10")
    what.add_argument("--fractions", type=_numbers, default=[0.01, 0.02, 0.05], help="of the corpus, in a sample")
    what.add_argument("--nano-queries", type=_count, default=50, help="of a subset like NanoBEIR's (default: %(default)s)")
    what.add_argument(
        "--depth", type=_count, default=100, help="of BM25, for subsets and for re-ranking (default: %(default)s)"
    )
    what.add_argument("--draws", type=_count, default=100, help="of each sample and subset (default: %(default)s)")
    what.add_argument("--seed", type=int, default=0, help="of the first draw; the others follow")
    what.add_argument("--queries", type=_count, help="only the first so many")
    how = parser.add_argument_group("how")
    how.add_argument("--figure", type=_picture, help="file for the picture (png, svg)")
    how.add_argument("--jobs", type=_count, default=2, help="processes")
    how.add_argument("--memory-gib", type=float, default=8, help="for scores of all pairs; without room, made for each draw")
    how.add_argument("--work", type=Path, help="folder for BM25's run (default: a temporary one)")
    parser.set_defaults(runs=["bm25"], online=False, baselines=[], top_k=100)
    options = with_material(parser, arguments)
    options.metrics = [options.metric]
    return options


def proxies(options: argparse.Namespace) -> str:
    """The table; draws the picture where one is asked for. Raises DrValidateError for what cannot be used."""
    import numpy as np

    from dr_validate.sampler.runs import NamedRun
    from scripts.research.study.draws import workers
    from scripts.research.study.run import material_of, prepare

    with tempfile.TemporaryDirectory() as name, material_of(options) as material:
        work = options.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        study = prepare(options, material, {"bm25": "bm25"}, work)
        run = NamedRun(name="bm25", key="bm25").read(study.test_set, work).first(options.depth)
        with workers(study, options.jobs) as processes:
            truth = np.array([found.values[options.metric] for found in processes.truths()])
            refused: list[str] = []
            found = list(_samples(options, study, processes, refused))
        if options.nano_queries < len(study.test_set.query_ids):
            found.append(_like_nano(options, study, run))
        else:
            refused.append(f"{NANO}: there are only {len(study.test_set.query_ids)} queries (--nano-queries)")
        found.append(_reranked(options, study, run))
        judged = [_judged(proxy, truth) for proxy in found]
        if options.figure:
            _draw(options.figure, judged, len(study.test_set.corpus), options.metric)
        names = [each.name for each in material.checkpoints]
        return _text(options, study, judged, truth, [f"{names[0]} to {names[-1]}", *refused])


def _samples(options: argparse.Namespace, study: "Study", processes: "Workers", refused: list[str]) -> Iterator[Proxy]:
    """Stratified samples, corrected and uncorrected; into `refused` which are too small, and why."""
    import numpy as np

    from dr_validate.errors import SetupError
    from scripts.research.study.draws import Task
    from scripts.research.study.strategies import STRATIFIED

    uncorrected = []
    for fraction in options.fractions:
        try:
            study.samplers.draw(STRATIFIED, fraction, options.seed)
        except SetupError as error:
            refused.append(f"a sample of {100 * fraction:g}%: {error}")
            continue
        seeds = range(options.seed, options.seed + options.draws)
        tasks = [Task(sampler=STRATIFIED, fraction=fraction, seed=seed, corrected=True) for seed in seeds]
        drawn = list(processes.draws(tasks))
        documents = float(np.mean([each.num_documents for each in drawn]))
        for kind, values in (
            (CORRECTED, [each.corrected[options.metric].value for each in drawn]),
            (UNCORRECTED, [each.naive[options.metric] for each in drawn]),
        ):
            proxy = Proxy(
                kind=kind,
                name=f"{100 * fraction:g}% {kind}",
                documents=documents,
                queries=len(study.test_set.query_ids),
                values=np.stack(values),
            )
            if kind == UNCORRECTED:
                uncorrected.append(proxy)
            else:
                yield proxy
    yield from uncorrected


def _like_nano(options: argparse.Namespace, study: "Study", run: "RetrievedRun") -> Proxy:
    """Some queries, and the documents around them as the corpus."""
    import numpy as np

    every, values, sizes = len(study.test_set.query_ids), [], []
    for seed in range(options.seed, options.seed + options.draws):
        rows = np.sort(np.random.default_rng(seed).choice(every, options.nano_queries, replace=False))
        judged = [study.test_set.qrels.documents[slice(*study.test_set.qrels.offsets[row : row + 2])] for row in rows]
        documents = np.unique(np.concatenate([run.documents[np.isin(run.rows, rows)], *judged]))
        sizes.append(len(documents))
        values.append(_scored(study, options.metric, documents, rows))
    name = f"{NANO}, {options.nano_queries} queries"
    return Proxy(kind=NANO, name=name, documents=float(np.mean(sizes)), queries=options.nano_queries, values=np.stack(values))


def _reranked(options: argparse.Namespace, study: "Study", run: "RetrievedRun") -> Proxy:
    """Of each query what BM25 has found for it. Nothing is drawn."""
    import numpy as np

    documents = np.unique(run.documents)
    only = np.zeros((len(study.test_set.query_ids), len(documents)), dtype=bool)
    only[run.rows, np.searchsorted(documents, run.documents)] = True
    rows = np.arange(len(only))
    values = _scored(study, options.metric, documents, rows, only)
    return Proxy(
        kind=RERANKED,
        name=f"BM25 top {options.depth} re-ranked",
        documents=float(len(documents)),
        queries=len(rows),
        values=values[np.newaxis],
    )


def _scored(
    study: "Study", metric: str, documents: "Int64", rows: "Int64", only: "NDArray[np.bool_] | None" = None
) -> "Float64":
    """(num_checkpoints,): the mean over some queries, of rankings of some documents; the metric as it is."""
    import numpy as np

    from dr_validate.metrics.ranx import RanxMetrics

    means = []
    for number in range(study.num_checkpoints):
        ranking = study.rankings.of(number, documents, only)
        per_query = RanxMetrics(names=(metric,)).score(ranking, study.test_set.qrels).per_query[metric]
        means.append(float(np.nanmean(per_query[rows])))
    return np.array(means)


def _judged(proxy: Proxy, truth: "Float64") -> Judged:
    import numpy as np

    from scripts.research.study.summary import levels

    found = [levels(one[np.newaxis], truth) for one in proxy.values]
    tau, regret = (np.array([getattr(each, name) for each in found]) for name in ("tau", "regret"))
    return Judged(proxy=proxy, tau=tau, regret=regret, bias=float((proxy.values - truth).mean()))


def _text(options: argparse.Namespace, study: "Study", judged: Sequence[Judged], truth: "Float64", notes: Sequence[str]) -> str:
    from scripts.research.study.table import markdown

    size, queries = len(study.test_set.corpus), len(study.test_set.query_ids)
    checkpoints, *refused = notes
    head = (
        f"{study.test_set.name}: {size:,} documents, {queries:,} queries, {study.num_checkpoints} checkpoints ({checkpoints}), "
        f"{options.metric} on the full corpus {truth.min():.3f} to {truth.max():.3f}; {options.draws} draws.\n"
    )
    rows = [
        ["full corpus", f"{size:,}", "100%", f"{queries:,}", "1", "0", "0"],
        *(_row(one, size) for one in judged),
    ]
    columns = ["validated on", "documents", "share", "queries", "tau (5% below)", "regret (5% above)", "bias"]
    return "\n".join([head, markdown(columns, rows), *(f"Left out: {why}\n" for why in refused)])


def _row(one: Judged, size: int) -> list[str]:
    documents = one.proxy.documents
    counts = [one.proxy.name, f"{documents:,.0f}", f"{documents / size:.1%}", f"{one.proxy.queries:,}"]
    return [*counts, _spread(one.tau, WORSE, 2), _spread(one.regret, 1 - WORSE, 4), f"{one.bias:+.3f}"]


def _spread(values: "Float64", worse: float, digits: int) -> str:
    """The mean, and in brackets what a few draws are worse than; the mean alone of a single value."""
    import numpy as np

    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({np.quantile(values, worse):.{digits}f})"


def _draw(path: Path, judged: Sequence[Judged], size: int, metric: str) -> None:
    """tau and regret by documents; a bar is where 90% of the draws lie, which the picture says."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(9, 3.6), dpi=150)
    for axes, label in zip(both, ("tau", "regret"), strict=True):
        for kind, (colour, marker) in LOOKS.items():
            mine = [one for one in judged if one.proxy.kind == kind]
            if not mine:
                continue
            x = [one.proxy.documents * (BESIDE if kind == UNCORRECTED else 1) for one in mine]
            drawn = [getattr(one, label) for one in mine]
            means = np.array([values.mean() for values in drawn])
            ends = np.array([np.quantile(values, [WORSE, 1 - WORSE]) for values in drawn]).T
            reach = np.abs(ends - means)
            axes.errorbar(
                x, means, yerr=reach, fmt=f"{marker}-", color=colour, markersize=5, capsize=3, linewidth=1.2, label=kind
            )
        axes.set(
            xscale="log",
            xlabel=f"documents encoded for a checkpoint, of {size:,}",
            ylabel=LABELS[label].format(written(metric)),
        )
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.legend(*both[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="upper center", ncols=4)
    said = (
        "Points: mean over the draws of the sample or subset; bars: where 90% of the draws lie (5% on either side are beyond)."
    )
    figure.text(0.5, 0.01, said, ha="center", va="bottom", fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 0.93))
    figure.savefig(path)
    pyplot.close(figure)


def written(metric: str) -> str:
    """`mrr@10` as papers write it."""
    base, at, cutoff = metric.partition("@")
    return f"{WRITTEN.get(base, base)}{at}{cutoff}"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def _numbers(text: str) -> list[float]:
    with contextlib.suppress(ValueError):
        shares = [float(part) for part in text.split(",") if part]
        if shares and all(0 < share <= 1 for share in shares):
            return shares
    raise argparse.ArgumentTypeError(f"got {text!r}, expected shares above 0 and at most 1, such as 0.01,0.05")


def _picture(text: str) -> Path:
    if Path(text).suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a name that ends in .png, .svg or .pdf")
    return Path(text)


if __name__ == "__main__":
    main()
