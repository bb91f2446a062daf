"""Files of data sets, and what is kept of them.

A file may be at a URL of fsspec (`s3://`, `gs://`, `https://` ...): read as a stream, never copied, never whole in memory.
SHA-256 of files are remembered by what is known without reading, so that 3 GB are not hashed at every start. What is converted
is in folders made once; one that was cut short, or whose files have another length now, is made again.
"""

import io
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from dr_validate.errors import DatasetError
from dr_validate.files import atomic_folder, expanded, locked, sha256_of_file, write_atomically

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
BUFFER_BYTES = 1 << 20
# What kinds of storage say of a file that changes when it is written, the first that one has.
TAGS = ("ETag", "etag", "md5Hash", "content_hash", "blob_id", "mtime", "LastModified", "last_modified", "modificationTime")


def is_url(place: object) -> bool:
    return isinstance(place, str) and "://" in place


def _place_from(value: Any) -> Any:
    if value == "":
        raise ValueError("an empty path; leave the key out, or give a path")
    if not is_url(value):
        return expanded(value) if isinstance(value, str) else value
    scheme, _, rest = value.partition("://")
    if "@" in rest.partition("/")[0] or (scheme in ("http", "https") and "?" in rest):
        raise ValueError(
            "a URL with a login or a key in it, which would be written down; give it in the environment, as the library of "
            f"{scheme}:// says"
        )
    return value


UserFiles = Annotated[Path | str, BeforeValidator(_place_from)]
"""A file, a folder of shards, or a pattern (`data/*.parquet`); a string is a URL, which may be any of these as well."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """What readers use of a `Path`, for a file at `url`."""

    url: str
    path: str  # as `system` calls it
    system: Any

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        """With its dot."""
        return PurePosixPath(self.path).suffix

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """Its bytes from the beginning. Raises OSError, here and while they are read."""
        try:
            return io.BufferedReader(_Stream(self.system.open(self.path, "rb")), BUFFER_BYTES)
        except Exception as error:  # each kind of storage has errors of its own
            raise _unreadable(error) from error

    def state(self) -> list[Any] | None:
        """Changes when the content does; None where the storage says nothing of the kind. Raises OSError."""
        try:
            self.system.invalidate_cache(self.path)
            info = self.system.info(self.path)
        except Exception as error:
            raise _unreadable(error) from error
        tag = next((info[name] for name in TAGS if info.get(name)), None)
        return None if tag is None else [info.get("size"), str(tag)]


File = Path | RemoteFile


class _Stream(io.RawIOBase):
    """The stream of any library, with the errors of Python's own."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        try:
            data = self._file.read(len(view))
        except Exception as error:
            raise _unreadable(error) from error
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def remote_files(url: str, endings: Sequence[str]) -> list[RemoteFile]:
    """What `url` names, by the names: a file, those that match it as a pattern, or those of a folder with one of `endings`.

    Raises DatasetError where its storage cannot be asked.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
        if system.isfile(path):
            found = [path]
        elif system.isdir(path):
            found = [one["name"] for one in system.ls(path, detail=True) if one["type"] == "file"]
            found = [name for name in found if name.endswith(tuple(endings)) and not _is_hidden(name)]
        else:
            matching = system.glob(path, detail=True).items()
            found = [name for name, one in matching if one["type"] == "file" and not _is_hidden(name)]
        return [RemoteFile(url=system.unstrip_protocol(name), path=name, system=system) for name in sorted(found)]
    except ImportError as error:
        raise DatasetError(f"{scheme}:// needs a package that is not installed ({error}); install it with pip") from error
    except Exception as error:
        raise DatasetError(f"{url} cannot be read ({_words(error)})") from error


def _is_hidden(path: str) -> bool:
    return PurePosixPath(path).name.startswith(".")


def _unreadable(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(_words(error))


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def digests_of(files: Sequence[File], cache: Path) -> list[str]:
    """Hex SHA-256 of each file, in order; the content is read only if path, size, time or inode (of a URL: its tag)
    differ from last time, and always of a URL without a tag.

    Raises DatasetError for a file that cannot be read or changes while it is.
    """
    memory = cache / "digests.json"
    with locked(cache / "digests.lock"):
        known = _load_digests(memory)
        changed = False
        for file in files:
            try:
                key, state = _key(file), _state(file)
                if state is not None and (known.get(key) or {}).get("state") == state:
                    continue
                known[key] = {"state": state, "sha256": sha256_of_file(file)}
                changed = True
                if _state(file) != state:
                    raise DatasetError(f"{file}: changed while it was read; start again when it is complete")
            except OSError as error:
                raise DatasetError(
                    f"{file}: cannot be read ({error.strerror or error}); check the path and its rights"
                ) from error
        if changed:
            write_atomically(memory, json.dumps(known, indent=1))
    return [str(known[_key(file)]["sha256"]) for file in files]


def _load_digests(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        log.warning("%s is damaged: files are hashed again", memory)
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: entry for key, entry in known.items() if isinstance(entry, dict) and isinstance(entry.get("sha256"), str)}


def _key(file: File) -> str:
    return str(file.resolve() if isinstance(file, Path) else file)


def _state(file: File) -> list[Any] | None:
    if not isinstance(file, Path):
        return file.state()
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def made_once(
    folder: Path, version: int, make: Callable[[Path], None], is_whole: Callable[[Path], bool] = lambda folder: True
) -> None:
    """Have `make` fill `folder` unless it is there, of this version and whole; processes that want the same one wait for each
    other.

    What `make` raises passes through, but an OSError (disk full) becomes a DatasetError; nothing is left behind then.
    """
    with locked(folder.with_name(f"{folder.name}.lock")):
        if is_sealed(folder, version) and is_whole(folder):
            return
        if folder.exists():
            log.warning("%s is incomplete or damaged: making it again", folder)
            shutil.rmtree(folder)
        for left_over in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: we hold the lock
            shutil.rmtree(left_over, ignore_errors=True)
        try:
            with atomic_folder(folder) as fresh:
                make(fresh)
                manifest = {"version": version, "sizes": _sizes(fresh)}
                (fresh / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        except OSError as error:
            raise DatasetError(
                f"{folder}: could not be made ({error}); free some space or set state_dir to another disk"
            ) from error


def is_sealed(folder: Path, version: int) -> bool:
    """Whether `folder` is there, of this version of its format, with the same files of the same sizes as when it was made."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return isinstance(manifest, dict) and manifest == {"version": version, "sizes": _sizes(folder)}
    except (OSError, ValueError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.name != MANIFEST}
