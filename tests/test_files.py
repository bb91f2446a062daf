"""What is written whole or not at all, and who may read it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dr_validate.errors import Stopped
from dr_validate.files import (
    atomic_file,
    atomic_folder,
    cache_folder,
    copy_with_digest,
    give_home,
    interruptible,
    read_arrays,
    sha256_of_file,
    write_arrays,
    write_atomically,
)


@pytest.fixture(params=[0o022, 0o007, 0o077], ids="umask {:03o}".format)
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_published_may_be_read_by_whom_the_umask_allows(tmp_path: Path, mask: int) -> None:
    write_atomically(tmp_path / "new" / "file", "text")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "inside").write_text("text")
    assert mode(tmp_path / "new" / "file") == mode(tmp_path / "folder" / "inside") == 0o666 & ~mask
    assert mode(tmp_path / "folder") == 0o777 & ~mask


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")

    def fail() -> None:
        with atomic_file(tmp_path / "file") as stream:
            stream.write(b"ne")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def environment_without_home(monkeypatch: pytest.MonkeyPatch, **more: str) -> dict[str, str]:
    """A process of a user who is in no list of users."""

    def nobody(number: int) -> None:
        raise KeyError(number)

    environment = {"PATH": os.environ["PATH"], **more}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    return environment


def test_who_has_no_home_gets_one_in_the_state_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = environment_without_home(monkeypatch)
    give_home(tmp_path / "state")
    assert Path.home() == tmp_path / "state" / "home"
    assert Path.home().is_dir()
    assert environment["USER"] == f"uid{os.getuid()}"


def test_a_home_that_cannot_be_written_stays_but_holds_no_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    home = str(tmp_path / "a-file" / "home")
    environment = environment_without_home(monkeypatch, HOME=home, XDG_DATA_HOME="/as/it/was")
    give_home(tmp_path / "state")
    assert environment["HOME"] == home
    assert environment["XDG_DATA_HOME"] == "/as/it/was"
    assert environment["XDG_CACHE_HOME"] == str(tmp_path / "state" / "home" / "cache")


def test_a_home_like_any_other_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = environment_without_home(monkeypatch, HOME=str(tmp_path / "made-later"))
    before = dict(environment)
    give_home(tmp_path / "state")
    assert environment == before
    assert not (tmp_path / "state").exists()
    assert cache_folder() == tmp_path / "made-later" / ".cache" / "dr_validate"


@pytest.mark.parametrize("taken", [False, True])
def test_caches_go_among_temporary_files_where_nothing_else_can_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken: bool
) -> None:
    environment_without_home(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = tmp_path / f"dr_validate-{os.getuid()}"
    if taken:
        own.touch()
    folder = cache_folder()
    assert folder.is_dir()
    assert folder.parent == tmp_path
    assert (folder == own) is not taken
    (tmp_path / "a-file").touch()
    give_home(tmp_path / "a-file" / "state")
    assert Path.home().parent == tmp_path


def test_hashing_and_copying_ask_between_two_chunks_whether_to_go_on(tmp_path: Path) -> None:
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise Stopped("enough")

    (tmp_path / "file").write_bytes(bytes((3 << 20) + 1))
    digest = sha256_of_file(tmp_path / "file")
    works: list[Callable[[], str]] = [
        lambda: sha256_of_file(tmp_path / "file"),
        lambda: copy_with_digest(tmp_path / "file", tmp_path / "copy"),
    ]
    for work in works:
        asked.clear()
        with pytest.raises(Stopped), interruptible(check):
            work()
        assert len(asked) == 2
    assert copy_with_digest(tmp_path / "file", tmp_path / "whole") == digest and len(asked) == 2


def test_arrays_are_read_by_their_names_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "arrays.npz"
    write_arrays(path, ranks=np.arange(1000), step=7)
    step, ranks = read_arrays(path, "step", "ranks")
    assert (int(step), ranks.tolist()) == (7, list(range(1000)))
    content = path.read_bytes()
    np.savez_compressed(path, ranks=np.arange(1000))
    squeezed = bytearray(path.read_bytes())
    squeezed[len(squeezed) // 2] ^= 0xFF
    for damaged in (b"", b"text", content[:500], content.replace(b"ranks", b"ranges"), bytes(squeezed)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"arrays\.npz is damaged"):
            read_arrays(path, "ranks")
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "other.npz", "ranks")
