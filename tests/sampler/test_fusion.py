from collections.abc import Sequence

import numpy as np
import pytest

from dr_validate.sampler.bm25 import RetrievedRun
from dr_validate.sampler.runs import QUERIES_AT_ONCE, Candidates, candidates
from dr_validate.values import Qrels, TestSet

NUM_QUERIES = QUERIES_AT_ONCE + 44
Lists = dict[int, list[int]]  # query row -> documents, best first


@pytest.fixture(scope="module")
def many_queries(small: TestSet) -> TestSet:
    """The documents of `small` under more queries than are fused at once; d0 to d4 are judged."""
    names = tuple(f"q{number}" for number in range(NUM_QUERIES))
    ones = np.ones(NUM_QUERIES, dtype=np.int64)
    qrels = Qrels(offsets=np.arange(NUM_QUERIES + 1), documents=np.arange(NUM_QUERIES) % 5, gains=ones)
    return TestSet(
        name="many",
        corpus=small.corpus,
        query_ids=names,
        query_texts=names,
        qrels=qrels,
        own_documents=-ones,
        fingerprint="many",
    )


def random_lists(seed: int) -> Lists:
    """Up to 12 of the first 120 documents; some queries have none."""
    rng = np.random.default_rng(seed)
    return {row: rng.permutation(120)[: rng.integers(0, 13)].tolist() for row in range(NUM_QUERIES)}


def run_of(lists: Lists) -> RetrievedRun:
    hits = [(row, document, rank) for row in sorted(lists) for rank, document in enumerate(lists[row])]
    rows, documents, ranks = np.array(hits, dtype=np.int64).reshape(-1, 3).T
    return RetrievedRun(rows=rows, documents=documents, ranks=ranks)


def by_hand(runs: Sequence[Lists]) -> dict[int, int]:
    """Best rank of each document over the queries: how many have a larger sum of 1 / (20 + rank), ranks from 1 on."""
    best: dict[int, int] = {}
    for row in range(NUM_QUERIES):
        sums: dict[int, float] = {}
        for lists in runs:
            for rank, document in enumerate(lists[row], start=1):
                sums[document] = sums.get(document, 0.0) + 1 / (20 + rank)
        for document, value in sums.items():
            rank = sum(other > value + 1e-9 for other in sums.values())
            best[document] = min(rank, best.get(document, rank))
    return {document: rank for document, rank in best.items() if document >= 5}


@pytest.mark.parametrize("num_runs", [1, 2, 3])
def test_a_document_has_its_best_fused_rank_over_the_queries(many_queries: TestSet, num_runs: int) -> None:
    lists = [random_lists(seed) for seed in range(num_runs)]
    found = candidates([run_of(each) for each in lists], many_queries)
    assert dict(zip(found.documents.tolist(), found.ranks.tolist(), strict=True)) == by_hand(lists)
    assert np.all(np.diff(found.documents) > 0)


def test_being_high_in_two_runs_counts_more_than_being_first_in_one(many_queries: TestSet) -> None:
    runs = [run_of({0: [10, 11, 12]}), run_of({0: [20, 12, 10, 21]})]
    found = candidates(runs, many_queries)
    order = found.best(9, np.array([9, 5, 5, 1, 5], dtype=np.uint64))  # of documents 10, 11, 12, 20, 21
    assert order.tolist() == [10, 12, 20, 11, 21]  # sums: 1/21 + 1/23, 1/23 + 1/22, 1/21, 1/22, 1/24


def test_twice_the_21st_place_counts_more_than_the_first_once_and_twice_the_23rd_less(many_queries: TestSet) -> None:
    fillers = [list(range(30, 60)), list(range(60, 90))]
    lists = [[10, *filler[:19], 11, filler[20], 12] for filler in fillers]
    lists[1][0] = 13  # 2/41 for document 11, 1/21 for 10 and 13, 2/43 for 12, 1/22 and less for the others
    found = candidates([run_of({0: each}) for each in lists], many_queries)
    ranks = dict(zip(found.documents.tolist(), found.ranks.tolist(), strict=True))
    assert [ranks[document] for document in (11, 10, 13, 12)] == [0, 1, 1, 3]


def test_the_order_of_the_runs_plays_no_part(many_queries: TestSet) -> None:
    runs = [run_of(random_lists(seed)) for seed in range(3)]
    first = candidates(runs, many_queries)
    for order in ([1, 2, 0], [2, 1, 0]):
        again = candidates([runs[place] for place in order], many_queries)
        np.testing.assert_array_equal(again.documents, first.documents)
        np.testing.assert_array_equal(again.ranks, first.ranks)


def test_the_best_are_a_prefix_of_the_order_by_rank_and_number() -> None:
    rng = np.random.default_rng(4)
    found = Candidates(documents=np.arange(50) * 3, ranks=rng.integers(0, 6, 50))
    numbers = rng.permutation(50).astype(np.uint64)
    keys = sorted(zip(found.ranks.tolist(), numbers.tolist(), found.documents.tolist(), strict=True))
    for count in (0, 1, 7, 25, 49, 50, 51):
        assert found.best(count, numbers).tolist() == [document for _, _, document in keys[:count]]
