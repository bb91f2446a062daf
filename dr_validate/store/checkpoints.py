"""What is kept of checkpoints: verified copies, and vectors that they made. Leased while in use, evicted for room."""

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dr_validate.component import UserPath, component
from dr_validate.errors import Outage
from dr_validate.files import (
    NO_ROOM,
    atomic_folder,
    digest_of_name,
    locked,
    name_of_digest,
    sha256_of_file,
    sha256_of_files,
    write_atomically,
)
from dr_validate.stages import Vectors
from dr_validate.store.best import LINK, check_folder, keep_alone, kept_in
from dr_validate.store.embeddings import open_vectors
from dr_validate.store.leased_cache import LeasedCache, folder_size
from dr_validate.values import Checkpoint, Side

log = logging.getLogger(__name__)
Fetch = Callable[[Checkpoint, Path], None]
_Stamp = tuple[int, int, int]
_records: dict[Path, tuple[_Stamp, Mapping[str, Any]]] = {}  # as they were read; every poll asks for all of them
_verified: dict[Path, dict[str, _Stamp]] = {}  # copies that had their digests in this process, as they were then


@component
class CheckpointStore:
    """`<root>/checkpoints/<digest>/`, about `max_gib` in all; what is leased stays whatever it weighs.

    `<root>/checkpoints/.records/<digest>.json` says of each copy which checkpoint it is, of which sources, and the SHA-256 of
    its files. `<root>/embeddings/`: vectors, at most about `embeddings_max_gib`, 0 for none; see `embeddings.open_vectors`.
    """

    max_gib: float = Field(default=50, gt=0)
    keep_best: UserPath | None = None  # a folder: see `best.keep_alone`
    embeddings_max_gib: float = Field(default=20, ge=0)
    embeddings_dtype: Literal["float32", "float16"] = "float32"

    def take(self, checkpoint: Checkpoint, fetch: Fetch, root: Path, source: str = "", keep: Collection[str] = ()) -> None:
        """Fetch a copy if there is none, and note that `source` has the checkpoint. Two processes fetch one copy once.

        Makes no room but on a full disk: there whatever is neither leased nor among the digests in `keep` goes, then the
        vectors. Raises what `fetch` raises, and OSError where the disk stays full.
        """
        cache, key = _leased_cache(root), name_of_digest(checkpoint.digest)
        with locked(cache.lock_file(key, "fetch")):
            if cache.folder(key).is_dir() and not _record(root, key).get("files"):
                cache.remove(key)  # damaged, or of an earlier version: nothing to compare the copy with
            if not cache.folder(key).is_dir():
                _remove_leftovers(cache, but=key)
                try:
                    self._fetch(checkpoint, fetch, root, source)
                except OSError as error:
                    if error.errno not in NO_ROOM:
                        raise
                    if not any([cache.evict(0, {key, *map(name_of_digest, keep)}), _vectors_cache(root).evict(0)]):
                        raise
                    log.info("disk full: removed copies and vectors that nobody uses, fetching %s again", checkpoint.name)
                    self._fetch(checkpoint, fetch, root, source)
            elif source not in _listed(_record(root, key)):
                _note(root, checkpoint, source, _digests(cache.folder(key)))

    def has(self, digest: str, root: Path) -> bool:
        """Whether there is a copy."""
        return _leased_cache(root).folder(name_of_digest(digest)).is_dir()

    def digests(self, root: Path) -> set[str]:
        """Of all copies that there are."""
        return {digest_of_name(folder.name) for folder in (root / "checkpoints").glob("[!.]*")}

    def taken(self, source: str, root: Path) -> list[Checkpoint]:
        """Checkpoints of one source that there are copies of."""
        return _noted(source, root, with_copy=True)

    def let_go(self, source: str, root: Path) -> list[Checkpoint]:
        """Checkpoints of one source that there were copies of."""
        return _noted(source, root, with_copy=False)

    def make_room(self, num_bytes: int, keep: Collection[str], precious: Sequence[str], root: Path) -> bool:
        """Remove copies until `num_bytes` more fit into `max_gib`; whether they do. Removes nothing where that is not enough.

        Those used longest ago go first, then the digests of `precious` from its end on; never a leased one or one of `keep`.
        A copy that is larger than `max_gib` fits where nothing else is kept.
        """
        cache = _leased_cache(root)
        sizes = cache.sizes()
        kept, last = {name_of_digest(digest) for digest in keep}, [name_of_digest(digest) for digest in precious]
        limit = max(self.max_gib * 2**30 - num_bytes, 0.0)
        if sum(size for key, size in sizes.items() if key in kept) > limit:
            return False
        order = [key for key in sizes if key not in kept and key not in last] + [key for key in last[::-1] if key in sizes]
        return cache.evict(limit, order=order) is not None

    @contextlib.contextmanager
    def lease(self, digest: str, root: Path) -> Iterator[Path]:
        """The folder of a copy whose files have the digests they had when it was taken; nobody removes it within the block.

        Raises Outage where there is none, and where it is damaged: then it is removed, to be taken again.
        """
        cache, key = _leased_cache(root), name_of_digest(digest)
        with cache.lease(key) as folder:
            if not folder.is_dir():
                raise Outage(f"the copy in {folder} is gone; it is taken again where its source still has it")
            wrong = _what_changed(folder, _record(root, key).get("files"))
            if not wrong:
                cache.used(key)
                yield folder
                return
        cache.remove(key)
        raise Outage(f"{wrong} in {folder} is not what was copied; the copy is removed, and taken again from its source")

    def check(self) -> None:
        """Raise SetupError where `keep_best` is no folder that can be written to."""
        if self.keep_best is not None:
            check_folder(self.keep_best)

    def keeps(self, checkpoint: Checkpoint, spec: str) -> bool:
        """Whether the link in `keep_best` leads to it."""
        assert self.keep_best is not None
        return kept_in(self.keep_best / LINK) == (spec, checkpoint.digest)

    def link_best(self, checkpoint: Checkpoint, report: Mapping[str, Any], digests: Collection[str], root: Path) -> None:
        """Keep the copy and its Report (JSON values) in `keep_best`, in place of earlier ones with one of `digests`. Raises
        Outage where there is no copy, and OSError."""
        assert self.keep_best is not None
        with self.lease(checkpoint.digest, root) as copy:
            keep_alone(copy, checkpoint.label, report, digests, self.keep_best)

    def weights_sha256(self, digest: str, root: Path) -> str:
        """Hex SHA-256 of the weights of a copy: of the file where there is one, else over names and digests of all of them."""
        files = _record(root, name_of_digest(digest)).get("files") or {}
        weights = {name: value for name, value in files.items() if name.endswith(".safetensors")}
        if len(weights) == 1:
            return str(next(iter(weights.values())))
        return sha256_of_files(weights).removeprefix("sha256:") if weights else ""

    def vectors(
        self, digest: str, terms: Mapping[str, Any], counts: Mapping[Side, int], root: Path, *, baseline: bool = False
    ) -> contextlib.AbstractContextManager[Vectors]:
        """See `Store.vectors`; nobody removes them within the block. `counts`: of all queries and documents that there are."""
        return open_vectors(
            _vectors_cache(root), digest, terms, counts, self.embeddings_max_gib, self.embeddings_dtype, baseline
        )

    def describe_vectors(self, root: Path) -> str:
        """What is kept, in words for people."""
        sizes = [size for size in _vectors_cache(root).sizes().values() if size]
        what = "1 checkpoint" if len(sizes) == 1 else f"{len(sizes)} checkpoints"
        return f"{sum(sizes) / 2**30:.2f} GiB for {what}, at most {self.embeddings_max_gib:g} (store.embeddings_max_gib)"

    def _fetch(self, checkpoint: Checkpoint, fetch: Fetch, root: Path, source: str) -> None:
        folder = _leased_cache(root).folder(name_of_digest(checkpoint.digest))
        written = 0
        try:
            with atomic_folder(folder) as temporary:
                try:
                    fetch(checkpoint, temporary)
                except OSError:
                    written = folder_size(temporary)
                    raise
                # Before the folder has its name: a copy without a record would be nobody's after a kill.
                _note(root, checkpoint, source, _digests(temporary))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            free = shutil.disk_usage(folder.parent).free
            so_far = f"after {written:,} bytes of {checkpoint.name}; {free:,} bytes are free"
            way_out = "free some, or lower store.max_gib"
            message = f"no space for checkpoints in {folder.parent} {so_far}: {way_out} ({error.strerror or error})"
            raise OSError(error.errno, message) from error


def _leased_cache(root: Path) -> LeasedCache:
    return LeasedCache(root / "checkpoints")


def _vectors_cache(root: Path) -> LeasedCache:
    return LeasedCache(root / "embeddings")


def _record_file(root: Path, key: str) -> Path:
    return root / "checkpoints" / ".records" / f"{key}.json"


def _record(root: Path, key: str) -> Mapping[str, Any]:
    path = _record_file(root, key)
    try:
        status = path.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)  # each record is a new file
        if path not in _records or _records[path][0] != stamp:
            content = json.loads(path.read_bytes())
            _records[path] = stamp, content if isinstance(content, dict) else {}
    except (FileNotFoundError, ValueError):
        return {}  # damaged: known again when the source lists the checkpoint
    return _records[path][1]


def _listed(record: Mapping[str, Any]) -> Mapping[str, Any]:
    listed = record.get("listed")
    return listed if isinstance(listed, dict) else {}


def _noted(source: str, root: Path, *, with_copy: bool) -> list[Checkpoint]:
    found, cache = [], _leased_cache(root)
    for key in sorted(path.stem for path in (cache.root / ".records").glob("[!.]*.json")):
        if cache.folder(key).is_dir() == with_copy and (fields := _listed(_record(root, key)).get(source)):
            with contextlib.suppress(TypeError, AssertionError):  # damaged: as if it had not been noted
                found.append(Checkpoint(**fields))
    return found


def _note(root: Path, checkpoint: Checkpoint, source: str, files: Mapping[str, str]) -> None:
    path = _record_file(root, name_of_digest(checkpoint.digest))
    with locked(path.with_suffix(".lock")):
        listed = {**_listed(_record(root, path.stem)), source: dataclasses.asdict(checkpoint)}
        write_atomically(path, json.dumps({"files": files, "listed": listed}))


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _digests(folder: Path) -> dict[str, str]:
    return {name: sha256_of_file(path) for name, path in _files(folder).items()}


def _what_changed(folder: Path, files: Any) -> str:
    """The first file of a copy that is not as it was when it was taken; "" if all are. Reads what has changed since."""
    if not isinstance(files, dict):
        return "a file without a record"
    found = _files(folder)
    if other := sorted(found.keys() ^ files.keys()):
        return other[0]
    known = _verified.setdefault(folder.absolute(), {})
    for name, path in found.items():
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if known.get(name) != stamp:
            if sha256_of_file(path) != files[name]:
                return name
            known[name] = stamp
    return ""


def _remove_leftovers(cache: LeasedCache, but: str) -> None:
    """Remove what killed processes left: a temporary folder whose fetch lock nobody holds (`but` is held by the caller)."""
    for folder in cache.root.glob(".*.*"):
        key = folder.name[1:].rpartition(".")[0]
        lock = contextlib.nullcontext() if key == but else locked(cache.lock_file(key, "fetch"), blocking=False)
        with contextlib.suppress(BlockingIOError), lock:
            shutil.rmtree(folder, ignore_errors=True)
