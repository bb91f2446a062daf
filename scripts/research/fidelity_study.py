"""How far sampled metrics are from full-corpus ones, measured: many draws of every strategy, on stored vectors of everything.

    python -m dr_validate source.path=output dataset=beir dataset.path=nq sampler=full watch.mode=once state_dir=state
    python scripts/research/fidelity_study.py --state-dir state --dataset beir --data nq --out study.md

Encoder keys of that run are repeated at the end (`encoder.pooling=cls`). Vectors from elsewhere come as a folder:

    python scripts/research/fidelity_study.py --vectors FOLDER --checkpoints 'c*' --runs bm25,strong

with `NAME.d.npy` and `NAME.q.npy` (vectors in the order of the documents and queries) for each checkpoint, and `coll.json`,
{"docs": [text], "queries": [text], "gold": [ordinal of the relevant document]}, or "rel": [[ordinal]] for several.

The tables compare each value with that of the full corpus: the uncorrected metric (`random+gold`, `RUN top`, `stratified
uncorrected`), or corrected as a Report has it (`stratified`, `random corrected`), every strategy over the same number of
documents. Samplers, metrics and estimates are those of the package.
"""

import argparse
import os
import resource
import sys
from pathlib import Path


def main() -> None:
    options = parse(sys.argv[1:])
    # Before numpy is imported: the processes share the cores, and forking beside threads of a library can hang.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from dr_validate.errors import DrValidateError
    from scripts.research.study.compare import side_by_side, study_at
    from scripts.research.study.run import study

    try:
        text = study(options)
        if options.against:
            text += "\n" + side_by_side(study_at(options.against, _without(sys.argv[1:], "--against", "--out")), text)
        sys.stdout.write(text)
    except DrValidateError as error:
        sys.exit(str(error))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sys.stderr.write(f"{sum(each.ru_utime + each.ru_stime for each in used):.0f} CPU seconds\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    material_options(parser)
    what = parser.add_argument_group("what to measure")
    what.add_argument("--budgets", type=_numbers, default=[0.01, 0.02, 0.05, 0.1], help="fractions of the corpus")
    what.add_argument("--draws", type=int, default=200)
    what.add_argument("--seed", type=int, default=0, help="of the first draw; the others follow")
    what.add_argument("--metrics", type=_list, default=["mrr@10"])
    what.add_argument("--queries", type=int, help="only the first so many")
    what.add_argument("--runs", type=_list, default=["bm25"], help="for pools: bm25, paths of TREC runs, names of vectors")
    what.add_argument("--strategies", type=_list, help="(default: all)")
    what.add_argument("--online", action="store_true", help="correct each checkpoint with the earlier ones only")
    what.add_argument("--baselines", type=_list, default=[], help="checkpoints whose full ranking is known to the others")
    what.add_argument("--top-k", type=int, default=100)
    how = parser.add_argument_group("how")
    how.add_argument("--jobs", type=int, default=2, help="processes")
    how.add_argument("--memory-gib", type=float, default=8, help="for scores of all pairs; without room, made for each draw")
    how.add_argument("--work", type=Path, help="folder for runs, BM25's among them (default: a temporary one)")
    how.add_argument("--out", type=Path, help="write the tables here, too, after each budget")
    how.add_argument("--against", metavar="COMMIT", help="the same by the code of another commit, beside this one's figures")
    return with_material(parser, arguments)


def material_options(parser: argparse.ArgumentParser) -> None:
    """What `study.run.material_of` reads."""
    vectors = parser.add_argument_group("vectors, kept by dr_validate or in a folder")
    vectors.add_argument("--state-dir", type=Path, help="in which sampler=full has validated the checkpoints")
    vectors.add_argument("--dataset", default="beir", help="choice of the group dataset (default: beir)")
    vectors.add_argument("--data", help="its dataset.path")
    vectors.add_argument("--vectors", type=Path, help="a folder of NAME.d.npy and NAME.q.npy")
    vectors.add_argument("--collection", type=Path, help="(default: coll.json in that folder)")
    vectors.add_argument("--suffix", default="", help="x: read NAME.xd.npy and NAME.xq.npy")
    vectors.add_argument("--checkpoints", type=_list, default=["*"], help="names or patterns (default: all but runs)")
    vectors.add_argument("overrides", nargs="*", help="more keys of that run, such as encoder.pooling=cls")


def with_material(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parsed; ends the process where no vectors are named."""
    options = parser.parse_intermixed_args(arguments)
    if (options.state_dir is None) == (options.vectors is None):
        parser.error("give --state-dir or --vectors")
    return options


def _without(arguments: list[str], *names: str) -> list[str]:
    """The arguments without some options and their values."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument.split("=")[0] not in names:
            kept.append(argument)
        skip = not skip and argument in names
    return kept


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in _list(text)]


if __name__ == "__main__":
    main()
