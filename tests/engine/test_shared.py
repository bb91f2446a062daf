"""A ranking that several devices share: its ends in one process, all they say in the form that it has on a pipe."""

import io
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.engine.local import LocalEngine
from dr_validate.engine.merge import merge
from dr_validate.engine.share import Share
from dr_validate.engine.shared import slice_size
from dr_validate.engine.slices import Dealer, Slice
from dr_validate.errors import Stopped
from dr_validate.index.factory import FactoryIndex
from dr_validate.index.torch import TorchIndex
from dr_validate.messages import Answer, Message, read_message, write_message
from dr_validate.stages import Ranked, Workload
from dr_validate.values import TopK
from tests.engine.by_hand import (
    NUM_DOCUMENTS,
    NUM_QUERIES,
    KillAfter,
    Killed,
    StopAfter,
    SumOfEmbeddings,
    assert_same,
    rank,
    workload_of,
)

SMALL = LocalEngine(slice_documents=16)


@dataclass
class AllHere:
    """Members that answer in an order drawn by lot; `speeds` are their tickets."""

    workload: Workload
    speeds: Sequence[float]
    seed: int = 0
    asked: list[tuple[int, Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = np.random.default_rng(self.seed)
        self.models = [SumOfEmbeddings() for _ in self.speeds]
        self.shares = [Share(model, self.workload, TorchIndex(), "cpu") for model in self.models]
        self._requests: list[deque[Message]] = [deque() for _ in self.speeds]

    @property
    def names(self) -> Sequence[str]:
        return [f"cpu:{member}" for member in range(len(self.speeds))]

    @property
    def waiting(self) -> int:
        return sum(map(len, self._requests))

    def ask(self, member: int, request: Message) -> None:
        self.asked.append((member, request))
        self._requests[member].append(on_a_pipe(request))

    def answer(self, timeout_s: float) -> Answer | None:
        busy = [member for member, requests in enumerate(self._requests) if requests]
        tickets = np.array([self.speeds[member] for member in busy])
        member = int(self._chance.choice(busy, p=tickets / tickets.sum()))
        request = self._requests[member].popleft()
        return Answer(member=member, message=on_a_pipe(self.shares[member].answer(request)))


def on_a_pipe(message: Message) -> Message:
    stream = io.BytesIO()
    write_message(stream, message)
    stream.seek(0)
    found = read_message(stream)
    assert found is not None
    assert read_message(stream) is None
    return found


def shared(team: AllHere, engine: LocalEngine = SMALL, control: StopAfter | None = None) -> Ranked:
    return engine.rank_shared(team, team.workload, TorchIndex(), control or StopAfter())


@pytest.mark.parametrize("speeds", [[1, 1], [1, 20], [1, 2, 3, 4], [1] * 16], ids=["two", "unequal", "four", "more-than-work"])
def test_the_ranking_is_that_of_one_device_whoever_does_what(tmp_path: Path, speeds: list[float]) -> None:
    own = np.full(NUM_QUERIES, -1)
    own[0] = rank(workload_of(tmp_path)).ranking.documents[0, 0]
    expected = rank(workload_of(tmp_path, own=own), SMALL)
    for seed in range(4):
        team = AllHere(workload_of(tmp_path, own=own), speeds, seed)
        found = shared(team)
        assert_same(found, expected)
        assert found.encoded_now == sum(model.texts_encoded for model in team.models) == NUM_DOCUMENTS
        assert set(found.seconds) == set(expected.seconds)


def test_who_is_fast_does_more_and_nobody_is_idle_while_there_is_work(tmp_path: Path) -> None:
    team = AllHere(workload_of(tmp_path, block=64), [1, 9])
    shared(team, LocalEngine(slice_documents=4))
    done = [model.texts_encoded for model in team.models]
    assert done[1] > 3 * done[0] > 0


def test_a_member_has_blocks_to_itself_until_none_is_untouched(tmp_path: Path) -> None:
    pieces = [Slice(block=n // 4, start=n * 10, stop=n * 10 + 10) for n in range(12)]
    dealer = Dealer(pieces, 2)
    dealt = [(member, dealer.next(member)) for member in [0, 1] * 3 + [0] * 7]
    blocks = [(member, piece.block) for member, piece in dealt if piece is not None]
    assert blocks == [(0, 0), (1, 1)] * 3 + [(0, 0), (0, 2), (0, 2), (0, 2), (0, 2), (0, 1)]
    assert [piece for _, piece in dealt if piece is not None][-1] == pieces[7]  # its last one
    assert sorted(piece.start for _, piece in dealt if piece is not None) == [piece.start for piece in pieces]


@pytest.mark.parametrize(("slices", "members"), [(0, 2), (1, 2), (5, 2), (9, 3)])
def test_an_interrupted_ranking_goes_on_on_any_number_of_devices(tmp_path: Path, slices: int, members: int) -> None:
    workload, expected = workload_of(tmp_path), rank(workload_of(tmp_path), SMALL)
    control, first = StopAfter(slices), AllHere(workload, [1] * members)
    with pytest.raises(Stopped):
        shared(first, control=control)
    assert first.waiting == 0
    done = control.seen[-1][1] if control.seen else 0
    assert (done > 0) == workload.progress_file.exists() == (slices > 0)
    content = workload.progress_file.read_bytes() if done else b""
    for number in (1, 2, 5):
        if done:
            workload.progress_file.write_bytes(content)
        found = rank(workload, SMALL) if number == 1 else shared(AllHere(workload, [1] * number, seed=number))
        assert_same(found, expected)
        assert found.encoded_now == NUM_DOCUMENTS - done
        assert not workload.progress_file.exists()


def test_what_one_device_began_several_finish(tmp_path: Path) -> None:
    workload, expected = workload_of(tmp_path), rank(workload_of(tmp_path), SMALL)
    with pytest.raises(Stopped):
        rank(workload, SMALL, StopAfter(6))
    found = shared(AllHere(workload, [1, 1, 1]))
    assert_same(found, expected)
    assert found.encoded_now == NUM_DOCUMENTS - 6 * 16


@pytest.mark.parametrize("members", [2, 3])
def test_a_ranking_killed_at_any_moment_goes_on_from_what_was_saved_on_the_way(tmp_path: Path, members: int) -> None:
    workload, engine = workload_of(tmp_path), LocalEngine(slice_documents=16, save_every_s=0)
    counts = StopAfter()
    expected = rank(workload, LocalEngine(slice_documents=16), counts)
    encoded = []
    for slices in range(len(counts.seen)):
        with pytest.raises(Killed):
            shared(AllHere(workload, [1] * members, seed=slices), engine, KillAfter(slices))
        number = 1 + slices % 4  # on any number of devices
        team = AllHere(workload, [1] * number, seed=slices)
        found = rank(workload, engine) if number == 1 else shared(team, engine)
        assert_same(found, expected)
        assert not workload.progress_file.exists()
        assert NUM_DOCUMENTS - 16 * slices <= found.encoded_now <= NUM_DOCUMENTS  # what was not done is done now
        encoded.append(found.encoded_now)
    assert min(encoded) < NUM_DOCUMENTS / 2  # and what was done is not done again


def test_queries_are_encoded_once_and_everybody_scores_the_same_vectors(tmp_path: Path) -> None:
    team = AllHere(workload_of(tmp_path), [1, 1, 1])
    shared(team, LocalEngine(slice_documents=3))
    assert sorted(request.facts["start"] for _, request in team.asked if request.kind == "query") == [0, 3, 6]
    opened = [request.arrays["queries"] for _, request in team.asked if request.kind == "open"]
    expected = SumOfEmbeddings().encode(team.workload.queries.block(0), "query")
    assert len(opened) == 3
    for queries in opened:
        np.testing.assert_array_equal(queries, expected)
    kinds = [request.kind for _, request in team.asked]
    assert kinds.index("document") < kinds.index("open")  # documents need not wait for the queries


def test_progress_counts_documents_of_all_members(tmp_path: Path) -> None:
    control = StopAfter()
    shared(AllHere(workload_of(tmp_path), [1, 1]), control=control)
    counts = [done for _, done, _ in control.seen]
    assert counts == sorted(counts)
    assert control.seen[-1] == ("encoding", NUM_DOCUMENTS, NUM_DOCUMENTS)


def test_few_documents_are_cut_smaller_unless_that_could_change_the_ranking(tmp_path: Path) -> None:
    workload = replace(workload_of(tmp_path), ordinals=np.arange(11_429))
    assert slice_size(workload, TorchIndex(), 2, 2048) == 715
    assert slice_size(workload, TorchIndex(), 64, 2048) == 256
    assert slice_size(workload, TorchIndex(), 64, 100) == 100
    assert slice_size(workload, FactoryIndex(spec="IVF16,Flat"), 2, 2048) == 2048
    assert slice_size(replace(workload, ordinals=np.arange(8_800_000)), TorchIndex(), 8, 2048) == 2048


def test_merging_keeps_the_order_of_ties_of_both_signs_and_of_empty_places() -> None:
    chance = np.random.default_rng(3)
    tie_rank = chance.permutation(600)
    scores = chance.integers(-3, 4, 600).astype(np.float32) / 8
    whole = best_of(np.arange(600), scores, tie_rank, 300)
    thirds = np.array_split(chance.permutation(600), 3)
    merged = merge([best_of(part, scores, tie_rank, 300) for part in thirds], tie_rank)
    np.testing.assert_array_equal(merged.documents, whole.documents)
    np.testing.assert_array_equal(merged.scores, whole.scores)
    few = merge([best_of(np.arange(start, start + 2), scores, tie_rank, 300) for start in (0, 2)], tie_rank)
    assert (few.documents[0] >= 0).sum() == 4
    assert np.all(few.documents[0, 4:] == -1)
    assert np.all(few.scores[0, 4:] == -np.inf)


def best_of(documents: Any, scores: Any, tie_rank: Any, top_k: int) -> TopK:
    order = documents[np.lexsort((tie_rank[documents], -scores[documents]))][:top_k]
    found = np.full((1, top_k), -1)
    found[0, : len(order)] = order
    values = np.full((1, top_k), -np.inf, dtype=np.float32)
    values[0, : len(order)] = scores[order]
    return TopK(documents=found, scores=values)


def test_a_message_that_was_cut_short_is_none() -> None:
    facts: Mapping[str, Any] = {"a": [1, "ü\n"]}
    stream = io.BytesIO()
    write_message(stream, Message(kind="x", facts=facts, arrays={"v": np.arange(5), "none": np.empty((0, 4), np.float32)}))
    content = stream.getvalue()
    whole = read_message(io.BytesIO(content))
    assert whole is not None
    assert (whole.kind, whole.facts) == ("x", facts)
    assert whole.arrays["none"].shape == (0, 4)
    np.testing.assert_array_equal(whole.arrays["v"], np.arange(5))
    for length in range(len(content)):
        assert read_message(io.BytesIO(content[:length])) is None
