"""What is kept of checkpoints: verified copies, and vectors that they made. Leased while in use, the oldest evicted."""

import contextlib
import errno
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dr_validate.component import component
from dr_validate.files import atomic_folder, locked
from dr_validate.stages import Vectors
from dr_validate.store.embeddings import EmbeddingStore
from dr_validate.store.shelf import Shelf, folder_size, key_of
from dr_validate.values import Checkpoint, Side

Fetch = Callable[[Checkpoint, Path], None]
log = logging.getLogger(__name__)


@component
class CheckpointStore:
    """`<root>/checkpoints/<digest>/`, at most about `max_gib` in all; what is leased stays whatever it weighs.

    `<root>/embeddings/` holds vectors, at most about `embeddings_max_gib`, 0 for none; see `EmbeddingStore`.
    """

    max_gib: float = Field(default=50, gt=0)
    embeddings_max_gib: float = Field(default=20, ge=0)
    embeddings_dtype: Literal["float32", "float16"] = "float32"

    @contextlib.contextmanager
    def lease(self, checkpoint: Checkpoint, fetch: Fetch, root: Path) -> Iterator[Path]:
        """The folder of a copy, fetched if need be, that nobody removes within the block. Raises what `fetch` raises."""
        shelf, key = _shelf(root), key_of(checkpoint.digest)
        while True:
            self.prepare(checkpoint, fetch, root)
            with shelf.lease(key) as folder:
                if folder.is_dir():  # or else it was evicted between the two lines above
                    shelf.used(key)
                    yield folder
                    return

    def prepare(self, checkpoint: Checkpoint, fetch: Fetch, root: Path) -> None:
        """Fetch a copy if there is none, for a later lease. Two processes that want the same one fetch it once."""
        shelf, key = _shelf(root), key_of(checkpoint.digest)
        with locked(shelf.lock_file(key, "fetch")):
            if shelf.folder(key).is_dir():
                return
            _remove_leftovers(shelf, but=key)
            try:
                self._fetch(checkpoint, fetch, shelf.folder(key))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not any([shelf.evict(0, {key}), self._embeddings(root).clear()]):
                    raise
                log.info("disk full: removed copies and vectors that nobody uses, fetching %s again", checkpoint.name)
                self._fetch(checkpoint, fetch, shelf.folder(key))
        self.evict(root, keep=[checkpoint.digest])

    def has(self, digest: str, root: Path) -> bool:
        """Whether there is a copy."""
        return _shelf(root).folder(key_of(digest)).is_dir()

    def evict(self, root: Path, keep: Collection[str] = ()) -> list[str]:
        """Remove the copies used longest ago until `max_gib` is kept; never a leased one or the digests in `keep`.

        Returns the names of the folders that are gone.
        """
        return _shelf(root).evict(self.max_gib * 2**30, {key_of(digest) for digest in keep})

    def vectors(
        self, digest: str, terms: Mapping[str, Any], counts: Mapping[Side, int], root: Path
    ) -> AbstractContextManager[Vectors]:
        """Kept vectors of one checkpoint under one encoder contract and for one test set (`terms`, JSON values).

        `counts`: how many queries and documents there are in all. Nobody removes them within the block.
        """
        return self._embeddings(root).open(digest, terms, counts)

    def describe_vectors(self, root: Path) -> str:
        """What is kept, in words for people."""
        return self._embeddings(root).describe()

    def _embeddings(self, root: Path) -> EmbeddingStore:
        return EmbeddingStore(root / "embeddings", max_gib=self.embeddings_max_gib, dtype=self.embeddings_dtype)

    def _fetch(self, checkpoint: Checkpoint, fetch: Fetch, folder: Path) -> None:
        written = 0
        try:
            with atomic_folder(folder) as temporary:
                try:
                    fetch(checkpoint, temporary)
                except OSError:
                    written = folder_size(temporary)
                    raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(folder.parent).free
            so_far = f"after {written:,} bytes of {checkpoint.name}; {free:,} bytes are free"
            way_out = "free some, or lower store.max_gib"
            message = f"no space for checkpoints in {folder.parent} {so_far}: {way_out} ({error.strerror or error})"
            raise OSError(error.errno, message) from error


def _shelf(root: Path) -> Shelf:
    return Shelf(root / "checkpoints")


def _remove_leftovers(shelf: Shelf, but: str) -> None:
    """Remove what killed processes left: a temporary folder whose fetch lock nobody holds (`but` is held by the caller)."""
    for folder in shelf.root.glob(".*.*"):
        key = folder.name[1:].rpartition(".")[0]
        if key == but:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with contextlib.suppress(BlockingIOError), locked(shelf.lock_file(key, "fetch"), blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
