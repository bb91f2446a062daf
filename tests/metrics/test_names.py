import subprocess
import sys

import pytest

from dr_validate.errors import DrValidateError
from dr_validate.metrics.gains import deepest_cutoff, parse
from dr_validate.metrics.ranx import RanxMetrics


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("ndcg@10", ("ndcg", 10, 1)),
        ("mrr", ("mrr", None, 1)),
        ("map@1000", ("map", 1000, 1)),
        ("hit_rate@5", ("hit_rate", 5, 1)),
        ("r-precision", ("r-precision", None, 1)),
        ("recall@100-l2", ("recall", 100, 2)),
        ("my_package.metrics.best@5", ("my_package.metrics.best", 5, 1)),
    ],
)
def test_a_name_is_a_base_and_a_cutoff(name: str, parsed: tuple[str, int | None, int]) -> None:
    assert parse(name) == parsed


@pytest.mark.parametrize(
    "name",
    ["", "nDCG@10", "ndgc@10", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@1.5", "recall", "precision", "r-precision@5"]
    + [
        "bpref",
        "ndcg@10-l2",
        "recall@10-l",
        "recall@10-l0",
        "recall-l2@10",
        "recall@\u0661",
        "mrr@10 ",
        "my_package.best",
        "my_package..best@5",
    ],
)
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(DrValidateError, match=r"got .* expected one of ndcg, ndcg@K, mrr"):
        parse(name)


def test_the_deepest_cutoff_is_that_of_the_deepest_name() -> None:
    assert deepest_cutoff(["mrr@10", "recall@100-l2", "map", "ndcg@20"]) == 100
    assert deepest_cutoff(["map", "r-precision"]) == 0


def test_metrics_refuse_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="got 'ndcg@ten'"):
        RanxMetrics(names=("mrr@10", "ndcg@ten"))


def test_importing_the_metrics_loads_neither_ranx_nor_numba() -> None:
    code = "import sys, dr_validate.metrics.ranx; print(sorted({'ranx', 'numba', 'scipy'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
