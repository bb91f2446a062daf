"""The store of copies against other processes, killed fetches and full disks."""

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dr_validate.errors import CheckpointError, Outage
from dr_validate.store.checkpoints import CheckpointStore
from dr_validate.values import Checkpoint
from tests import warm

MIB = 2**20


def checkpoint(step: int) -> Checkpoint:
    digest, name = f"sha256:{step:04x}", f"checkpoint-{step}"
    return Checkpoint(name=name, version=name, digest=digest, step=step, step_from="x", created_at="x", uri="x")


def folder_of(root: Path, step: int) -> Path:
    return root / "checkpoints" / f"sha256-{step:04x}"


def fetcher(size: int = MIB) -> Callable[[Checkpoint, Path], None]:
    def fetch(one: Checkpoint, into: Path) -> None:
        (into / "part").mkdir()
        (into / "part" / "weights").write_bytes(bytes([one.step % 256]) * size)

    return fetch


def refuse(one: Checkpoint, into: Path) -> None:
    raise AssertionError("fetched again")


@contextlib.contextmanager
def another_process(root: Path, code: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs `code` with store, one, fetch and root at hand, says `ready` and stays."""
    head = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoints import checkpoint, fetcher
from dr_validate.store.checkpoints import CheckpointStore
store, one, fetch, root = CheckpointStore(), checkpoint(1), fetcher(), Path({str(root)!r})
def stay():
    print("ready", flush=True)
    time.sleep(600)
"""
    process = warm.popen([sys.executable, "-c", head + code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def age(root: Path, step: int, seconds: int) -> None:
    os.utime(folder_of(root, step), (1e9 - seconds, 1e9 - seconds))


def test_a_copy_is_fetched_once_and_kept(tmp_path: Path) -> None:
    store = CheckpointStore()
    assert not store.has(checkpoint(1).digest, tmp_path)
    store.take(checkpoint(1), fetcher(), tmp_path)
    with store.lease(checkpoint(1).digest, tmp_path) as folder:
        assert folder == folder_of(tmp_path, 1)
        assert (folder / "part" / "weights").stat().st_size == MIB
    store.take(checkpoint(1), refuse, tmp_path)
    assert store.has(checkpoint(1).digest, tmp_path) and store.digests(tmp_path) == {checkpoint(1).digest}


def test_a_failed_fetch_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    def broken(one: Checkpoint, into: Path) -> None:
        (into / "weights").write_bytes(b"half")
        raise CheckpointError("it was deleted")

    with pytest.raises(CheckpointError, match="it was deleted"):
        CheckpointStore().take(checkpoint(1), broken, tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {".locks"}


def test_copies_are_known_by_the_sources_that_have_the_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore()
    store.take(checkpoint(1), fetcher(), tmp_path, "a")
    store.take(checkpoint(2), fetcher(), tmp_path, "a")
    other = dataclasses.replace(checkpoint(1), name="final", version="final", step=9)
    store.take(other, refuse, tmp_path, "b")
    assert store.taken("a", tmp_path) == [checkpoint(1), checkpoint(2)]
    assert store.taken("b", tmp_path) == [other]
    assert store.taken("c", tmp_path) == []
    assert store.let_go("a", tmp_path) == []
    shutil.rmtree(folder_of(tmp_path, 1))
    assert store.taken("a", tmp_path) == [checkpoint(2)] and store.let_go("a", tmp_path) == [checkpoint(1)]


def test_a_kill_after_the_record_and_before_the_folder_has_its_name_leaves_no_copy(tmp_path: Path) -> None:
    stay = """
import dr_validate.files
dr_validate.files.Path.rename = lambda *_: stay()
store.take(one, fetch, root, "a")
"""
    with another_process(tmp_path, stay):
        pass
    store = CheckpointStore()
    assert (tmp_path / "checkpoints" / ".records" / "sha256-0001.json").exists()
    assert store.taken("a", tmp_path) == [] and not store.has(checkpoint(1).digest, tmp_path)
    store.take(checkpoint(1), fetcher(), tmp_path, "a")
    assert store.taken("a", tmp_path) == [checkpoint(1)]


@pytest.mark.parametrize("change", ["edited", "missing", "added"])
def test_a_copy_that_is_not_what_was_taken_is_removed_and_taken_again(tmp_path: Path, change: str) -> None:
    store = CheckpointStore()
    store.take(checkpoint(1), fetcher(), tmp_path)
    with store.lease(checkpoint(1).digest, tmp_path) as folder:
        weights = folder / "part" / "weights"
    if change == "edited":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    elif change == "missing":
        weights.unlink()
    else:
        (folder / "more").write_bytes(b"x")
    with pytest.raises(Outage, match="not what was copied"), store.lease(checkpoint(1).digest, tmp_path):
        pass
    assert not store.has(checkpoint(1).digest, tmp_path)
    store.take(checkpoint(1), fetcher(), tmp_path)
    with store.lease(checkpoint(1).digest, tmp_path) as folder:
        assert (folder / "part" / "weights").stat().st_size == MIB


def test_a_copy_without_a_record_is_fetched_again(tmp_path: Path) -> None:
    store = CheckpointStore()
    store.take(checkpoint(1), fetcher(), tmp_path, "a")
    (tmp_path / "checkpoints" / ".records" / "sha256-0001.json").write_text('{"files": {"half')
    (folder_of(tmp_path, 1) / "part" / "weights").write_bytes(b"damaged, and nobody could tell")
    assert store.taken("a", tmp_path) == []
    store.take(checkpoint(1), fetcher(), tmp_path, "a")
    assert store.taken("a", tmp_path) == [checkpoint(1)]
    with store.lease(checkpoint(1).digest, tmp_path) as folder:
        assert (folder / "part" / "weights").stat().st_size == MIB


def test_the_digest_of_the_weights_is_that_of_their_bytes(tmp_path: Path) -> None:
    def shards(one: Checkpoint, into: Path) -> None:
        for name in ("config.json", "a.safetensors", "b.safetensors")[: one.step + 1]:
            (into / name).write_bytes(name.encode())

    store = CheckpointStore()
    store.take(checkpoint(1), shards, tmp_path)
    store.take(checkpoint(2), shards, tmp_path)
    one_file = hashlib.sha256(b"a.safetensors").hexdigest()
    assert store.weights_sha256(checkpoint(1).digest, tmp_path) == one_file
    lines = "".join(f"{name}\0{hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("a.safetensors", "b.safetensors"))
    assert store.weights_sha256(checkpoint(2).digest, tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    assert store.weights_sha256("sha256:none", tmp_path) == ""


def test_the_copy_used_longest_ago_goes_first(tmp_path: Path) -> None:
    store = CheckpointStore(max_gib=2.5 / 1024)
    store.take(checkpoint(1), fetcher(), tmp_path)
    store.take(checkpoint(2), fetcher(), tmp_path)
    age(tmp_path, 1, 200)
    age(tmp_path, 2, 100)
    with store.lease(checkpoint(1).digest, tmp_path):  # used now: younger than 2
        pass
    assert store.make_room(MIB, [], [], tmp_path)
    assert [store.has(checkpoint(step).digest, tmp_path) for step in (1, 2)] == [True, False]


def test_what_comes_last_in_the_order_of_work_goes_last_but_before_what_is_to_be_kept(tmp_path: Path) -> None:
    store = CheckpointStore(max_gib=4.1 / 1024)
    for step in (1, 2, 3, 4):
        store.take(checkpoint(step), fetcher(), tmp_path)
        age(tmp_path, step, step)
    first, second, third, fourth = (checkpoint(step).digest for step in (1, 2, 3, 4))
    assert store.make_room(MIB, [first], [second, third], tmp_path)
    assert store.digests(tmp_path) == {first, second, third}  # 4 is nobody's
    assert store.make_room(2 * MIB, [first], [second, third], tmp_path)
    assert store.digests(tmp_path) == {first, second}
    assert not store.make_room(int(3.5 * MIB), [first], [second], tmp_path)
    assert store.digests(tmp_path) == {first, second}  # nothing is let go in vain
    assert store.make_room(10 * MIB, [], [first, second], tmp_path)  # larger than the limit: alone
    assert store.digests(tmp_path) == set()


def test_what_this_process_leases_stays(tmp_path: Path) -> None:
    store = CheckpointStore(max_gib=0.5 / 1024)
    store.take(checkpoint(1), fetcher(), tmp_path)
    with store.lease(checkpoint(1).digest, tmp_path):
        store.make_room(0, [], [], tmp_path)
        assert store.has(checkpoint(1).digest, tmp_path)
    store.make_room(0, [], [], tmp_path)
    assert not store.has(checkpoint(1).digest, tmp_path)


def test_the_lease_of_another_process_holds_until_it_dies(tmp_path: Path) -> None:
    store = CheckpointStore(max_gib=1e-9)
    with another_process(tmp_path, "store.take(one, fetch, root)\nwith store.lease(one.digest, root): stay()"):
        store.make_room(0, [], [], tmp_path)
        assert store.has(checkpoint(1).digest, tmp_path)
    store.make_room(0, [], [], tmp_path)
    assert not store.has(checkpoint(1).digest, tmp_path)


def test_leftovers_of_a_killed_fetch_are_removed_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    store = CheckpointStore()
    half = """
def slow(one, into):
    (into / "weights").write_bytes(b"half")
    stay()
store.take(one, slow, root)
"""
    with another_process(tmp_path, half):
        store.take(checkpoint(2), fetcher(), tmp_path)
        assert len(list((tmp_path / "checkpoints").glob(".sha256-0001.*"))) == 1
    store.take(checkpoint(3), fetcher(), tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".sha256-0001.*"))
    store.take(checkpoint(1), fetcher(), tmp_path)
    with store.lease(checkpoint(1).digest, tmp_path) as folder:
        assert (folder / "part" / "weights").stat().st_size == MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_names_folder_and_bytes_and_keeps_nothing_half_made(small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"bytes are free") as caught:
        CheckpointStore().take(checkpoint(1), fetcher(8 * MIB), small_disk)
    assert caught.value.errno == errno.ENOSPC
    assert str(small_disk / "checkpoints") in str(caught.value)
    assert "checkpoint-1" in str(caught.value)
    assert {path.name for path in (small_disk / "checkpoints").iterdir()} == {".locks"}
    CheckpointStore().take(checkpoint(1), fetcher(2 * MIB), small_disk)


def test_on_a_full_disk_copies_that_nobody_uses_make_room(small_disk: Path) -> None:
    store = CheckpointStore()
    store.take(checkpoint(1), fetcher(MIB), small_disk)
    store.take(checkpoint(2), fetcher(MIB), small_disk)
    with store.lease(checkpoint(2).digest, small_disk):
        store.take(checkpoint(3), fetcher(int(2.5 * MIB)), small_disk)
        assert [store.has(checkpoint(step).digest, small_disk) for step in (1, 2, 3)] == [False, True, True]


def test_an_evicted_copy_that_a_kill_left_half_removed_is_removed(tmp_path: Path) -> None:
    store = CheckpointStore()
    store.take(checkpoint(1), fetcher(), tmp_path)
    shutil.move(folder_of(tmp_path, 1), tmp_path / "checkpoints" / ".sha256-0001.evicted")
    store.take(checkpoint(2), fetcher(), tmp_path)
    store.make_room(0, [], [], tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {".locks", ".records", folder_of(tmp_path, 2).name}
