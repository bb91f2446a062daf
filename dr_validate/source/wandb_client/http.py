"""Files from where W&B keeps them: with a limit on silence, a least rate, and every digest verified.

The SDK's own download has no read timeout, never looks at a digest, and keeps a copy in a cache that grows.
"""

import base64
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_validate.errors import CheckpointDeleted, CheckpointError, Outage
from dr_validate.source.wandb_client.api import body_of, host_of, retry_after_s
from dr_validate.source.wandb_client.versions import ManifestEntry

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 4.0
LEAST_BYTES_PER_S = 10_000  # 400 MB in eleven hours: whoever sends less is not going to end
TRIES = 3
PAUSES_S = (0.3, 1.0)  # between tries
MAX_PAUSE_S = 5.0  # what a server may ask us to wait here; a longer wait is the watcher's
REFUSED = (400, 401, 403)  # what stores answer to a URL that has expired
NOT_THERE = (404, 410)
MAX_MANIFEST_BYTES = 64 << 20
log = logging.getLogger(__name__)


class FileOutage(Outage):
    """Of what keeps the files: one file may be out of reach while the API and the other files are not."""


class _Expired(Exception):
    """The URL is not good any more; another one may be."""


class _Damaged(Exception):
    """Other bytes than the manifest promises came."""


class _TooSlow(Exception):
    """The bytes come, but so slowly that they would come for ever."""


class Downloads:
    """GETs over kept connections, each thread its own. Silence of `timeout_s` ends one with an Outage, and so does less than
    LEAST_BYTES_PER_S in as much time; a small file takes at most `total_s`. `interruptible`."""

    def __init__(self, timeout_s: float, total_s: float = float("inf")) -> None:
        self._timeouts_s, self._total_s = (min(CONNECT_TIMEOUT_S, timeout_s), timeout_s), total_s
        self._local = threading.local()

    def content(self, fresh_url: Callable[[], str]) -> bytes:
        """A small file, whole. Raises as `file` does."""

        def get(url: str) -> bytes:
            found, end = bytearray(), time.monotonic() + self._total_s
            for chunk in self._chunks(url):
                found += chunk
                if len(found) > MAX_MANIFEST_BYTES:
                    raise CheckpointError(f"its manifest has more than {MAX_MANIFEST_BYTES >> 20} MiB")
                if time.monotonic() > end:
                    raise _TooSlow(f"{len(found):,} bytes in {self._total_s:g} s, and not all")
            return bytes(found)

        content: bytes = self._tried(get, fresh_url, "its manifest")
        return content

    def file(self, entry: ManifestEntry, fresh_url: Callable[[], str], into: Path) -> None:
        """Bring `entry` to its path under `into`, a folder of the caller's own.

        Raises CheckpointDeleted where the store has it no more, CheckpointError where its bytes are not those of the
        manifest time and again, Outage where the server does not answer, OSError where the disk is full.
        """
        target = into / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        sha256 = self._tried(lambda url: self._write(url, entry, target), fresh_url, entry.path)
        log.debug("fetched %s: %d bytes in %.1f s, sha256 %s", entry.path, entry.size, time.monotonic() - started, sha256)

    def _tried(self, get: Callable[[str], Any], fresh_url: Callable[[], str], name: str) -> Any:
        import requests

        problem: Exception = FileOutage(f"{name} was never asked for")
        for attempt in range(TRIES):
            if attempt:
                time.sleep(max(PAUSES_S[attempt - 1], getattr(problem, "retry_after_s", 0.0)))
            url = fresh_url()
            try:
                return get(url)
            except _Damaged as error:
                problem = CheckpointError(f"{name}: bytes differ from the manifest, {TRIES} times ({error}); log it again")
                log.warning("%s: %s; fetching it again", name, error)
            except _Expired as error:
                problem = FileOutage(f"{host_of(url)} refuses every URL that W&B gives for {name} ({error})")
            except Outage as error:
                if error.retry_after_s > MAX_PAUSE_S:
                    raise
                problem = error
            except _TooSlow as error:
                raise FileOutage(f"{host_of(url)} is too slow: of {name} it sent {error}") from error
            except requests.Timeout as error:
                raise FileOutage(f"{host_of(url)} sent nothing of {name} for {self._timeouts_s[1]:g} s") from error
            except requests.RequestException as error:
                problem = FileOutage(f"{host_of(url)}: the connection broke while {name} came ({type(error).__name__})")
        raise problem

    def _write(self, url: str, entry: ManifestEntry, target: Path) -> str:
        """Hex SHA-256 of what was written."""
        checked, sha256, size = _hasher(entry), hashlib.sha256(), 0
        with target.open("wb") as stream:
            for chunk in self._chunks(url):
                size += len(chunk)
                if size > entry.size:
                    raise _Damaged(f"more than the {entry.size:,} bytes of the manifest")
                checked.update(chunk)
                sha256.update(chunk)
                stream.write(chunk)
        if size != entry.size:
            raise _Damaged(f"{size:,} of {entry.size:,} bytes")
        # What a reference calls a digest is whatever its server calls an ETag.
        if not entry.reference and base64.b64encode(checked.digest()).decode() != entry.digest:
            raise _Damaged(f"another {entry.algorithm} than {entry.digest}")
        return sha256.hexdigest()

    def _chunks(self, url: str) -> Iterator[bytes]:
        # stream: what comes is checked as it comes; no redirect leads to another scheme than http(s).
        with self._session().get(url, stream=True, timeout=self._timeouts_s) as answer:
            _check_status(answer)
            num_bytes, waited_s, asked = 0, 0.0, time.monotonic()
            for chunk in body_of(answer, CHUNK_BYTES):
                num_bytes, waited_s = num_bytes + len(chunk), waited_s + time.monotonic() - asked
                if waited_s > self._timeouts_s[1]:
                    if num_bytes < LEAST_BYTES_PER_S * waited_s:
                        raise _TooSlow(f"{num_bytes:,} bytes in {waited_s:.0f} s, less than {LEAST_BYTES_PER_S:,} a second")
                    num_bytes, waited_s = 0, 0.0
                yield chunk
                asked = time.monotonic()  # the time that the disk takes is not the server's

    def _session(self) -> "requests.Session":
        import requests

        if not hasattr(self._local, "session"):

            class Session(requests.Session):
                def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
                    """A redirect gets none from ~/.netrc either."""

            self._local.session = Session()
            self._local.session.auth = lambda request: request  # a signed URL needs no key: not even one from ~/.netrc
            self._local.session.headers["Accept-Encoding"] = "identity"
        session: requests.Session = self._local.session
        return session


def _check_status(answer: "requests.Response") -> None:
    status, host = answer.status_code, host_of(answer.url)
    if status in NOT_THERE:
        raise CheckpointDeleted(
            f"{host} has its files no more (HTTP {status}): deleted, expired or archived before they could be fetched"
        )
    if status in REFUSED:
        raise _Expired(f"HTTP {status}")
    if status != 200:
        raise FileOutage(f"{host} answers HTTP {status}", retry_after_s(answer.headers))


def _hasher(entry: ManifestEntry) -> Any:
    if entry.algorithm == "xxh128":
        import xxhash

        return xxhash.xxh128()
    return hashlib.md5(usedforsecurity=False)
