"""What is written whole or not at all, and who may read it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dr_validate.files import atomic_file, atomic_folder, write_atomically


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
