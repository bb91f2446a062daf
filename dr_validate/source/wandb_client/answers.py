"""What every HTTP answer may say, whoever asked: which server it was, how long to wait, and a body that may never end."""

import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dr_validate.files import check_interrupt

if TYPE_CHECKING:
    import requests


def host_of(url: str) -> str:
    """Scheme, host and port of a URL: what may be shown of one, without a user's name and password."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, however it says so; 0 where it does not."""
    said = headers.get("Retry-After", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def body_of(answer: "requests.Response", chunk_bytes: int) -> Iterator[bytes]:
    """Yield what has come when it comes, at most `chunk_bytes` at a time: `iter_content` waits until a chunk is full, for hours
    where a byte comes now and then, and nobody can look at the clock. `interruptible`.

    Raises requests.Timeout where nothing comes, requests.ConnectionError where the connection breaks.
    """
    import requests
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    read = getattr(answer.raw, "read1", answer.raw.read)  # urllib3 before 2.1 only has the one that waits
    try:
        while chunk := read(chunk_bytes, decode_content=True):
            check_interrupt()
            yield chunk
    except ReadTimeoutError as error:
        raise requests.Timeout(str(error)) from error
    except HTTPError as error:
        raise requests.ConnectionError(str(error)) from error
