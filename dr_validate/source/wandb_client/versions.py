"""Versions of artifacts: how they are listed, what their manifests say before a byte of their files is fetched, and what is
remembered of them, since a committed version never changes."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from dr_validate.files import sha256_of_files, two_sets_of_weights, write_atomically
from dr_validate.source.completeness import MAX_STEP, TOWER_FOLDERS, lacks_a_tower, names_a_step, only_pickles, wanted

FORMAT = 3  # to be raised when a verdict on the same manifest changes, in words, too
STEP_KEYS = ("train/global_step", "global_step", "step")
STEP_ALIAS = re.compile(r"checkpoint_global_step_(\d{1,15})")
MAX_FILES = 10_000
MAX_REPORTED = 3
MAX_SHOWN = 100  # characters of a reference
USE_INSTEAD = "use a checkpoint_global_step_N version"
NO_CONFIG = (
    f"config.json is not there: a bare state dict, as a plain save_model() leaves it; {USE_INSTEAD}, or, if these are the "
    "weights of a module of your own, set encoder.config, encoder.tokenizer and encoder.weights_prefix"
)
Algorithm = Literal["md5", "xxh128"]
ALGORITHMS: Mapping[str, Algorithm] = {"MD5": "md5", "XXH128": "xxh128"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One committed version as a listing shows it; `number` is the N of its `vN`, `unreadable` the fault of its metadata."""

    opaque_id: str
    collection: str
    number: int
    created_at: str
    aliases: Sequence[str]
    tags: Sequence[str]
    metadata: Mapping[str, Any]
    unreadable: str = ""

    @property
    def name(self) -> str:
        return f"{self.collection}:v{self.number}"

    @property
    def step(self) -> tuple[int, str]:
        """The training step, and where that was read.

        The Trainer's alias says when it saved. Its metadata say when it last logged, which may be long before; of several
        aliases (the same files logged again) they tell which is meant where they name one of them, else it is the largest.
        """
        logged, named = self.logged_step, self.named_steps
        if named:
            return (logged[0] if logged and logged[0] in named else max(named)), "alias checkpoint_global_step_N"
        return logged or (self.number, "version number")

    @property
    def named_steps(self) -> list[int]:
        """The N of its aliases `checkpoint_global_step_N`."""
        return [int(match[1]) for match in map(STEP_ALIAS.fullmatch, self.aliases) if match]

    @property
    def logged_step(self) -> tuple[int, str] | None:
        """What its metadata say, and under which key."""
        for key in STEP_KEYS:
            value = self.metadata.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_STEP and value == int(value):
                return int(value), f"metadata {key}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """One file of a version: `digest` is base64 of `algorithm`, or whatever the place of a reference calls one."""

    path: str
    size: int
    digest: str
    algorithm: Algorithm
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What encoding needs of a version, by path; `lacks` says why it can never be used, and is empty if it can
    (NO_CONFIG: with a config.json from elsewhere it can)."""

    files: tuple[ManifestEntry, ...]
    lacks: str = ""

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    @property
    def references(self) -> tuple[str, ...]:
        """Of the files that W&B itself does not hold the first of each scheme (s3, https, ...), to be shown."""
        found: dict[str, str] = {}
        for entry in self.files:
            if entry.reference:
                found.setdefault(scheme_of(entry.reference), _without_login(entry.reference))
        return tuple(found.values())

    @property
    def digest(self) -> str:
        """The same for the same wanted files, whatever else the version holds."""
        digests = {entry.path: entry.digest for entry in self.files}
        return f"manifest:{sha256_of_files(digests).partition(':')[2]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What had to be asked for one version: its verdict, and the run that logged it (id, and group or name)."""

    digest: str
    lacks: str
    num_bytes: int
    references: Sequence[str]
    training_run: str
    group: str


def version_of(node: Mapping[str, Any], collection: str, number: int) -> Version:
    """From an artifact node of the API."""
    metadata, unreadable = None, ""
    try:
        metadata = json.loads(node.get("metadata") or "{}")
    except (ValueError, RecursionError) as error:
        unreadable = f"its metadata cannot be read as JSON ({error})"
    return Version(
        opaque_id=str(node["id"]),
        collection=collection,
        number=number,
        created_at=_utc(str(node["createdAt"])),
        aliases=tuple(part["alias"] for part in node.get("aliases") or [] if _is_own(part, collection)),
        tags=tuple(tag["name"] for tag in node.get("tags") or []),
        metadata=metadata if isinstance(metadata, dict) else {},
        unreadable=unreadable,
    )


def _is_own(alias: Mapping[str, Any], collection: str) -> bool:
    """Not one that the version has in a registry that it is linked to."""
    home = alias.get("artifactCollection") or {}
    return home.get("name") in (None, collection)


def _utc(created_at: str) -> str:
    """W&B leaves the zone out at times; it is always UTC."""
    return created_at if created_at.endswith("Z") or "+" in created_at else f"{created_at}Z"


class Remembered:
    """Facts by version under `<state_dir>/wandb_versions/<project>/`, one small file each; read once in a process."""

    def __init__(self) -> None:
        self._known: dict[Path, Facts] = {}

    def get(self, folder: Path, version: Version) -> Facts | None:
        path = _place(folder, version)
        if path not in self._known:
            try:
                content = json.loads(path.read_bytes())
                if content["format"] != FORMAT:
                    return None
                self._known[path] = Facts(**content["facts"])
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                return None  # a damaged memory costs one more look at the manifest
        return self._known[path]

    def put(self, folder: Path, version: Version, facts: Facts) -> None:
        path = _place(folder, version)
        write_atomically(path, json.dumps({"format": FORMAT, "version": version.name, "facts": asdict(facts)}))
        self._known[path] = facts


def folder_of(state_dir: Path, server: str, entity: str, project: str) -> Path:
    """Where the facts of one project are kept."""
    return state_dir / "wandb_versions" / hashlib.sha256(f"{server}\0{entity}\0{project}".encode()).hexdigest()[:16]


def _place(folder: Path, version: Version) -> Path:
    # Not by its name: a collection may be deleted, and made again under the same one.
    return folder / f"{hashlib.sha256(version.opaque_id.encode()).hexdigest()[:32]}.json"


class BadManifest(ValueError):
    """A manifest that does not say what a manifest must, or names what must not be written; in words for a user."""


def read_manifest(document: Any) -> Contents:
    """Judge a manifest as W&B stores it (parsed JSON), from its names alone; never raises for what a stranger wrote."""
    try:
        entries = _entries(document)
        for path in entries:
            _check_path(path)
        found = tuple(_entry(path, entries[path]) for path in wanted(entries, _module_folders(entries)))
    except BadManifest as error:
        return Contents(files=(), lacks=str(error))
    return Contents(files=found, lacks=_what_is_missing({entry.path for entry in found}, entries) or "")


def has_digest(document: Any, digest: str) -> bool:
    """Whether `digest` (hex, of a version) is that of this manifest (parsed JSON), as the SDK computes it when it logs one."""
    import xxhash

    contents = document.get("contents") if isinstance(document, dict) else None
    if not isinstance(contents, dict):
        return False
    given = ((path, entry.get("digest") if isinstance(entry, dict) else None) for path, entry in sorted(contents.items()))
    lines = "".join(["wandb-artifact-manifest-v1\n", *(f"{path}:{one}\n" for path, one in given)]).encode()
    return digest in (hashlib.md5(lines, usedforsecurity=False).hexdigest(), xxhash.xxh128(lines).hexdigest())


def _check_path(path: str) -> None:
    """Raises BadManifest for a path that could be written outside the folder that it is meant for."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise BadManifest(f"its manifest names {path!r}, which is no path inside a folder: refused")


def _entries(document: Any) -> Mapping[str, Any]:
    entries = document.get("contents") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise BadManifest("its manifest has no contents")
    if len(entries) > MAX_FILES:
        raise BadManifest(f"it has {len(entries):,} files, more than {MAX_FILES:,}: no checkpoint of a model")
    return entries


def _entry(path: str, given: Any) -> ManifestEntry:
    size, digest = (given.get("size"), given.get("digest")) if isinstance(given, dict) else (None, None)
    reference = str(given.get("ref") or "") if isinstance(given, dict) else ""
    if type(size) is not int or size < 0 or not isinstance(digest, str):
        raise BadManifest(f"its manifest gives no size or no digest for {path}")
    extra = given.get("extra")
    name = str(extra.get("alg") or "MD5") if isinstance(extra, dict) else "MD5"
    if name not in ALGORITHMS:
        raise BadManifest(f"its manifest uses the digest {name!r} for {path}, expected one of {list(ALGORITHMS)}")
    return ManifestEntry(path=path, size=size, digest=digest, algorithm=ALGORITHMS[name], reference=reference)


def scheme_of(url: str) -> str:
    """In lower case; empty where there is none."""
    return url.partition(":")[0].lower() if ":" in url else ""


def _without_login(url: str) -> str:
    """Without a user's name and password, and without what may sign it; no longer than can be shown."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme_of(url)}:..."
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:MAX_SHOWN]


def _module_folders(names: Collection[str]) -> list[str]:
    """Folders that may belong to modules.json, which cannot be read yet: all but checkpoints inside the checkpoint."""
    if "modules.json" not in names:
        return []
    tops = {PurePosixPath(name).parts[0] for name in names if "/" in name}
    return sorted(top for top in tops if not names_a_step(top))


def _what_is_missing(found: Collection[str], every: Collection[str]) -> str | None:
    """As `completeness.what_is_missing` says it of a folder, as far as names can tell."""
    towers = [tower for tower in TOWER_FOLDERS if any(name.startswith(f"{tower}/") for name in found)]
    if towers:
        if alone := lacks_a_tower(towers):
            return alone
        missing = (_missing_in_model(found, every, f"{tower}/") for tower in towers)
        return next((f"{tower}/: {lack}" for tower, lack in zip(towers, missing, strict=True) if lack), None)
    return _missing_in_model(found, every, "")


def _missing_in_model(found: Collection[str], every: Collection[str], folder: str) -> str | None:
    here = {name.removeprefix(folder) for name in found if name.startswith(folder)}
    files = {name for name in here if "/" not in name}
    has_config = bool(files & {"config.json", "adapter_config.json"})
    weights = any(name.endswith(".safetensors") for name in here)
    if "modules.json" in files:
        inside = {PurePosixPath(name).parts[0] for name in here if name.endswith(".json") and "/" in name}
        if not inside:
            return f"modules.json is there, but not the folders of its modules (1_Pooling/ and the like); {USE_INSTEAD}"
        has_config = has_config or any(name.endswith("/config.json") for name in here)
    if not weights:
        beside = (PurePosixPath(name).name for name in every if PurePosixPath(name).parent == PurePosixPath(folder))
        return only_pickles(beside, "save them as safetensors") or f"weights (*.safetensors) are not there; {USE_INSTEAD}"
    if two := two_sets_of_weights(files):
        return two
    if not has_config:
        return NO_CONFIG
    return None
