"""Many workers of Ray, with real processes on nodes of one machine: the ranking is that of one device, whoever dies."""

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.engine import ray_ranking, ray_workers
from dr_validate.engine.local import LocalEngine, Progress
from dr_validate.engine.ray import RayEngine, set_environment
from dr_validate.errors import CheckpointError, DeviceFailure, SetupError, Stopped
from dr_validate.index.torch import TorchIndex
from dr_validate.stages import Ranked, Ranker, Workload
from tests import ray_python
from tests.engine.by_hand import (
    NUM_DOCUMENTS,
    NUM_QUERIES,
    ByHandElsewhere,
    StopAfter,
    SumOfEmbeddings,
    assert_same,
    rank,
    workload_of,
)
from tests.processes import LIMIT_S, wait_for

SLICE = 4
NUM_SLICES = 50


class Nodes:
    """A cluster whose nodes are processes of this machine; each has room for one worker."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self._cluster = Cluster()
        self._cluster.add_node(num_cpus=1, include_dashboard=False)  # the head, which stays
        self._nodes: list[Any] = []
        self.set(2)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def set(self, number: int) -> None:
        while len(self._nodes) < number - 1:
            self._nodes.append(self._cluster.add_node(num_cpus=1))
        while len(self._nodes) > number - 1:
            self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        set_environment(own_cluster=True)
        for name, value in {"RAY_TMPDIR": folder, "TMPDIR": folder, **ray_python.environment()}.items():
            patch.setenv(name, value)
        made = Nodes(Path(folder))
        yield made
        made.close()


@pytest.fixture(scope="module")
def ranker(nodes: Nodes) -> Iterator[Ranker]:
    """Two workers, on a node each."""
    engine = RayEngine(address=nodes.address, workers=2, save_every_s=1_000, slice_documents=SLICE)
    with engine.start(engine.find_device("cpu")) as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path, nodes: Nodes) -> Path:
    nodes.set(2)
    return tmp_path


def work(folder: Path, **options: Any) -> Workload:
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "weights").write_text("these")
    elsewhere = ByHandElsewhere(orders=folder, options=options, folder=checkpoint)
    return replace(workload_of(folder, **options), elsewhere=elsewhere)


def shared(ranker: Ranker, workload: Workload, control: StopAfter | None = None) -> Ranked:
    return ranker.rank(SumOfEmbeddings(), workload, TorchIndex(), control or StopAfter(), "cpu")


def alone(workload: Workload) -> Ranked:
    return rank(workload, LocalEngine(slice_documents=SLICE))


def lost(found: Ranked) -> int:
    return sum(worker["lost"] for worker in found.workers)


def test_two_workers_rank_as_one_device_does_ties_included(ranker: Ranker, folder: Path) -> None:
    own = np.full(NUM_QUERIES, -1)
    own[0] = rank(workload_of(folder)).ranking.documents[0, 0]
    for options in ({}, {"own": own}, {"top_k": NUM_DOCUMENTS + 5}, {"block": 7, "top_k": 1}):
        control, workload = StopAfter(), work(folder, **options)
        found, expected = shared(ranker, workload, control), alone(workload)
        assert_same(found, expected)
        assert found.contract["pooling"] == "sum"
        assert control.seen[-1] == ("encoding", NUM_DOCUMENTS, NUM_DOCUMENTS)
        assert set(found.seconds) == {"load", *expected.seconds}
        assert sum(worker["slices"] for worker in found.workers) >= NUM_SLICES
        assert found.encoded_now == NUM_DOCUMENTS
        assert not workload.progress_file.exists()
    assert len({worker["where"] for worker in found.workers}) == 2
    priorities = {os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, found.contract["process"])}
    assert len(priorities) == 1  # beside other programs a worker gets as much of a processor as one device in this process


def test_what_a_worker_that_died_or_whose_device_failed_had_not_handed_over_is_done_again_and_nothing_else(
    ranker: Ranker, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "break-1").touch()
    (folder / "kill-3").touch()
    found = shared(ranker, work(folder))
    assert_same(found, alone(workload_of(folder)))
    assert lost(found) == 2
    assert found.encoded_now <= NUM_DOCUMENTS
    assert "was lost: ActorDiedError" in caplog.text
    assert "was lost: RuntimeError: the device is wrong" in caplog.text


def test_a_node_that_is_killed_costs_what_its_worker_had_and_one_that_joins_late_takes_part(
    ranker: Ranker, folder: Path, nodes: Nodes
) -> None:
    class Moves(StopAfter):
        def progress(self, phase: str, done: int, total: int) -> None:
            super().progress(phase, done, total)
            if len(self.seen) == 5:
                (folder / "hang-8").touch()
                nodes.set(1)
                nodes.set(2)

    found = shared(ranker, work(folder), Moves())
    (folder / "go").touch()
    assert_same(found, alone(workload_of(folder)))
    assert lost(found) == 1
    assert all(worker["slices"] for worker in found.workers)  # the new one did what the other hangs at


def test_a_worker_that_hangs_keeps_nobody_waiting_and_is_of_use_when_it_has_answered(ranker: Ranker, folder: Path) -> None:
    (folder / "hang-3").touch()
    found = shared(ranker, work(folder))
    assert not (folder / "hang-3").exists()
    assert_same(found, alone(workload_of(folder)))
    assert lost(found) == 0
    (folder / "go").touch()
    following = shared(ranker, work(folder))
    assert_same(following, found)


def test_a_worker_ten_times_slower_than_the_other_does_a_tenth_and_keeps_nobody_waiting(ranker: Ranker, folder: Path) -> None:
    (folder / "slow-1").touch()
    found = shared(ranker, work(folder))  # the other is done, and so is the ranking: it waits for ten slices that never come
    (folder / "go").touch()
    assert not (folder / "slow-1").exists()
    assert_same(found, alone(workload_of(folder)))
    assert lost(found) == 0
    slow, other = sorted(worker["slices"] for worker in found.workers)
    assert slow <= NUM_SLICES // 10
    assert other >= NUM_SLICES - NUM_SLICES // 10


def test_where_every_worker_dies_until_it_is_given_up_an_attempt_ends_and_the_next_one_works(
    ranker: Ranker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "MOST_LOSSES", 1)  # each new process takes seconds
    (folder / "kill-always").touch()
    with pytest.raises(DeviceFailure, match="all workers were lost again and again, last worker"):
        shared(ranker, work(folder))
    (folder / "kill-always").unlink()
    assert_same(shared(ranker, work(folder)), alone(workload_of(folder)))


def test_what_is_wrong_with_a_checkpoint_is_said_as_on_one_device_and_costs_no_worker(ranker: Ranker, folder: Path) -> None:
    before = shared(ranker, work(folder))
    (folder / "fail-2").touch()
    with pytest.raises(CheckpointError, match="^it is wrong$"):
        shared(ranker, work(folder))
    after = shared(ranker, work(folder))
    assert_same(after, before)
    assert lost(after) == 0


def test_what_was_wrong_with_the_checkpoint_before_is_never_said_of_this_one(ranker: Ranker, folder: Path) -> None:
    (folder / "hang-1").touch()
    (folder / "fail-3").touch()
    with pytest.raises(CheckpointError):
        shared(ranker, work(folder))
    (folder / "fail-1").touch()
    (folder / "go").touch()
    wait_for(lambda: not (folder / "fail-1").exists())
    assert_same(shared(ranker, work(folder)), alone(workload_of(folder)))


@pytest.mark.parametrize("began", ["here", "there"])
def test_what_one_engine_began_the_other_finishes(
    ranker: Ranker, folder: Path, began: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_ranking, "SETTLE_S", LIMIT_S)
    workload, expected = work(folder), alone(workload_of(folder))
    for slices in (0, 1, NUM_SLICES // 2):
        with pytest.raises(Stopped):
            if began == "here":
                rank(workload, LocalEngine(slice_documents=SLICE), StopAfter(slices))
            else:
                shared(ranker, workload, StopAfter(slices))
        is_begun = workload.progress_file.exists()
        found = alone(workload) if began == "there" else shared(ranker, workload)
        assert_same(found, expected)
        assert (found.encoded_now < NUM_DOCUMENTS) == is_begun == (slices > 0)
        assert not workload.progress_file.exists()


def test_a_progress_file_that_lacks_nothing_is_enough(ranker: Ranker, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = work(folder)
    monkeypatch.setattr(Progress, "clear", lambda self: None)  # killed just before
    expected = rank(workload, LocalEngine(slice_documents=SLICE, save_every_s=0))
    found = shared(ranker, workload)
    assert_same(found, expected)
    assert found.encoded_now == SLICE
    assert found.contract["pooling"] == "sum"


def test_a_machine_that_does_not_see_the_folder_gets_the_files_and_keeps_nothing(
    ranker: Ranker, folder: Path, nodes: Nodes
) -> None:
    workload = work(folder)
    assert isinstance(workload.elsewhere, ByHandElsewhere)
    unseen = replace(workload, elsewhere=replace(workload.elsewhere, is_seen_elsewhere=False))
    (folder / "kill-2").touch()  # who comes after gets them, too
    assert_same(shared(ranker, unseen), alone(workload_of(folder)))
    wait_for(lambda: not list(nodes.folder.rglob("weights")))


def test_an_address_where_nobody_listens_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
    for address in (place, "127.0.0.1:99999", "ray://nowhere.invalid:10001"):
        with pytest.raises(SetupError, match=f"engine.address: nobody answers at {address} .*host:port"):
            RayEngine(address=address, workers=1).describe("cpu")


@pytest.mark.parametrize(
    ("engine", "device", "said"),
    [
        (RayEngine(), "cuda:1", "device: got 'cuda:1', but engine=ray gives each worker a device of its own"),
        (RayEngine(address="auto"), "auto", "device: got 'auto', but what is on the machines of engine.address=auto"),
    ],
)
def test_a_device_that_says_nothing_about_many_is_refused(engine: RayEngine, device: str, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        engine.find_device(device)
