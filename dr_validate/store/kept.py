"""The vectors of one checkpoint: read where they are kept, made and kept where they are not."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.files import write_atomically
from dr_validate.stages import Encode
from dr_validate.store.claims import Claims
from dr_validate.store.vector_file import VectorFile
from dr_validate.values import Float32, Int64, Side

log = logging.getLogger(__name__)


class NothingKept:
    """The `Vectors` protocol where nothing is to be kept."""

    def get(self, side: Side, ordinals: Int64, encode: Encode) -> Float32:
        """All of them made."""
        return encode(np.arange(len(ordinals)))

    def contract(self, read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """As it is read now."""
        return read()


class KeptVectors:
    """The `Vectors` protocol over one folder; for one thread. `take(num_bytes)` says whether there is room for more.

    No error of the disk passes: vectors that cannot be read are made, and after one that cannot be kept none is.
    """

    def __init__(self, folder: Path, counts: Mapping[Side, int], *, dtype: str, take: Callable[[int], bool]) -> None:
        self._folder, self._take = folder, take
        self._full = False
        with ExitStack() as stack:
            self._files = {
                side: stack.enter_context(closing(VectorFile(folder / side, count, dtype))) for side, count in counts.items()
            }
            self._claims = {side: stack.enter_context(closing(Claims(folder / f"{side}.claims"))) for side in counts}
            self._resources = stack.pop_all()

    def close(self) -> None:
        """Let go of the files."""
        self._resources.close()

    def get(self, side: Side, ordinals: Int64, encode: Encode) -> Float32:
        """See `Vectors.get`. What another process encodes at this moment is waited for; nothing is encoded twice."""
        gathered = _Gathered(len(ordinals))
        missing = self._read(side, ordinals, np.arange(len(ordinals)), gathered)
        while len(missing) and not self._full:
            with self._claims[side].claim(ordinals[missing]) as ours:
                rest = self._read(side, ordinals, missing[ours], gathered)  # finished by another just before the claim
                if len(rest):
                    fresh = encode(rest)
                    gathered.put(rest, fresh)
                    self._keep(side, ordinals[rest], fresh)
            missing = missing[~ours]
            if len(missing):
                self._claims[side].wait(ordinals[missing])
                missing = self._read(side, ordinals, missing, gathered)
        if len(missing):
            gathered.put(missing, encode(missing))
        return gathered.vectors

    def contract(self, read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """See `Vectors.contract`."""
        path = self._folder / "contract.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict):
            return found
        contract = read()
        try:
            write_atomically(path, json.dumps(contract, indent=2) + "\n")
        except OSError as error:
            self._stop_keeping(error)
        return contract

    def _read(self, side: Side, ordinals: Int64, positions: Int64, gathered: "_Gathered") -> Int64:
        """Take what is kept at these positions; returns those that are missing."""
        if not len(positions):
            return positions
        try:
            kept, vectors = self._files[side].read(ordinals[positions])
        except OSError as error:
            self._stop_keeping(error)
            return positions
        if kept.any():
            gathered.put(positions[kept], vectors)
        return positions[~kept]

    def _keep(self, side: Side, ordinals: Int64, vectors: Float32) -> None:
        try:
            if self._take(vectors.nbytes):
                self._files[side].append(ordinals, vectors)
            else:
                log.warning("no room for more vectors in %s: those that follow are not kept", self._folder)
                self._full = True
        except OSError as error:
            self._stop_keeping(error)

    def _stop_keeping(self, error: OSError) -> None:
        if not self._full:
            log.warning("vectors are no longer kept in %s: %s", self._folder, error)
        self._full = True


class _Gathered:
    """Vectors that come in parts, in the order of their positions."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.vectors = np.empty((0, 0), dtype=np.float32)

    def put(self, positions: Int64, vectors: Float32) -> None:
        if not self.vectors.size:
            self.vectors = np.empty((self._number, vectors.shape[1]), dtype=np.float32)
        self.vectors[positions] = vectors
