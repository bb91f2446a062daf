"""Files at URLs of fsspec (`s3://`, `gs://`, `https://` ...), read as a stream: never copied to disk, never whole in memory."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from dr_validate.errors import DatasetError
from dr_validate.files import expanded

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES = 1 << 20
# What kinds of storage say of a file that changes with its content, the first that one has.
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
