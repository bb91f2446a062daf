"""The one connection to W&B that a source holds: bounded waits, pauses that the server asks for, errors that say what to do."""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dr_validate.errors import Outage, SetupError
from dr_validate.source.wandb_client.answers import host_of
from dr_validate.source.wandb_client.graphql import LOG_IN, GraphQL, first_error

RETRY_WAIT_S = 1.0  # before the one repetition of a question; a longer wait is the watcher's
PAGE = 100
NO_LONGER_LOGGED_IN = re.compile(r"permission|denied|unauthori[sz]ed|not found|relogin", re.IGNORECASE)
VIEWER = "query Viewer { viewer { entity } }"
log = logging.getLogger(__name__)


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

    def _open(self) -> GraphQL:
        with self._lock:
            if self._session is None:
                session = _connect()
                viewer = self._data(session, VIEWER, {}).get("viewer")
                if viewer is None:  # that is how some servers say 401
                    raise SetupError(f"W&B at {session.server} rejects the key; {LOG_IN}")
                self._default_entity = str(viewer.get("entity") or "")
                self._session = session
            return self._session

    def _data(self, session: GraphQL, query: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
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
                raise SetupError(f"W&B at {session.server}: {said}; check source.entity and source.project, or {LOG_IN}")
            raise Outage(f"W&B at {session.server} cannot be reached: {said}")
        data = answer.get("data")
        return data if isinstance(data, dict) else {}

    def _asked(self, session: GraphQL, query: str, variables: Mapping[str, Any], end: float) -> Mapping[str, Any]:
        now = time.monotonic()
        if (rest := self._quiet_until - now) > 0:
            raise Outage(f"W&B at {session.server} asked to wait, for {rest:.0f} s more", rest)
        try:
            return session.ask(query, variables, end - now)
        except Outage as error:
            self._quiet_until = max(self._quiet_until, time.monotonic() + error.retry_after_s)
            raise


def _connect() -> GraphQL:
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


def find_key() -> tuple[Any, Any]:
    """The SDK's settings, and what it finds in the environment or netrc. Raises SetupError where that is nothing, or no key."""
    try:
        import wandb
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth
    except ImportError as error:
        raise SetupError(f"source: wandb cannot be imported ({error}); pip install wandb, or set source=folder") from error
    settings = wandb_setup.singleton().settings.model_copy()
    try:
        auth = wbauth.authenticate_session(
            host=settings.base_url, source="dr_validate", no_offline=True, prompt=False, update_session=False
        )
    except (wandb.Error, ValueError) as error:  # its text may hold the key
        raise SetupError(f"the key for W&B at {_server()} is not of a form that keys have; {LOG_IN}") from error
    if auth is None:
        raise SetupError(f"there is no key for W&B at {_server()}; {LOG_IN}")
    return settings, auth


def _server() -> str:
    from wandb.sdk import wandb_setup

    return host_of(os.environ.get("WANDB_BASE_URL") or wandb_setup.singleton().settings.base_url)
