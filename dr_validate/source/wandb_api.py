"""The one connection to W&B that a source holds: the SDK's own, with bounded waits and errors that say what to do."""

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dr_validate.errors import Outage, SetupError

if TYPE_CHECKING:
    from wandb.apis.public.service_api import ServiceApi

RETRIES = 1
RETRY_WAIT_S = 1
PAGE = 100
NO_LONGER_LOGGED_IN = re.compile(r"permission|denied|unauthori[sz]ed|not found|relogin", re.IGNORECASE)
log = logging.getLogger(__name__)


class WandbApi:
    """Opened by the first question; safe from several threads. Each question takes `timeout_s` at most, retries included.

    Raises SetupError for what the user must change (key, project, server), Outage for what may pass.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._session: ServiceApi | None = None
        self._default_entity = ""

    @property
    def default_entity(self) -> str:
        """The entity that the key belongs to. Raises as every question does."""
        self._open()
        return self._default_entity

    @property
    def server(self) -> str:
        """Scheme, host and port of the server that is asked."""
        return host_of(self._open().base_url)

    def ask(self, query: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """The `data` of the answer to a GraphQL query."""
        session = self._open()
        data = self._call(session, lambda: session.execute_graphql(query, variables))
        return data if isinstance(data, dict) else {}

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

    def _open(self) -> "ServiceApi":
        with self._lock:
            if self._session is None:
                session = self._connect()
                self._default_entity = str(self._call(session, session.authenticate).default_entity)
                self._session = session
            return self._session

    def _connect(self) -> "ServiceApi":
        import wandb
        from wandb.apis.public.service_api import ServiceApi
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        settings = wandb_setup.singleton().settings.model_copy()
        try:
            auth = wbauth.authenticate_session(
                host=settings.base_url, source="dr_validate", no_offline=True, prompt=False, update_session=False
            )
        except (wandb.Error, ValueError) as error:  # its text may hold the key
            raise SetupError(f"the key for W&B at {_server()} is not of a form that keys have; {LOG_IN}") from error
        if auth is None:
            raise SetupError(f"there is no key for W&B at {_server()}; {LOG_IN}")
        wbauth.set_auth_settings(settings, auth)
        # The settings are our own copy: a tracker in this process keeps its patience.
        settings.x_graphql_retry_max = RETRIES
        settings.x_graphql_retry_wait_min_seconds = settings.x_graphql_retry_wait_max_seconds = RETRY_WAIT_S
        settings.x_graphql_timeout_seconds = self._timeout_s
        return ServiceApi(settings=settings, timeout=self._timeout_s)

    def _call(self, session: "ServiceApi", question: Any) -> Any:
        import wandb
        from wandb.sdk.lib.asyncio_manager import AlreadyJoinedError, ForkedError, RunCancelledError
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError
        from wandb.sdk.lib.service.service_token import WandbServiceConnectionError

        died = (AlreadyJoinedError, ForkedError, RunCancelledError, WandbServiceConnectionError, OSError, wandb.Error)
        try:
            return question()
        except WandbApiFailedError as error:
            if "service process is not running" in str(error):
                self._forget(session)
            raise _translated(error) from error
        except died as error:  # the SDK's own process ended: the next question starts another
            self._forget(session)
            raise Outage(f"the W&B SDK's own process ended ({type(error).__name__})") from error

    def _forget(self, session: "ServiceApi") -> None:
        if self._session is session:
            self._session = None


LOG_IN = "run `wandb login`, or set WANDB_API_KEY (and WANDB_BASE_URL for a server of your own)"


def _server() -> str:
    """Without a user's name and password."""
    from wandb.sdk import wandb_setup

    return host_of(os.environ.get("WANDB_BASE_URL") or wandb_setup.singleton().settings.base_url)


def host_of(url: str) -> str:
    """Scheme, host and port of a URL: what may be shown of one."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


def _translated(error: Any) -> SetupError | Outage:
    """By HTTP status where there was an answer; else by the words of it."""
    status = error.response.http_status if error.response is not None else 0
    said = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if status == 401:
        return SetupError(f"W&B at {_server()} rejects the key; {LOG_IN}")
    if status == 403:
        return SetupError(f"W&B at {_server()} lets this key not in ({said}); use a key that may read the project: {LOG_IN}")
    if 400 <= status < 500 and status not in (408, 409, 429):
        return SetupError(f"W&B at {_server()} does not understand us (HTTP {status}: {said}); is WANDB_BASE_URL right?")
    unanswered = "giving up" in said or "service process" in said
    if not status and not unanswered and NO_LONGER_LOGGED_IN.search(said):
        return SetupError(f"W&B at {_server()}: {said}; check source.entity and source.project, or {LOG_IN}")
    return Outage(f"W&B at {_server()} cannot be reached: {said}")
