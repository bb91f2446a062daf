"""What every HTTP answer may say, whoever asked: which server it was, and how long to wait before the next question."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit


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
