"""What a W&B source keeps while it lives: one connection, what is known of versions, and what was found to be gone."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_validate.errors import Gone, Outage
from dr_validate.source.wandb_api import WandbApi
from dr_validate.source.wandb_http import Downloads
from dr_validate.source.wandb_manifest import Contents, Entry, has_digest, read_manifest
from dr_validate.source.wandb_project import Origin, Project, run_names
from dr_validate.source.wandb_versions import Facts, Remembered, Version

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
        self._times_gone: dict[str, int] = {}
        self._downloads = Downloads(timeout_s)
        self._manifests = Downloads(min(timeout_s, api_timeout_s))
        self._remembered = Remembered()
        self._names_of_run = run_names(self.api)

    def note_gone(self, uri: str) -> None:
        """The files of a version were not there."""
        self._times_gone[uri] = self._times_gone.get(uri, 0) + 1

    def is_gone(self, uri: str) -> bool:
        """Whether to list it no more, though W&B does. Once is not enough: a fetch ahead of its turn is reported to nobody."""
        return self._times_gone.get(uri, 0) > 1

    def facts(self, project: Project, versions: Sequence[Version], folder: Path) -> Mapping[str, Facts]:
        """By opaque id; what is not known is asked for and remembered in `folder`. A version deleted meanwhile is left out.

        Raises Outage after remembering what did come.
        """

        known = {version.opaque_id: self._remembered.get(folder, version) for version in versions}
        found = {opaque_id: facts for opaque_id, facts in known.items() if facts is not None}

        def learn(version: Version) -> tuple[str, Facts] | None:
            try:
                facts, is_certain = self._ask(project, version)
            except Gone:
                return None
            if is_certain:
                self._remembered.put(folder, version, facts)
            return version.opaque_id, facts

        with ThreadPoolExecutor(WORKERS, thread_name_prefix="wandb-versions") as pool:
            try:
                learned = [one for one in pool.map(learn, [v for v in versions if v.opaque_id not in found]) if one]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # a dead server is asked no more than WORKERS times
                raise
        return found | dict(learned)

    def manifest(self, project: Project, opaque_id: str) -> "Manifest":
        """Where a version comes from and what is in it. Raises Gone, Outage."""
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
        raise Outage(f"the manifest of a version comes damaged, each time in another way ({len(seen)} times)")

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
                raise Gone(f"W&B has no URL for {entry.path}: its content was deleted")
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
