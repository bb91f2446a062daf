"""The one connection to W&B that a source holds: bounded waits, pauses that the server asks for, errors that say what to do.

GraphQL questions over HTTP with the key that the SDK found. Not through the SDK's own process: what that hands back of a 429
has no Retry-After, and it asks again when the caller does. Below, what every HTTP answer may say, whoever asked.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from dr_validate.errors import WANDB_LOG_IN, Outage, SetupError
from dr_validate.files import check_interrupt

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)
RETRY_WAIT_S = 1.0  # before the one repetition of a question; a longer wait is the watcher's
PAGE = 100
NO_LONGER_LOGGED_IN = re.compile(r"permission|denied|unauthori[sz]ed|not found|relogin", re.IGNORECASE)
VIEWER = "query Viewer { viewer { entity } }"
CONNECT_TIMEOUT_S = 4.0
CHUNK_BYTES = 1 << 16
MAX_ANSWER_BYTES = 64 << 20


class WandbApi:
    """Opened by the first question; safe from several threads. Each question takes `timeout_s` at most, retries included.

    Raises SetupError for what the user must change (key, project, server), Outage for what may pass. Where the server asked
    to wait longer than a retry does, nobody asks it anything before that time is over: every question is an Outage until then.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._session: GraphQL | None = None
        self._default_entity = ""
        self._quiet_until = 0.0  # monotonic seconds

    @property
    def default_entity(self) -> str:
        """The entity that the key belongs to. Raises as every question does."""
        self._open()
        return self._default_entity

    @property
    def server(self) -> str:
        """Scheme, host and port of the server that is asked."""
        return self._open().server

    def ask(self, query: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """The `data` of the answer to a GraphQL query."""
        return self._data(self._open(), query, variables)

    def pages(self, query: str, variables: Mapping[str, Any], *path: str) -> Iterator[Mapping[str, Any]]:
        """Edges of the connection at `path` of the answers, page by page. Raises LookupError where something there is null."""
        cursor = None
        while True:
            place: Any = self.ask(query, {**variables, "cursor": cursor, "perPage": PAGE})
            for name in path:
                place = place.get(name)
                if place is None:
                    raise LookupError(name)
            yield from place["edges"]
            if not place["pageInfo"]["hasNextPage"]:
                return
            cursor = place["pageInfo"]["endCursor"]

    def _open(self) -> "GraphQL":
        with self._lock:
            if self._session is None:
                session = _connect()
                viewer = self._data(session, VIEWER, {}).get("viewer")
                if viewer is None:  # that is how some servers say 401
                    raise SetupError(f"W&B at {session.server} rejects the key; {WANDB_LOG_IN}")
                self._default_entity = str(viewer.get("entity") or "")
                self._session = session
            return self._session

    def _data(self, session: "GraphQL", query: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Asked at most twice."""
        end = time.monotonic() + self._timeout_s
        try:
            answer = self._asked(session, query, variables, end)
        except Outage as error:
            pause = max(RETRY_WAIT_S, error.retry_after_s)
            if pause > RETRY_WAIT_S or time.monotonic() + pause >= end:
                raise
            time.sleep(pause)
            answer = self._asked(session, query, variables, end)
        if said := first_error(answer):
            if NO_LONGER_LOGGED_IN.search(said):
                raise SetupError(f"W&B at {session.server}: {said}; check source.entity and source.project, or {WANDB_LOG_IN}")
            raise Outage(f"W&B at {session.server} cannot be reached: {said}")
        data = answer.get("data")
        return data if isinstance(data, dict) else {}

    def _asked(self, session: "GraphQL", query: str, variables: Mapping[str, Any], end: float) -> Mapping[str, Any]:
        now = time.monotonic()
        if (rest := self._quiet_until - now) > 0:
            raise Outage(f"W&B at {session.server} asked to wait, for {rest:.0f} s more", rest)
        try:
            return session.ask(query, variables, end - now)
        except Outage as error:
            self._quiet_until = max(self._quiet_until, time.monotonic() + error.retry_after_s)
            raise


def find_key() -> tuple[Any, Any]:
    """The SDK's settings, and what it finds in the environment or netrc. Raises SetupError where that is nothing, or no key."""
    try:
        import wandb
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth
    except ImportError as error:
        raise SetupError(f"source: wandb cannot be imported ({error}); pip install wandb, or set source=folder") from error
    settings = wandb_setup.singleton().settings.model_copy()
    server = host_of(settings.base_url)
    try:
        auth = wbauth.authenticate_session(
            host=settings.base_url, source="dr_validate", no_offline=True, prompt=False, update_session=False
        )
    except (wandb.Error, ValueError) as error:  # its text may hold the key
        raise SetupError(f"the key for W&B at {server} is not of a form that keys have; {WANDB_LOG_IN}") from error
    if auth is None:
        raise SetupError(f"there is no key for W&B at {server}; {WANDB_LOG_IN}")
    return settings, auth


def _connect() -> "GraphQL":
    """With the settings and the key that the SDK finds; nothing is asked yet."""
    from wandb.apis.public.service_api import ServiceApi
    from wandb.sdk.lib import wbauth

    settings, auth = find_key()
    wbauth.set_auth_settings(settings, auth)
    proxies = {"http": settings.http_proxy, "https": settings.https_proxy, **(settings.x_proxies or {})}
    return GraphQL(
        ServiceApi(settings=settings),
        settings.x_extra_http_headers or {},
        {scheme: url for scheme, url in proxies.items() if url},
        check_tls=not settings.insecure_disable_ssl,
    )


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
                return self._parsed(answer, body)
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

    def _parsed(self, answer: "requests.Response", body: bytes) -> Mapping[str, Any]:
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
            return SetupError(f"W&B at {self.server} rejects the key; {WANDB_LOG_IN}")
        if status == 403:
            return SetupError(
                f"W&B at {self.server} lets this key not in ({said}); use a key that may read the project: {WANDB_LOG_IN}"
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
