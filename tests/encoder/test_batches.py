"""Plans of batches: every text once, within the budget, the longest first."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_validate.encoder.cpu import for_each
from dr_validate.encoder.forward import ROUND_TO, plan, take
from dr_validate.values import TokenBlock
from tests.processes import LIMIT_S


@settings(max_examples=60)
@given(st.lists(st.integers(0, 90), max_size=200), st.integers(1, 600), st.integers(1, 5), st.booleans())
def test_a_plan_holds_every_text_with_tokens_once_and_keeps_its_budget(
    lengths: list[int], budget: int, threads: int, pad: bool
) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = plan(array, budget, threads, pad=pad)
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == [row for row, length in enumerate(lengths) if length]
    assert all(np.diff(array[rows]) <= 0)
    for batch in batches:
        size = len(batch) * array[batch].max() if pad else array[batch].sum()
        assert size <= budget or len(batch) == 1


def test_batches_end_where_little_has_to_be_filled_up() -> None:
    lengths = np.random.default_rng(0).integers(5, 128, 2000)
    batches = plan(lengths, 2048, 2, pad=False)
    filled = sum(-int(lengths[batch].sum()) % ROUND_TO for batch in batches)
    assert filled < 0.01 * lengths.sum()  # where they end wherever the budget does: 0.015


def test_padded_texts_of_a_full_batch_are_of_like_length() -> None:
    lengths = np.sort(np.random.default_rng(0).integers(5, 128, 2000))
    batches = plan(lengths, 2048, 1, pad=True)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded < 1.05 * lengths.sum()
    assert len(batches) < 1.5 * lengths.sum() / 2048


def test_the_work_of_few_texts_is_shared_among_the_threads() -> None:
    assert len(plan(np.full(100, 40), 4096, 1, pad=False)) == 1
    sizes = [len(batch) * 40 for batch in plan(np.full(100, 40), 4096, 2, pad=False)]
    assert len(sizes) >= 4
    assert max(sizes) <= 1000


def test_the_tokens_of_a_batch_are_those_of_its_texts() -> None:
    block = TokenBlock(ids=np.arange(10, dtype=np.uint16), offsets=np.array([0, 3, 3, 7, 10]))
    batch = take(block, np.array([2, 0]))
    assert batch.ids.tolist() == [3, 4, 5, 6, 0, 1, 2]
    assert batch.places.tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_batches_are_computed_side_by_side_with_one_thread_each() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    meet = threading.Barrier(2, timeout=LIMIT_S)  # passes only if two batches are in work at the same time
    seen: list[tuple[int, int]] = []

    def work(number: int) -> None:
        meet.wait()
        seen.append((number, torch.get_num_threads()))

    try:
        for_each([1, 2], work)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert sorted(seen) == [(1, 1), (2, 1)]


def test_an_error_in_one_thread_ends_all_and_is_raised() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            raise RuntimeError("the device is gone")
        done.append(number)

    try:
        with pytest.raises(RuntimeError, match="the device is gone"):
            for_each(range(100_000), work)
    finally:
        torch.set_num_threads(before)
    assert len(done) < 99_999
