"""The engine, with a small real model."""

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.engine.local import LocalEngine, Progress, slice_size
from dr_validate.errors import CheckpointError, Preempted, Stopped
from dr_validate.index.factory import FactoryIndex
from dr_validate.index.torch import TorchIndex
from dr_validate.store.embeddings import KeptVectors
from dr_validate.values import Float32, Side, TokenBlock
from tests.engine.by_hand import (
    NUM_DOCUMENTS,
    NUM_QUERIES,
    Blocks,
    ByHand,
    KillAfter,
    Killed,
    StopAfter,
    SumOfEmbeddings,
    assert_same,
    rank,
    tokens_of,
    workload_of,
)


def test_every_query_gets_its_best_documents(tmp_path: Path) -> None:
    workload = workload_of(tmp_path)
    found = rank(workload)
    model = SumOfEmbeddings()
    blocks = workload.documents
    vectors = np.concatenate([model.encode(blocks.block(number), "document") for number in range(len(blocks))])
    scores = model.encode(workload.queries.block(0), "query") @ vectors.T
    for row in range(NUM_QUERIES):
        order = np.lexsort((workload.tie_rank[workload.ordinals], -scores[row]))[:20]
        np.testing.assert_array_equal(found.ranking.documents[row], workload.ordinals[order])
    assert found.encoded_now == NUM_DOCUMENTS
    assert set(found.seconds) == {"encode", "tokenize", "vectors", "search"}


def test_block_and_slice_sizes_do_not_change_the_ranking(tmp_path: Path) -> None:
    expected = rank(workload_of(tmp_path))
    for block, slice_documents in [(1, 1), (37, 10), (NUM_DOCUMENTS, 11), (1_000, 1_000)]:
        assert_same(rank(workload_of(tmp_path, block=block), LocalEngine(slice_documents=slice_documents)), expected)


def test_a_gpu_has_larger_slices_and_what_gives_way_on_a_cpu_smaller_unless_the_ranking_depends_on_them(tmp_path: Path) -> None:
    work = workload_of(tmp_path)
    baseline, exact, approximate = replace(work, preemptible=True), TorchIndex(), FactoryIndex(spec="IVF16,Flat")
    assert slice_size(None, work, exact, "cpu") == 2048
    assert slice_size(None, work, exact, "cuda:0") == slice_size(None, baseline, exact, "cuda") == 8192
    assert slice_size(None, work, approximate, "cuda:0") == 2048
    assert slice_size(None, baseline, exact, "cpu") == 256
    assert slice_size(None, baseline, approximate, "cpu") == 2048
    assert slice_size(11, baseline, exact, "cpu") == 11


@pytest.mark.parametrize("slices", [0, 1, 2, 5, 9])
def test_an_interrupted_ranking_goes_on_to_the_same_result(tmp_path: Path, slices: int) -> None:
    engine = LocalEngine(slice_documents=16)
    expected = rank(workload_of(tmp_path), engine)
    workload = workload_of(tmp_path)
    control = StopAfter(slices)
    with pytest.raises(Stopped):
        rank(workload, engine, control)
    done = control.seen[-1][1] if control.seen else 0
    model = SumOfEmbeddings()
    found = engine.rank(model, workload, TorchIndex(), StopAfter(), "cpu")
    assert_same(found, expected)
    assert found.encoded_now == model.texts_encoded == NUM_DOCUMENTS - done
    assert not workload.progress_file.exists()


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_ranking_killed_at_any_moment_goes_on_from_what_was_saved_on_the_way(
    tmp_path: Path, save_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload, engine = workload_of(tmp_path), LocalEngine(slice_documents=16, save_every_s=10 * save_every)
    counts = StopAfter()
    expected = rank(workload, LocalEngine(slice_documents=16), counts)
    clock = ByHand()
    monkeypatch.setattr(time, "monotonic", lambda: clock.seconds)
    for slices in range(len(counts.seen)):
        with pytest.raises(Killed):
            rank(workload, engine, KillAfter(slices, clock=clock))
        saved = slices - slices % save_every
        found = rank(workload, engine)
        assert_same(found, expected)
        assert found.encoded_now == NUM_DOCUMENTS - (counts.seen[saved - 1][1] if saved else 0)
        assert not workload.progress_file.exists()


def test_a_ranking_killed_after_every_slice_ends_with_each_document_encoded_once(tmp_path: Path) -> None:
    workload, engine, model = workload_of(tmp_path), LocalEngine(slice_documents=16, save_every_s=0), SumOfEmbeddings()
    expected = rank(workload, LocalEngine(slice_documents=16))
    lives = 1
    while True:
        try:
            found = engine.rank(model, workload, TorchIndex(), KillAfter(1), "cpu")
            break
        except Killed:
            lives += 1
    assert_same(found, expected)
    assert (lives, model.texts_encoded) == (-(-64 // 16) * 3 + 1, NUM_DOCUMENTS)


def test_a_progress_file_that_lacks_nothing_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, engine = workload_of(tmp_path), LocalEngine(slice_documents=16, save_every_s=0)
    with monkeypatch.context() as killed_just_before:
        killed_just_before.setattr(Progress, "clear", lambda self: None)
        expected = rank(workload, engine)
    found = rank(workload, engine)
    assert_same(found, expected)
    assert found.encoded_now == 0 and not workload.progress_file.exists()


def test_nothing_is_saved_before_it_is_time(tmp_path: Path) -> None:
    workload = workload_of(tmp_path)
    found: list[bool] = []

    class Look(StopAfter):
        def progress(self, phase: str, done: int, total: int) -> None:
            found.append(workload.progress_file.exists())

    rank(workload, LocalEngine(slice_documents=16, save_every_s=1_000), Look())
    assert found
    assert not any(found)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "another sample"])
def test_a_damaged_or_foreign_progress_file_is_ignored(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    engine, workload = LocalEngine(slice_documents=16), workload_of(tmp_path)
    expected = rank(workload, engine)
    with pytest.raises(Stopped):
        rank(workload, engine, StopAfter(4))
    file = workload.progress_file
    if damage == "another sample":
        workload = replace(workload, ordinals=workload.ordinals + 0, own_documents=np.full(NUM_QUERIES, -2))
    else:
        file.write_bytes({"truncated": file.read_bytes()[:-40], "text": b"hello", "empty": b""}[damage])
    found = rank(workload, engine)
    assert_same(found, expected)
    assert found.encoded_now == NUM_DOCUMENTS
    assert str(file) in caplog.text


def test_own_documents_are_dropped_and_the_next_one_moves_up(tmp_path: Path) -> None:
    plain = rank(workload_of(tmp_path, top_k=21)).ranking
    own = np.full(NUM_QUERIES, -1)
    own[0], own[1] = plain.documents[0, 0], plain.documents[1, 19]
    own[2] = np.setdiff1d(np.arange(NUM_DOCUMENTS * 3), workload_of(tmp_path).ordinals)[0]  # not in the sample
    found = rank(workload_of(tmp_path, own=own)).ranking
    assert found.documents.shape == (NUM_QUERIES, 20)
    np.testing.assert_array_equal(found.documents[0], plain.documents[0, 1:])
    np.testing.assert_array_equal(found.documents[1], np.delete(plain.documents[1], 19))
    np.testing.assert_array_equal(found.documents[2:], plain.documents[2:, :20])


def test_an_own_document_in_a_sample_smaller_than_top_k_leaves_an_empty_place(tmp_path: Path) -> None:
    plain = rank(workload_of(tmp_path, top_k=NUM_DOCUMENTS + 5)).ranking
    own = plain.documents[:, 3].copy()
    found = rank(workload_of(tmp_path, top_k=NUM_DOCUMENTS + 5, own=own)).ranking
    assert not np.any(found.documents == own[:, None])
    assert np.all((found.documents >= 0).sum(axis=1) == NUM_DOCUMENTS - 1)


class Diverged(SumOfEmbeddings):
    """A few of its vectors are no numbers."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.side = side

    @property
    def contract(self) -> Mapping[str, Any]:
        return {"dtype": "float16"}

    def encode(self, tokens: TokenBlock, side: Side) -> Float32:
        vectors = super().encode(tokens, side)
        if side == self.side:
            vectors[-2:, 1] = np.nan, np.inf
        return vectors


@pytest.mark.parametrize(("side", "number"), [("query", NUM_QUERIES), ("document", 16)])
def test_vectors_that_are_not_finite_are_reported_with_their_count_and_leave_nothing(
    tmp_path: Path, side: Side, number: int
) -> None:
    workload, engine = workload_of(tmp_path), LocalEngine(slice_documents=16, save_every_s=0)
    with pytest.raises(CheckpointError, match=rf"2 of {number} {side} vectors hold NaN or Inf \(float16\)"):
        engine.rank(Diverged(side), workload, TorchIndex(), StopAfter(), "cpu")
    assert not workload.progress_file.exists()


class Prepared(Blocks):
    """Tells which thread asked for which block first."""

    def __init__(self, tokens: TokenBlock, size: int) -> None:
        super().__init__(tokens, size)
        self.asked: dict[int, str] = {}

    def block(self, number: int) -> TokenBlock:
        self.asked.setdefault(number, threading.current_thread().name)
        return super().block(number)


def test_the_tokens_of_a_slice_are_ready_when_its_turn_comes_but_none_is_touched_that_is_not_needed(tmp_path: Path) -> None:
    blocks, workload = Prepared(tokens_of(NUM_DOCUMENTS, 2), 32), workload_of(tmp_path)
    rank(replace(workload, documents=blocks), LocalEngine(slice_documents=32))
    here = threading.current_thread().name
    assert blocks.asked[0] == here  # nothing to do meanwhile
    assert {name.split("_")[0] for number, name in blocks.asked.items() if number} == {"ahead"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
    every: dict[Side, int] = {"query": NUM_QUERIES, "document": NUM_DOCUMENTS * 3}
    for untouched in (False, True):
        blocks.asked.clear()
        with contextlib.closing(KeptVectors(tmp_path, every, dtype="float32", take=lambda size: True)) as vectors:
            found = rank(replace(workload, documents=blocks, vectors=vectors), LocalEngine(slice_documents=32))
        assert_same(found, rank(workload))
        assert (not blocks.asked) == (found.encoded_now == 0) == untouched


def test_progress_reaches_the_whole_sample(tmp_path: Path) -> None:
    control = StopAfter()
    rank(workload_of(tmp_path), control=control)
    assert control.seen[-1] == ("encoding", NUM_DOCUMENTS, NUM_DOCUMENTS)


def test_the_control_may_stop_before_anything_is_encoded(tmp_path: Path) -> None:
    class GiveWay(StopAfter):
        def check(self) -> None:
            raise Preempted("later")

    with pytest.raises(Preempted):
        rank(workload_of(tmp_path), control=GiveWay())
    assert not workload_of(tmp_path).progress_file.exists()
