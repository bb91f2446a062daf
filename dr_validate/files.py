"""Atomic writes, digests, locks and room on the disk: what every part that touches the disk shares."""

import contextlib
import contextvars
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dr_validate.errors import SetupError

T = TypeVar("T")
CHUNK_BYTES = 1 << 20
FICLONE = 0x40049409  # ioctl of Linux: let two files share their blocks until one of them is written to
MOUNTS = Path("/proc/self/mounts")
NETWORK_DISKS = r"nfs\d?|lustre|gpfs|beegfs|ceph|cifs|smb\w*|afs|9p|fuse\.(sshfs|glusterfs|ceph\w*|beegfs|juicefs)"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
SHARD = re.compile(r"model-\d{1,9}-of-(\d{1,9})\.safetensors")
_check: contextvars.ContextVar[Callable[[], None] | None] = contextvars.ContextVar("check", default=None)


def expanded(path: str | Path) -> Path:
    """`path` with a leading `~` or `~user` resolved. Raises SetupError where nobody knows that home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SetupError(f"got {str(path)!r}, but the home that ~ stands for is not known; write the whole path") from None


def give_home(state_dir: Path) -> None:
    """Have libraries keep their caches under `state_dir`, or among temporary files, where the user has no home or none to
    write to (a container, a batch system). For this process and those that it starts."""
    if (own := _home()) is None:
        os.environ["HOME"] = str(_first_made(state_dir.absolute() / "home"))
        os.environ.setdefault("USER", f"uid{os.getuid()}")
    elif not is_writable(own):
        made = _first_made(state_dir.absolute() / "home")
        for name in ("CACHE", "CONFIG", "DATA"):  # but HOME stays: a netrc may be there to read
            os.environ.setdefault(f"XDG_{name}_HOME", str(made / name.lower()))


def cache_folder() -> Path:
    """Of this program among the user's caches, made; a temporary one where there can be none."""
    own = _home()
    home = os.environ.get("XDG_CACHE_HOME") or (own and own / ".cache")
    return _first_made(Path(home) / "dr_validate") if home else _first_made()


def is_writable(path: Path) -> bool:
    """Whether something can be put into the folder, or into the one in which it would be made."""
    place = next((place for place in (path, *path.parents) if place.exists()), Path("/"))
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # HOME is not set, and the user is in no list of users
        return None


def _first_made(*wanted: Path) -> Path:
    for folder in wanted:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    own = Path(tempfile.gettempdir()) / f"dr_validate-{os.getuid()}"
    with contextlib.suppress(OSError):
        own.mkdir(mode=0o700, exist_ok=True)
        if own.stat().st_uid == os.getuid():  # what others may write must not be loaded
            return own
    return Path(tempfile.mkdtemp(prefix="dr_validate-"))


@contextlib.contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Have `check` called between two chunks of whatever is hashed, copied or downloaded within the block; it may raise an
    Interrupted. Holds in this thread, and in those that run in a copy of its context."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def check_interrupt() -> None:
    """Raise what is to end the long work that the caller does; see `interruptible`."""
    if check := _check.get():
        check()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: readers see the old file or the new one, after a power loss too."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream that becomes `path` when the block ends without an error, and leaves nothing when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def beside(path: Path) -> Path:
    """A new name. What `tempfile` makes is for this user alone, whatever the umask, and would stay so under its final name."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def read_note(path: Path, parse: Callable[[Any], T], otherwise: T) -> T:
    """What `parse` makes of a JSON file that we wrote; `otherwise` where there is none, or a damaged one."""
    try:
        return parse(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError, AssertionError):
        return otherwise


def write_arrays(path: Path, **arrays: Any) -> None:
    """Replace `path` by arrays, by their names."""
    with atomic_file(path) as stream:
        np.savez(stream, **arrays)


def read_arrays(path: Path, *names: str) -> tuple[NDArray[Any], ...]:
    """Some of what `write_arrays` wrote. Raises OSError for a file that cannot be read, ValueError for a damaged one."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return tuple(file[name] for name in names)
    except (ValueError, KeyError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A fresh folder beside `path` that becomes `path` when the block ends without an error.

    If another process made `path` meanwhile, its folder stays and ours is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            shutil.rmtree(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


class Readable(Protocol):
    """What has bytes: a `Path`, for one."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]: ...


def name_of_digest(digest: str) -> str:
    """A digest (`algorithm:hex`) as the name of a file or folder."""
    name = digest.replace(":", "-")
    assert name and "/" not in name and not name.startswith("."), f"{digest!r} cannot name a file"
    return name


def digest_of_name(name: str) -> str:
    """The digest that `name_of_digest` made a name of."""
    return name.replace("-", ":", 1)


def sha256_of_file(path: Readable) -> str:
    """Hex SHA-256 of the content; `interruptible`."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            check_interrupt()
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_files(digests: Mapping[str, str]) -> str:
    """`sha256:hex` over relative paths and their hex digests, whatever the order: one digest for a folder."""
    lines = "".join(f"{name}\0{digests[name]}\n" for name in sorted(digests))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def two_sets_of_weights(names: Collection[str]) -> str | None:
    """What is wrong where files of these names in one folder are the whole weights of two models, in words, or None.

    A save over another leaves the older one's files where it does not write files of the same names, and nothing says which
    are the newer. Shards are whole where all are there that their names count, an adapter where its configuration is there.
    """
    sets = [[name] for name in ("model.safetensors",) if name in names]
    shards: dict[str, list[str]] = {}
    for match in filter(None, (SHARD.fullmatch(name) for name in sorted(names))):
        shards.setdefault(match[1], []).append(match[0])
    sets += [files for count, files in shards.items() if len(files) == int(count)]
    sets += [["adapter_model.safetensors"]] * ({"adapter_model.safetensors", "adapter_config.json"} <= set(names))
    if len(sets) < 2:
        return None
    listed = " and ".join(files[0] if len(files) == 1 else f"{files[0]} to {files[-1]}" for files in sets)
    return (
        f"two sets of weights: {listed}; which of them is the model is not guessed: delete the files of the older save (an "
        "index or adapter_config.json of it, too), and save into an empty folder"
    )


def copy_with_digest(source: Path, target: Path) -> str:
    """Copy the content of `source` to the new file `target` and return the hex SHA-256 of what was written; `interruptible`.

    Blocks are shared where the file system can (btrfs, XFS): then nothing is written, whatever the size. Never a hard link:
    nobody can tell whether `source` will be written in place later, and the copy would change with it.
    """
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("xb") as writer:
        with contextlib.suppress(OSError):
            fcntl.ioctl(writer, FICLONE, reader.fileno())
            return sha256_of_file(target)
        while chunk := reader.read(CHUNK_BYTES):
            check_interrupt()
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, blocking: bool = True, shared: bool = False) -> Iterator[IO[str]]:
    """Hold an advisory lock on `path` (created if missing); the kernel releases it when the holder dies, however it dies.

    Raises BlockingIOError when `blocking` is false and another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(stream, kind if blocking else kind | fcntl.LOCK_NB)
        yield stream


def check_room(needed: int, into: Path) -> None:
    """Raises OSError(ENOSPC) where `needed` bytes do not fit beside `into`: before half of them are written."""
    free = shutil.disk_usage(into).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{into.parent}: {needed:,} bytes needed, {free:,} free")


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk has no room left, for bytes or for files, or is too busy to answer: nobody's fault but the disk's.

    It may pass. A disk that cannot read (EIO) may never again: only the ledger, on which all else depends, waits for that.
    """
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)  # None: raised by Python
        return code is not None and code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EBUSY, errno.EAGAIN)


def is_read_only(error: BaseException) -> bool:
    """Whether the disk, or the file, can only be read: waiting does not help."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & 0xFF == sqlite3.SQLITE_READONLY
    return isinstance(error, OSError) and error.errno == errno.EROFS


def make_state_dir(state_dir: Path) -> None:
    """Make the folder that all is kept in. Raises SetupError where nothing can be written to it."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=state_dir) as probe:
            probe.write(b"x" * 4096)
    except OSError as error:
        raise SetupError(
            f"state_dir {state_dir}: cannot be written ({error.strerror}); set state_dir to a folder that can"
        ) from None


def network_disk(path: Path) -> str:
    """The kind of file system that `path` is on, where other machines have it as well (`nfs4`, `lustre`); else ""."""
    found: tuple[str, str] = ("", "")
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return ""
    for line in lines:
        place, kind = line.split()[1:3]
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place)
        if path.resolve().is_relative_to(place) and len(place) >= len(found[0]):
            found = place, kind
    return found[1] if re.fullmatch(NETWORK_DISKS, found[1]) else ""


def disk_words(error: BaseException, folder: Path) -> str:
    """What is missing where `is_disk_full`: bytes, files or a quota, in which folder. `folder`: if the error names none."""
    named = getattr(error, "filename", None)
    folder = Path(named).parent if isinstance(named, str) and named.startswith("/") else folder
    if isinstance(error, OSError) and error.errno == errno.EDQUOT:
        return f"your quota on the disk of {folder} is used up ({error}); free some"
    try:
        disk = os.statvfs(next(place for place in (folder, *folder.absolute().parents) if place.exists()))
    except OSError:
        return f"the disk of {folder} does not answer ({error})"
    free = f"{disk.f_bavail * disk.f_frsize:,} bytes free"
    if disk.f_files and not disk.f_favail:
        return f"no inodes left on the disk of {folder} (0 of {disk.f_files:,}, {free}): delete files there ({error})"
    if isinstance(error, OSError) and error.errno in NO_ROOM or "full" in str(error):
        return f"no space left on the disk of {folder} ({free}); free some ({error})"
    return f"the disk of {folder} is busy, or fails ({error}; {free})"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
