"""What a version's manifest says, before a byte of its files is fetched: what encoding needs of it, and what it lacks."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from dr_validate.files import sha256_of_files, two_sets_of_weights
from dr_validate.source.steps import names_a_step
from dr_validate.source.wanted import PICKLES, TOWER_FOLDERS, TRAINING_STATE, matches, wanted

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


class BadManifest(ValueError):
    """A manifest that does not say what a manifest must, or names what must not be written; in words for a user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
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

    files: tuple[Entry, ...]
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


def read_manifest(document: Any) -> Contents:
    """Judge a manifest as W&B stores it (parsed JSON), from its names alone; never raises for what a stranger wrote."""
    try:
        entries = _entries(document)
        for path in entries:
            check_path(path)
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


def check_path(path: str) -> None:
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


def _entry(path: str, given: Any) -> Entry:
    size, digest = (given.get("size"), given.get("digest")) if isinstance(given, dict) else (None, None)
    reference = str(given.get("ref") or "") if isinstance(given, dict) else ""
    if type(size) is not int or size < 0 or not isinstance(digest, str):
        raise BadManifest(f"its manifest gives no size or no digest for {path}")
    extra = given.get("extra")
    name = str(extra.get("alg") or "MD5") if isinstance(extra, dict) else "MD5"
    if name not in ALGORITHMS:
        raise BadManifest(f"its manifest uses the digest {name!r} for {path}, expected one of {list(ALGORITHMS)}")
    return Entry(path=path, size=size, digest=digest, algorithm=ALGORITHMS[name], reference=reference)


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
    """As source/complete.py says it of a folder, as far as names can tell."""
    towers = [tower for tower in TOWER_FOLDERS if any(name.startswith(f"{tower}/") for name in found)]
    if towers:
        if "query_model" not in towers or len(towers) < 2:
            return f"{towers[0]}/ is there, but not the other tower: query_model/ and passage_model/ belong together"
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
        return _pickles(every, folder) or f"weights (*.safetensors) are not there; {USE_INSTEAD}"
    if two := two_sets_of_weights(files):
        return two
    if not has_config:
        return NO_CONFIG
    return None


def _pickles(names: Collection[str], folder: str) -> str | None:
    known = [*TRAINING_STATE, "training_args.bin"]
    here = [PurePosixPath(name).name for name in names if PurePosixPath(name).parent == PurePosixPath(folder or ".")]
    found = sorted(name for name in here if matches(name, PICKLES) and not matches(name, known))
    if not found:
        return None
    listed = ", ".join(found[:MAX_REPORTED])
    return f"weights only as a pickle ({listed}), which is never loaded: it can run code; save them as safetensors"
