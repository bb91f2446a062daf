"""scripts/bench.py --architectures: what the table says is what was computed."""

from pathlib import Path

import numpy as np
import pytest

from scripts.research.benchmark.architectures import HEAD, Case, Collection, compare_all, largest, ranked, small_collection

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
CASES = (
    Case(label="real", sizes={}),
    Case(label="cls", config="BertConfig", sizes=TINY, pooling="cls"),
    Case(label="padded", config="MPNetConfig", sizes=TINY | {"max_position_embeddings": 514}),
)


@pytest.fixture
def small(collection: Path) -> Collection:
    """Four queries, six documents and the long texts made of the others."""
    return small_collection(collection, 4, 6)


def test_a_row_says_which_way_was_taken_and_how_far_the_vectors_are(small: Collection, minilm: Path) -> None:
    assert (len(small.queries), len(small.documents)) == (4, 10)
    head, _, *lines = compare_all(minilm, small, CASES).splitlines()
    rows = [dict(zip(HEAD, line.strip("| ").split(" | "), strict=True)) for line in lines]
    assert head == f"| {' | '.join(HEAD)} |"
    assert [(row["architecture"], row["type"]) for row in rows] == [
        (case.label, dtype) for case in CASES for dtype in ("float32", "bfloat16")
    ]
    assert [row["batches"] for row in rows[::2]] == ["packed", "packed", "padded"]
    assert all(float(row["largest difference"]) < 1e-5 for row in rows[::2])
    assert all(1e-5 < float(row["largest difference"]) < 2 * float(row["of transformers"]) for row in rows[1::2])
    assert rows[0]["ranking"].endswith("+0.0000") and rows[2]["ranking"] == "overlap@10 1.000"


def test_vectors_that_differ_show_in_difference_and_ranking(small: Collection) -> None:
    names = list(small.documents)
    place = {document: number for number, document in enumerate(names)}
    relevant = [next(iter(small.qrels[query])) for query in small.queries]
    exact = {
        "query": np.eye(10, dtype=np.float32)[[place[name] for name in relevant]],
        "document": np.eye(10, dtype=np.float32),
    }
    found = exact | {"query": exact["query"][::-1]}
    assert largest(found, exact) == 1
    assert ranked(CASES[0], exact, exact, small) == "nDCG@10 1.0000 +0.0000"
    value, difference = ranked(CASES[0], found, exact, small).split()[1:]
    assert value == "1.0000" and float(difference) < 0
