"""The running top-k on a device that has little memory, with libraries that name too little, and without faiss for a GPU."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dr_validate.errors import CheckpointError
from dr_validate.index.flat import FlatIndex, gpu_resources
from dr_validate.index.topk import RunningTopK, scores_of, sort_keys
from dr_validate.index.torch import TorchIndex
from dr_validate.values import Float32, TopK

NUM, DIM, TOP_K = 3_000, 32, 10


def vectors_of(seed: int, num: int) -> Float32:
    return np.asarray(np.random.default_rng(seed).standard_normal((num, DIM)), dtype=np.float32)


def ranking(search: Any, vectors: Any) -> TopK:
    for ordinals in np.split(np.arange(NUM), [1_500, 1_600, 2_990]):
        search.add(vectors[ordinals], ordinals)
    top: TopK = search.top()
    return top


def expected() -> TopK:
    return ranking(TorchIndex().open(vectors_of(1, 300), TOP_K, np.arange(NUM), "cpu"), vectors_of(2, NUM))


class Library:
    """Names the best of a block by its own products, of which `spoil` makes something else."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda scores: scores, most: int = NUM) -> None:
        self._queries, self._spoil, self._most = torch.from_numpy(vectors_of(1, 300)), spoil, most

    def load(self, block: Tensor) -> None:
        self._block = block

    def propose(self, rows: slice, count: int) -> tuple[Tensor, Tensor]:
        if len(self._queries[rows]) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        found = self._spoil(self._queries[rows] @ self._block.T).topk(count)
        return found.values, found.indices


def test_scores_are_those_of_float64_whatever_a_library_says_they_are() -> None:
    found = ranking(RunningTopK(vectors_of(1, 300), TOP_K, np.arange(NUM), "cpu", Library()), vectors_of(2, NUM))
    products = (vectors_of(1, 300).astype(np.float64) @ vectors_of(2, NUM).astype(np.float64).T).astype(np.float32)
    np.testing.assert_array_equal(found.documents, expected().documents)
    np.testing.assert_array_equal(found.scores, np.take_along_axis(products, found.documents, axis=1))


def test_documents_without_number_that_score_alike_are_ordered_by_tie_rank_though_a_library_names_any_of_them() -> None:
    vectors = vectors_of(2, NUM)
    vectors[::2] = vectors[0] * 3  # far more than the margin, of most queries either among the best or among the worst
    queries, ties = vectors_of(1, 300), np.random.default_rng(5).permutation(NUM)
    found = ranking(RunningTopK(queries, TOP_K, ties, "cpu", Library()), vectors)
    alike = ranking(TorchIndex().open(queries, TOP_K, ties, "cpu"), vectors)
    np.testing.assert_array_equal(found.documents, alike.documents)
    likes = np.flatnonzero(queries @ vectors[0] > 30)
    assert len(likes)
    first = np.arange(0, NUM, 2)[np.argsort(ties[::2])]
    for row in likes:
        np.testing.assert_array_equal(found.documents[row], first[:TOP_K])


def test_where_memory_runs_out_in_the_search_fewer_queries_are_searched_at_once(caplog: pytest.LogCaptureFixture) -> None:
    search = RunningTopK(vectors_of(1, 300), TOP_K, np.arange(NUM), "cpu", Library(most=100))
    found = ranking(search, vectors_of(2, NUM))
    np.testing.assert_array_equal(found.documents, expected().documents)
    np.testing.assert_array_equal(found.scores, expected().scores)
    assert "searching for at most 64 queries at once" in caplog.text


def test_where_there_is_none_at_all_the_checkpoint_fails_and_the_message_says_what_to_do() -> None:
    search = RunningTopK(vectors_of(1, 300), TOP_K, np.arange(NUM), "cpu", Library(most=3))
    with pytest.raises(CheckpointError, match=r"no memory on cpu to search .*lower top_k"):
        ranking(search, vectors_of(2, NUM))


def test_any_other_error_of_a_library_stays_what_it_is() -> None:
    def breaks(scores: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        ranking(RunningTopK(vectors_of(1, 300), TOP_K, np.arange(NUM), "cpu", Library(breaks)), vectors_of(2, NUM))


def test_keys_ascend_as_scores_descend_and_then_as_tie_ranks_ascend() -> None:
    scores = torch.tensor([np.inf, 3e38, 2.0, 1e-45, 0.0, -0.0, -1e-45, -2.0, -np.inf])
    keys = sort_keys(scores, torch.zeros(len(scores), dtype=torch.int64))
    assert torch.equal(keys.sort().values, keys) and keys[4] == keys[5]
    assert torch.equal(scores_of(keys), scores)
    assert sort_keys(torch.tensor([1.0]), torch.tensor([2**32 - 2])) < sort_keys(torch.tensor([0.5]), torch.tensor([0]))


def test_tensors_are_taken_as_they_are() -> None:
    search = FlatIndex().open(torch.from_numpy(vectors_of(1, 300)), TOP_K, np.arange(NUM), "cpu")
    found = ranking(search, torch.from_numpy(vectors_of(2, NUM)))
    np.testing.assert_array_equal(found.documents, expected().documents)


@pytest.mark.parametrize(("top_k", "has_gpu", "why"), [(10, False, "this build of faiss"), (2040, True, "more than 2016")])
def test_where_faiss_cannot_search_on_a_gpu_torch_does_and_one_line_says_so(
    top_k: int, has_gpu: bool, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[tuple[Any, ...]] = []
    monkeypatch.setattr(TorchIndex, "open", lambda self, *arguments: opened.append(arguments))
    resources = SimpleNamespace(setTempMemory=lambda size: None)
    parts = {"StandardGpuResources": lambda: resources} if has_gpu else {}
    faiss = type("Faiss", (SimpleNamespace,), {"__hash__": object.__hash__})(**parts)
    monkeypatch.setattr("dr_validate.index.flat.import_faiss", lambda: faiss)
    caplog.set_level(logging.INFO, "dr_validate")
    for _ in range(2):
        FlatIndex().open(vectors_of(1, 300), top_k, np.arange(NUM), "cuda:3")
    assert [arguments[1:2] + arguments[3:] for arguments in opened] == [(top_k, "cuda:3")] * 2
    (said,) = [record.message for record in caplog.records if "index=flat" in record.message]
    assert why in said and "index=torch searches there" in said
    assert (gpu_resources(faiss) is not None) == has_gpu


def test_what_is_searched_for_many_queries_at_once_is_sorted_for_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a library names candidates for more queries than a dense product has room for."""
    search = FlatIndex().open(vectors_of(1, 300), TOP_K, np.arange(NUM), "cpu")
    monkeypatch.setattr("dr_validate.index.topk.QUERIES_AT_ONCE", 7)
    found = ranking(search, vectors_of(2, NUM))
    np.testing.assert_array_equal(found.documents, expected().documents)
