"""Kept vectors against killed writers, damaged files, full disks, other processes and the limit."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.store.checkpoints import CheckpointStore
from dr_validate.store.embeddings import KeptVectors, RangeLocks
from dr_validate.store.vector_file import VectorFile
from dr_validate.values import Float32, Int64, Side
from tests import warm
from tests.processes import LIMIT_S, wait_for

pytestmark = pytest.mark.slow  # vectors come as torch's tensors
COUNTS: dict[Side, int] = {"query": 50, "document": 5000}
DIM = 6
GIB_OF = 1 / 2**30
TERMS = {"encoder": {"pooling": "mean"}, "test_set": "abc"}


def truth(ordinals: Int64) -> Float32:
    """The vectors that the only right model makes."""
    return np.sin(np.outer(ordinals + 1, np.arange(1, DIM + 1))).astype(np.float32)


class Encoding:
    """An `encode` for these ordinals that remembers what it was asked for."""

    def __init__(self, ordinals: Int64) -> None:
        self.ordinals = ordinals
        self.asked: list[int] = []

    def __call__(self, positions: Int64) -> Float32:
        self.asked += self.ordinals[positions].tolist()
        return truth(self.ordinals[positions])


def opened(root: Path, digest: str = "sha256:01", store: CheckpointStore | None = None) -> Any:
    return (store or CheckpointStore()).vectors(digest, TERMS, COUNTS, root)


def asked_for(vectors: Any, ordinals: Int64, side: Side = "document") -> list[int]:
    """Which of these had to be encoded; the answer is right in any case."""
    encoding = Encoding(ordinals)
    np.testing.assert_array_equal(vectors.get(side, ordinals, encoding), truth(ordinals))
    if isinstance(vectors, KeptVectors):
        vectors.settle()
    return encoding.asked


def folders(root: Path) -> list[str]:
    return sorted(path.name[:9] for path in (root / "embeddings").glob("[!.]*"))


def test_each_vector_is_made_once_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    some, more = np.arange(0, 3000, 3), np.arange(0, 3000, 2)
    with opened(tmp_path) as vectors:
        assert asked_for(vectors, some) == some.tolist()
        assert asked_for(vectors, some) == []
    with opened(tmp_path) as vectors:
        assert asked_for(vectors, more) == np.setdiff1d(more, some).tolist()
        assert asked_for(vectors, np.array([7])) == [7]
    with opened(tmp_path) as vectors:
        assert asked_for(vectors, np.union1d(some, more)) == []


def test_sides_checkpoints_and_contracts_do_not_share_vectors(tmp_path: Path) -> None:
    ordinals = np.arange(10)
    with opened(tmp_path) as vectors:
        asked_for(vectors, ordinals)
        assert asked_for(vectors, ordinals, "query") == ordinals.tolist()
    for digest, terms in (("sha256:02", TERMS), ("sha256:01", {**TERMS, "test_set": "abd"})):
        with CheckpointStore().vectors(digest, terms, COUNTS, tmp_path) as others:
            assert asked_for(others, ordinals) == ordinals.tolist()


def test_the_contract_is_read_once(tmp_path: Path) -> None:
    def unread() -> dict[str, Any]:
        raise AssertionError("read again")

    with opened(tmp_path) as vectors:
        assert vectors.contract(lambda: {"pooling": "cls"}) == {"pooling": "cls"}
        assert vectors.contract(unread) == {"pooling": "cls"}
    (path,) = tmp_path.rglob("contract.json")
    path.write_text("{")
    with opened(tmp_path) as vectors:
        assert vectors.contract(lambda: {"pooling": "cls"}) == {"pooling": "cls"}


@pytest.mark.parametrize("name", ["document.records", "document.vectors"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_wherever_a_file_ends_or_is_damaged_no_vector_is_wrong(tmp_path: Path, name: str, damage: str) -> None:
    ordinals, others = np.array([3, 5, 6, 40]), np.setdiff1d(np.arange(64), [3, 5, 6, 40])
    file = VectorFile(tmp_path / "document", 50, "float32")
    file.append(ordinals[:2], truth(ordinals[:2]))
    file.append(ordinals[2:], truth(ordinals[2:]))
    file.close()
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    lost = set()
    for place in range(len(whole[tmp_path / name])):
        for path, content in whole.items():
            path.write_bytes(content)
        broken = bytearray(whole[tmp_path / name])
        broken[place] ^= 0x10
        (tmp_path / name).write_bytes(broken[:place] if damage == "cut" else broken)
        with opened_folder(tmp_path) as vectors:
            assert asked_for(vectors, others) == others.tolist()  # nothing is taken for another's vector
            asked = asked_for(vectors, ordinals)
            assert asked, f"byte {place} plays no part"
            lost.add(len(asked))
            assert asked_for(vectors, ordinals) == []
        with opened_folder(tmp_path) as vectors:
            assert asked_for(vectors, ordinals) == []
    assert lost == ({1, 2, 3, 4} if damage == "cut" else {1, 4} if name == "document.records" else {1})


class opened_folder:
    """Vectors in a folder of our own, with no limit."""

    def __init__(self, folder: Path) -> None:
        self.vectors = KeptVectors(folder, COUNTS, dtype="float32", take=lambda size: True)

    def __enter__(self) -> KeptVectors:
        return self.vectors

    def __exit__(self, *exc_info: object) -> None:
        self.vectors.close()


def test_files_that_another_process_had_to_begin_anew_are_read_anew(tmp_path: Path) -> None:
    with opened_folder(tmp_path) as vectors:
        asked_for(vectors, np.arange(100))
        assert asked_for(vectors, np.arange(100)) == []
        os.truncate(tmp_path / "document.records", 7)
        with opened_folder(tmp_path) as others:
            asked_for(others, np.arange(200, 210))
        assert asked_for(vectors, np.arange(190, 220)) == [*range(190, 200), *range(210, 220)]
        assert asked_for(vectors, np.arange(100)) == list(range(100))


def test_a_damaged_vector_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ordinals = np.arange(2000)
    with opened(tmp_path) as vectors:
        asked_for(vectors, ordinals)
    (path,) = tmp_path.rglob("document.vectors")
    content = bytearray(path.read_bytes())
    content[5 * DIM * 4] ^= 1
    path.write_bytes(content)
    with opened(tmp_path) as vectors:
        assert asked_for(vectors, ordinals) == [5]
    assert "1 vectors in" in caplog.text


PROCESS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from pathlib import Path
from test_embeddings import Encoding, opened
root, log = Path(sys.argv[1]), Path(sys.argv[2])
ordinals = np.random.default_rng(int(sys.argv[3])).choice(5000, 2500, replace=False)
print("ready", flush=True)
sys.stdin.readline()
with opened(root) as vectors:
    for part in np.array_split(np.sort(ordinals), 100):
        encoding = Encoding(part)
        vectors.get("document", part, encoding)
        with log.open("a") as stream:
            stream.write("".join(f"{{n}}\\n" for n in encoding.asked))
        print("kept", flush=True)
"""


def start(root: Path, log: Path, seed: int, *more: str, script: str = PROCESS) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, str(root), str(log), str(seed), *more]
    process = warm.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert line_of(process) == "ready"
    return process


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def lines_of(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()]


def kept_in(root: Path) -> list[int]:
    """Documents whose vectors are kept, each of them right."""
    every = np.arange(COUNTS["document"])
    with opened(root) as vectors:
        found = vectors.look("document", every)
    if found.mask.any():
        np.testing.assert_array_equal(found.vectors, truth(every[found.mask]))
    return [int(ordinal) for ordinal in every[found.mask]]


STUCK = """
import os
whole, left = os.pwrite, int(sys.argv[4])

def torn(handle, content, offset):
    global left
    left -= 1
    if left == 0:
        whole(handle, content[: len(content) // 2], offset)
        open(sys.argv[2] + ".stuck", "w").close()
        threading.Event().wait()
    return whole(handle, content, offset)

os.pwrite = torn
"""


@pytest.mark.parametrize("writes", [2, 3, 4, 5, 8, 9])
def test_a_process_killed_in_the_middle_of_writing_behind_leaves_only_vectors_that_are_right(
    tmp_path: Path, writes: int
) -> None:
    log = tmp_path / "log"
    script = PROCESS.replace("import sys\n", f"import sys, threading\n{STUCK}", 1)
    process = start(tmp_path, log, 3, str(writes), script=script)
    go(process)
    wait_for(lambda: (tmp_path / "log.stuck").exists() or process.poll() is not None)
    wait_for(lambda: log.is_file() and len(lines_of(log)) >= 25 * (writes // 2))  # the encoding goes on meanwhile
    process.kill()
    process.communicate()
    made, kept = lines_of(log), kept_in(tmp_path)
    assert set(kept) <= set(np.random.default_rng(3).choice(5000, 2500, replace=False).tolist())
    whole = (writes - 2) // 2 * 25  # the header, then vectors and records of each slice
    assert whole <= len(kept) < whole + 25
    assert len(made) >= len(kept)
    with opened(tmp_path) as vectors:
        every = np.arange(COUNTS["document"])
        assert set(asked_for(vectors, every)) == set(every.tolist()) - set(kept)
        assert asked_for(vectors, every) == []


def test_processes_side_by_side_encode_nothing_twice_nor_what_a_killed_one_had_kept(tmp_path: Path) -> None:
    victim = start(tmp_path, tmp_path / "victim", 7)
    logs = [tmp_path / f"log-{n}" for n in range(3)]
    processes = [start(tmp_path, log, seed % 2) for seed, log in enumerate(logs)]  # two of them want the same documents
    go(victim)
    assert [line_of(victim) for _ in range(10)] == ["kept"] * 10
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    made, kept = lines_of(tmp_path / "victim"), kept_in(tmp_path)
    assert set(kept) <= set(made) and len(made) - len(kept) <= 4 * 25  # two slices are written behind; two more were begun
    for process in processes:
        go(process)
    for process in processes:
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0
    encoded = [n for log in logs for n in lines_of(log)]
    assert len(set(encoded)) == len(encoded)
    assert not set(encoded) & set(kept)
    wanted = np.union1d(*(np.random.default_rng(seed).choice(5000, 2500, replace=False) for seed in (0, 1)))
    assert set(encoded) <= set(wanted.tolist())
    with opened(tmp_path) as vectors:
        assert asked_for(vectors, wanted) == []


def test_a_claim_excludes_others_and_is_waited_for(tmp_path: Path) -> None:
    here, there = RangeLocks(tmp_path / "claims"), RangeLocks(tmp_path / "claims")
    assert here.take(np.array([1, 2, 5000])).tolist() == [True, True, True]
    assert here.take(np.array([3, 4])).tolist() == [True, True]  # in the range of the first
    assert there.take(np.array([1, 3000, 5000])).tolist() == [False, True, False]
    there.release(np.array([3000]))
    waiting = threading.Thread(target=there.wait, args=(np.array([1, 3000]),))
    waiting.start()
    here.release(np.array([1, 2, 5000]))
    waiting.join(0.2)
    assert waiting.is_alive()
    assert there.take(np.array([1, 5000])).tolist() == [False, True]
    here.release(np.array([3, 4]))
    waiting.join(LIMIT_S)
    assert not waiting.is_alive()
    assert there.take(np.array([1])).tolist() == [True]
    here.close()
    there.close()


@pytest.mark.parametrize("fails", [False, True])
def test_what_another_encodes_now_is_waited_for_and_made_here_only_if_that_fails(tmp_path: Path, fails: bool) -> None:
    ordinals, begun, go_on = np.arange(0, 5000, 7), threading.Event(), threading.Event()

    def slow(positions: Int64) -> Float32:
        begun.set()
        assert go_on.wait(LIMIT_S)
        if fails:
            raise RuntimeError("the device is gone")
        return truth(ordinals[positions])

    def first() -> None:
        with opened(tmp_path) as vectors:
            try:
                vectors.get("document", ordinals, slow)
            except RuntimeError:
                assert fails

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(LIMIT_S)
    encoding = Encoding(ordinals)
    other = threading.Thread(target=lambda: gets(tmp_path, ordinals, encoding))
    other.start()
    go_on.set()
    thread.join(LIMIT_S)
    other.join(LIMIT_S)
    assert not other.is_alive()
    assert sorted(encoding.asked) == (ordinals.tolist() if fails else [])  # what the first let go of last comes last


def gets(root: Path, ordinals: Int64, encoding: Encoding) -> None:
    with opened(root) as vectors:
        np.testing.assert_array_equal(vectors.get("document", ordinals, encoding), truth(ordinals))


def bytes_for(number: int) -> float:
    """GiB of that many vectors with their records, contract and header."""
    return (number * (DIM * 4 + 8) + 200) * GIB_OF


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    store = CheckpointStore(embeddings_max_gib=bytes_for(2500))
    ordinals = np.arange(1000)
    for number in (1, 2):
        with opened(tmp_path, f"sha256:{number:02}", store) as vectors:
            asked_for(vectors, ordinals)
    for number in (2, 1):
        (folder,) = (tmp_path / "embeddings").glob(f"sha256-{number:02}*")
        os.utime(folder, (1e9 - number, 1e9 - number))
    with opened(tmp_path, "sha256:02", store) as vectors:  # used now: younger than 1
        assert asked_for(vectors, ordinals) == []
    with opened(tmp_path, "sha256:03", store) as vectors:
        asked_for(vectors, ordinals)
    assert folders(tmp_path) == ["sha256-02", "sha256-03"]


def test_vectors_in_use_stay_and_where_there_is_no_room_work_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(embeddings_max_gib=bytes_for(1500))
    ordinals = np.arange(1000)
    with opened(tmp_path, "sha256:01", store) as first, opened(tmp_path, "sha256:02", store) as second:
        asked_for(first, ordinals)
        assert asked_for(first, ordinals) == []  # it is written
        assert asked_for(second, ordinals) == ordinals.tolist()
        assert asked_for(second, ordinals) == ordinals.tolist()
        assert asked_for(first, ordinals) == []
    assert caplog.text.count("no room for more vectors") == 1
    with opened(tmp_path, "sha256:02", store) as second:  # the first is in use no longer
        asked_for(second, ordinals)
    assert folders(tmp_path) == ["sha256-02"]


def test_the_size_stays_under_the_limit(tmp_path: Path) -> None:
    store = CheckpointStore(embeddings_max_gib=bytes_for(1500))
    with opened(tmp_path, "sha256:01", store) as vectors:
        for part in np.array_split(np.arange(5000), 50):
            asked_for(vectors, part)
    size = sum(path.stat().st_size for path in (tmp_path / "embeddings").rglob("*") if path.is_file())
    assert 0.9 * bytes_for(1500) < size * GIB_OF <= bytes_for(1500)
    assert store.describe_vectors(tmp_path).startswith("0.00 GiB for 1 checkpoint, at most")


def test_zero_keeps_nothing_and_removes_what_was_kept(tmp_path: Path) -> None:
    ordinals = np.arange(1000)
    with opened(tmp_path) as vectors:
        asked_for(vectors, ordinals)
    nothing = CheckpointStore(embeddings_max_gib=0)
    with opened(tmp_path, store=nothing) as vectors:
        assert asked_for(vectors, ordinals) == ordinals.tolist()
        assert asked_for(vectors, ordinals) == ordinals.tolist()
        assert vectors.contract(lambda: {"pooling": "cls"}) == {"pooling": "cls"}
    assert folders(tmp_path) == []


def test_without_a_folder_to_write_to_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "embeddings").write_text("in the way")
    with opened(tmp_path) as vectors:
        assert asked_for(vectors, np.arange(5)) == [0, 1, 2, 3, 4]
    assert "vectors are not kept" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_is_left_some_room(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(small_disk) as vectors:
        for part in np.array_split(np.arange(5000), 20):
            asked_for(vectors, part)  # 160 kB
        asked_for(vectors, np.arange(50), "query")
    assert "no room" not in caplog.text
    (small_disk / "other").write_bytes(b"x" * 60_000)
    with opened(small_disk, "sha256:02") as vectors:
        asked_for(vectors, np.arange(1500))  # the vectors of the first make room for it
    assert folders(small_disk) == ["sha256-02"]
    stat = os.statvfs(small_disk)
    assert stat.f_bavail * stat.f_frsize > 0.05 * 256 * 1024


def test_a_full_disk_costs_one_warning_and_nothing_that_was_kept(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept, more = np.arange(100), np.arange(200, 4200)
    with opened_folder(small_disk) as vectors:
        asked_for(vectors, kept)
        stat = os.statvfs(small_disk)
        (small_disk / "other").write_bytes(b"x" * (stat.f_bavail * stat.f_frsize))
        for _ in range(2):
            assert asked_for(vectors, more) == more.tolist()
        assert asked_for(vectors, kept) == []
    (record,) = caplog.records
    assert "vectors are no longer kept" in record.getMessage()
    assert "No space left" in record.getMessage()
    (small_disk / "other").unlink()
    with opened_folder(small_disk) as vectors:
        assert asked_for(vectors, np.concatenate([kept, more])) == more.tolist()
        assert asked_for(vectors, more) == []


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("document.vectors"))


def test_float16_halves_the_size_of_what_it_holds_exactly_and_refuses_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store, ordinals = CheckpointStore(embeddings_dtype="float16"), np.arange(1000)
    exact = truth(ordinals).astype(np.float16).astype(np.float32)
    with opened(tmp_path, "sha256:01", store) as vectors:
        for _ in range(2):  # what is being written is waited for when it is asked for again
            vectors.get("document", ordinals, lambda positions: exact[positions])
        assert size_of(tmp_path) == 1000 * DIM * 2
        assert not caplog.records
        asked_for(vectors, np.arange(1000, 1010))
    assert "10 vectors for" in caplog.text
    with opened(tmp_path, "sha256:01", store) as vectors:
        assert asked_for(vectors, np.arange(1000, 1010)) == list(range(1000, 1010))
        np.testing.assert_array_equal(vectors.get("document", ordinals, Encoding(ordinals)), exact)
    with opened(tmp_path, "sha256:02", store) as vectors:
        asked_for(vectors, ordinals)
        assert asked_for(vectors, ordinals) == []
        assert "kept in float32" in caplog.text
    assert size_of(tmp_path) == 1000 * DIM * (2 + 4)


def test_vectors_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    ordinals, broken = np.arange(10), truth(np.arange(10))
    broken[3, 2], broken[7, 0] = np.nan, np.inf
    with opened(tmp_path) as vectors:
        vectors.get("document", ordinals, lambda positions: broken[positions])
    with opened(tmp_path) as vectors:
        assert asked_for(vectors, ordinals) == [3, 7]


@pytest.mark.parametrize(("room_for", "kept"), [(6100, 5000), (5900, 0)])
def test_a_baseline_evicts_nothing_and_begins_nothing_that_has_no_room_in_the_end(
    tmp_path: Path, room_for: int, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    store, sample = CheckpointStore(embeddings_max_gib=bytes_for(room_for) + 400 * GIB_OF), np.arange(0, 5000, 5)
    with opened(tmp_path, "sha256:01", store) as vectors:
        asked_for(vectors, sample)
    with store.vectors("sha256:02", TERMS, COUNTS, tmp_path, baseline=True) as vectors:
        for part in np.array_split(np.arange(5000), 10):
            assert asked_for(vectors, part) == part.tolist()
    assert caplog.text.count("no room for more vectors") == (kept == 0)
    with opened(tmp_path, "sha256:01", CheckpointStore()) as vectors:
        assert asked_for(vectors, sample) == []
    with opened(tmp_path, "sha256:02", CheckpointStore()) as vectors:
        assert len(asked_for(vectors, np.arange(5000))) == 5000 - kept


def test_a_baseline_needs_room_only_for_what_its_sample_has_not(tmp_path: Path) -> None:
    store, sample = CheckpointStore(embeddings_max_gib=bytes_for(5100) + 400 * GIB_OF), np.arange(0, 5000, 5)
    with opened(tmp_path, "sha256:01", store) as vectors:
        asked_for(vectors, sample)
    with store.vectors("sha256:01", TERMS, COUNTS, tmp_path, baseline=True) as vectors:
        asked_for(vectors, np.arange(5000))
        assert asked_for(vectors, np.arange(5000)) == []


def test_what_was_looked_up_ahead_is_not_read_again_and_what_is_being_written_is_not_made_again(tmp_path: Path) -> None:
    ordinals = np.arange(100)
    with opened(tmp_path) as vectors:
        before = vectors.look("document", ordinals)
        assert not before.mask.any()
        asked_for(vectors, ordinals[:50])
        encoding = Encoding(ordinals)
        found = vectors.get("document", ordinals, encoding, "cpu", before)
        np.testing.assert_array_equal(found, truth(ordinals))
        assert encoding.asked == list(range(50, 100))
