"""What a W&B source keeps while it lives: one connection, what is known of versions, and what was found to be gone."""

import contextvars
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dr_validate.errors import CheckpointDeleted
from dr_validate.source.wandb_client.api import WandbApi
from dr_validate.source.wandb_client.http import Downloads, FileOutage
from dr_validate.source.wandb_client.manifest import Contents, Entry, has_digest, read_manifest
from dr_validate.source.wandb_client.project import Origin, Project, run_names
from dr_validate.source.wandb_client.versions import Facts, Remembered, Version

T = TypeVar("T")
WORKERS = 8  # questions at a time about versions not seen before
MANIFEST_TRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a version holds and where it comes from; `is_verified` if it has the digest that W&B names."""

    origin: Origin
    contents: Contents
    is_verified: bool


class Connection:
    """Safe from several threads: one lists while another fetches ahead."""

    def __init__(self, *, timeout_s: float, api_timeout_s: float) -> None:
        self.api = WandbApi(api_timeout_s)
        self.refused: dict[str, str] = {}  # by opaque id: what a version did while it was listed, which is not asked for again
        self.put_off: dict[
            str, tuple[str, float]
        ] = {}  # by opaque id: why a manifest did not come, when to ask again (monotonic)
        self._times_gone: dict[str, int] = {}
        self._downloads = Downloads(timeout_s)
        self._manifests = Downloads(min(timeout_s, api_timeout_s), total_s=timeout_s)
        self._remembered = Remembered()
        self._names_of_run = run_names(self.api)

    def note_gone(self, uri: str) -> None:
        """The files of a version were not there."""
        self._times_gone[uri] = self._times_gone.get(uri, 0) + 1

    def is_gone(self, uri: str) -> bool:
        """Whether to list it no more, though W&B does. Once is not enough: a fetch ahead of its turn is reported to nobody."""
        return self._times_gone.get(uri, 0) > 1

    def each(self, look: Callable[[Version], T], versions: Iterable[Version]) -> "list[T]":
        """Answers of `look`, several at a time. Raises what it raises first, and looks at no more then.

        Not by an executor: the end of the process waits for its threads, whatever server they wait for.
        """
        answers: dict[int, T] = {}
        errors: list[BaseException] = []  # a dead server is asked no more than WORKERS times
        lock, left = threading.Lock(), enumerate(versions)

        def work() -> None:
            while not errors:
                with lock:
                    place, version = next(left, (-1, None))
                if version is None:
                    return
                try:
                    answers[place] = look(version)
                except BaseException as error:
                    errors.append(error)

        contexts = [contextvars.copy_context() for _ in range(WORKERS)]
        threads = [threading.Thread(target=context.run, args=(work,), name="versions", daemon=True) for context in contexts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [answers[place] for place in sorted(answers)]

    def facts(self, project: Project, version: Version, folder: Path) -> Facts | None:
        """What is not known is asked for and remembered in `folder`; None for a version deleted meanwhile. Raises Outage."""
        if known := self._remembered.get(folder, version):
            return known
        try:
            facts, is_certain = self._ask(project, version)
        except CheckpointDeleted:
            return None
        if is_certain:
            self._remembered.put(folder, version, facts)
        return facts

    def manifest(self, project: Project, opaque_id: str) -> "Manifest":
        """Where a version comes from and what is in it. Raises CheckpointDeleted, Outage."""
        origin = project.origin(opaque_id)
        unused = [origin.manifest_url]

        def fresh_url() -> str:
            return unused.pop() if unused else project.origin(opaque_id).manifest_url

        seen: list[bytes] = []
        for _ in range(MANIFEST_TRIES):
            content = self._manifests.content(fresh_url)
            document = _parsed(content)
            is_verified = has_digest(document, origin.digest)
            # The manifest of a version that several processes logged together has another digest, and always the same bytes.
            if is_verified or content in seen:
                return Manifest(origin=origin, contents=read_manifest(document), is_verified=is_verified)
            seen.append(content)
        raise FileOutage(f"the manifest of a version comes damaged, each time in another way ({len(seen)} times)")

    def bring(self, project: Project, version: tuple[str, str], files: Sequence[Entry], into: Path) -> None:
        """Files of (collection, vN) to their paths under `into`. Raises what Downloads.file raises."""
        held = [entry.path for entry in files if not entry.reference]
        urls = project.file_urls(*version, held) if held else {}
        for entry in files:
            self._downloads.file(entry, self._url_giver(project, version, entry, urls), into)

    def _url_giver(self, project: Project, version: tuple[str, str], entry: Entry, urls: dict[str, str]) -> Callable[[], str]:
        """Each URL of `urls` once, then one asked for anew: an expired one is of no use twice."""

        def fresh_url() -> str:
            if entry.reference:
                return entry.reference
            url = urls.pop(entry.path, "") or project.file_urls(*version, [entry.path]).get(entry.path, "")
            if not url:
                raise CheckpointDeleted(f"W&B has no URL for {entry.path}: its content was deleted")
            return url

        return fresh_url

    def _ask(self, project: Project, version: Version) -> tuple[Facts, bool]:
        """And whether they may be remembered: what makes a version unusable must not be damage on the way."""
        found = self.manifest(project, version.opaque_id)
        logged_by = found.origin.logged_by
        training_run, group = self._names_of_run(logged_by) if logged_by else ("", "")
        return Facts.of(found.contents, training_run, group), found.is_verified or not found.contents.lacks


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
