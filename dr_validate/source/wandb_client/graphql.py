"""GraphQL questions over HTTP with the key that the SDK found.

Not through the SDK's own process: what that hands back of a 429 has no Retry-After, and it asks again when the caller does.
"""

import json
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dr_validate.errors import Outage, SetupError
from dr_validate.source.wandb_client.answers import body_of, host_of, retry_after_s

if TYPE_CHECKING:
    import requests

CONNECT_TIMEOUT_S = 4.0
CHUNK_BYTES = 1 << 16
MAX_ANSWER_BYTES = 64 << 20
LOG_IN = "run `wandb login`, or set WANDB_API_KEY (and WANDB_BASE_URL for a server of your own)"


class Credentials(Protocol):
    """What `ServiceApi` of the SDK has of them."""

    @property
    def base_url(self) -> str: ...
    @property
    def api_key(self) -> str | None: ...
    def access_token(self, timeout: float | None = None) -> str | None: ...


class GraphQL:
    """Safe from several threads, each with a kept connection of its own. `headers` and `proxies` as the SDK's settings say."""

    def __init__(
        self, credentials: Credentials, headers: Mapping[str, str], proxies: Mapping[str, str], *, check_tls: bool = True
    ) -> None:
        self._credentials, self._headers, self._proxies, self._check_tls = credentials, dict(headers), dict(proxies), check_tls
        self._local = threading.local()
        self.server = host_of(credentials.base_url)

    def ask(self, query: str, variables: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """The parsed answer. Raises SetupError for what the user must change, Outage (`retry_after_s`) for what may pass."""
        import requests

        end = time.monotonic() + timeout_s
        try:
            with self._session().post(
                f"{self._credentials.base_url.rstrip('/')}/graphql",
                json={"query": query, "variables": dict(variables)},
                headers=self._authorization(timeout_s),
                timeout=(min(CONNECT_TIMEOUT_S, timeout_s), timeout_s),
                allow_redirects=False,
                stream=True,  # a body that trickles must not outlast the time
            ) as answer:
                body = self._body(answer, end)
                return self._judged(answer, body)
        except requests.Timeout as error:
            raise self._unreachable(f"no answer within {timeout_s:.3g} s") from error
        except requests.RequestException as error:
            raise self._unreachable(f"the connection failed ({type(error).__name__})") from error

    def _body(self, answer: "requests.Response", end: float) -> bytes:
        body = bytearray()
        for chunk in body_of(answer, CHUNK_BYTES):
            body += chunk
            if time.monotonic() > end or len(body) > MAX_ANSWER_BYTES:
                raise self._unreachable(f"its answer does not end ({len(body):,} bytes so far)")
        return bytes(body)

    def _judged(self, answer: "requests.Response", body: bytes) -> Mapping[str, Any]:
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            parsed = None
        content = parsed if isinstance(parsed, dict) else {}
        if answer.status_code == 200 and (content.get("data") is not None or content.get("errors")):
            return content
        raise self._problem(answer, first_error(content) or answer.reason or "no reason given")

    def _problem(self, answer: "requests.Response", said: str) -> SetupError | Outage:
        status = answer.status_code
        if status == 401:
            return SetupError(f"W&B at {self.server} rejects the key; {LOG_IN}")
        if status == 403:
            return SetupError(
                f"W&B at {self.server} lets this key not in ({said}); use a key that may read the project: {LOG_IN}"
            )
        if (wait := retry_after_s(answer.headers)) > 0:
            return Outage(f"W&B at {self.server} asks to wait {wait:.0f} s (HTTP {status}: {said})", wait)
        if 300 <= status < 500 and status not in (408, 409, 429):
            return SetupError(f"W&B at {self.server} does not understand us (HTTP {status}: {said}); is WANDB_BASE_URL right?")
        return self._unreachable(f"HTTP {status}: {said}")

    def _unreachable(self, why: str) -> Outage:
        return Outage(f"W&B at {self.server} cannot be reached: {why}")

    def _authorization(self, timeout_s: float) -> dict[str, str]:
        """A token that may have been renewed; empty where the session has the key."""
        if self._credentials.api_key:
            return {}
        token = self._credentials.access_token(timeout=timeout_s)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _session(self) -> "requests.Session":
        import requests
        from requests.auth import HTTPBasicAuth

        if not hasattr(self._local, "session"):
            session = self._local.session = requests.Session()
            key = self._credentials.api_key
            session.auth = HTTPBasicAuth("api", key) if key else lambda request: request  # none: not one from ~/.netrc either
            session.headers.update(self._headers)
            session.proxies.update(self._proxies)
            session.verify = self._check_tls
        found: requests.Session = self._local.session
        return found


def first_error(content: Mapping[str, Any]) -> str:
    """What an answer says went wrong, in one line; empty where nothing did."""
    errors = content.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    said = first.get("message") if isinstance(first, dict) else first
    return str(said or content.get("error") or "").strip().split("\n")[0][:300]
