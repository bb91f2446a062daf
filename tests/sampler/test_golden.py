"""What a seed draws, id by id: a sample that changes with a release would make old and new numbers incomparable."""

from collections.abc import Callable
from pathlib import Path

from dr_validate.sampler.random import RandomSampler
from dr_validate.sampler.run_pool import RunPoolSampler
from dr_validate.sampler.stratified import StratifiedSampler
from dr_validate.values import Sample
from tests.sampler.in_memory import build

WriteRun = Callable[[str, str], Path]
SEED = 13
# d0 and d1 are judged; the run names d10 to d29, the best first.
TEST_SET = build({f"d{n}": "" for n in range(100)}, {"q": "any"}, {"q": {"d0": 1, "d1": 0}})
RUN = "".join(f"q Q0 d{n} 1 {100 - n} t\n" for n in range(10, 30))


def drawn(sample: Sample) -> str:
    """Numbers of the documents beside the judged ones, in the order of the corpus."""
    ids = TEST_SET.corpus.ids(sample.ordinals)
    assert ids[:2] == ["d0", "d1"]
    return " ".join(document.removeprefix("d") for document in ids[2:])


def test_the_random_sample_of_seed_13(tmp_path: Path) -> None:
    assert drawn(RandomSampler(fraction=0.12).draw(TEST_SET, SEED, tmp_path)) == "19 20 31 36 46 66 86 90 98 99"


def test_the_stratified_sample_of_seed_13(tmp_path: Path, write_run: WriteRun) -> None:
    pool = (str(write_run("run.trec", RUN)),)
    sampler = StratifiedSampler(fraction=0.52, pool=pool, pool_share=0.2)
    certain = "10 11 12 13 14 15 16 17 18 19"
    rest = "20 21 23 28 31 32 36 37 43 44 46 51 52 55 57 58 59 60 61 66 68 70 71 72 74 75 76 77 83 84 86 89 90 92 94 98 99"
    assert drawn(sampler.draw(TEST_SET, SEED, tmp_path)) == f"2 5 7 {certain} {rest}"


def test_the_pool_of_seed_13(tmp_path: Path, write_run: WriteRun) -> None:
    unordered = "".join(f"q\td{n}\tany\tsome text\n" for n in range(10, 30))
    sampler = RunPoolSampler(run=str(write_run("top.tsv", unordered)), fraction=0.1)
    assert drawn(sampler.draw(TEST_SET, SEED, tmp_path)) == "11 12 13 15 19 20 21 23"
