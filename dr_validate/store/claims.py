"""Who encodes which documents right now: locks on ranges of ordinals, so that two processes never encode the same one."""

import fcntl
import os
import struct
import threading
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dr_validate.values import Int64

CLAIMED_TOGETHER = 256  # ordinals to a lock: 2,048 documents in 1% of a corpus take 800 locks, about a millisecond


class Claims:
    """Locks of the kernel's on ranges of a file: they end with their holder, however that dies.

    They belong to this object (open file description locks): two of them in one process exclude each other as well.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._held: Counter[int] = Counter()  # claims of ours, by range
        self._lock = threading.Lock()

    def take(self, ordinals: Int64) -> NDArray[np.bool_]:
        """Which of these are ours until they are released; the others are being encoded elsewhere. Never waits."""
        ranges, place = np.unique(ordinals // CLAIMED_TOGETHER, return_inverse=True)
        return np.array([self._try(int(number)) for number in ranges], dtype=bool)[place]

    def release(self, ordinals: Int64) -> None:
        """Let go of ordinals that one `take` gave, all of them; from any thread."""
        with self._lock:
            for number in np.unique(ordinals // CLAIMED_TOGETHER).tolist():
                self._held[number] -= 1  # the border of two slices is in a range of both
                if not self._held[number]:
                    self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, number)

    def wait(self, ordinals: Int64) -> None:
        """Until nobody has a claim on these that stood when this was called. Not for what is claimed here."""
        for number in np.unique(ordinals // CLAIMED_TOGETHER):
            self._set(fcntl.F_OFD_SETLKW, fcntl.F_RDLCK, int(number))
            self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, int(number))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)

    def _try(self, number: int) -> bool:
        with self._lock:
            if not self._held[number]:
                try:
                    self._set(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, number)
                except BlockingIOError:
                    return False
            self._held[number] += 1
            return True

    def _set(self, command: int, kind: int, number: int) -> None:
        # struct flock on 64-bit Linux: type, whence, start, length, process id (0 for this kind of lock).
        fcntl.fcntl(self._handle, command, struct.pack("hhqqi0q", kind, os.SEEK_SET, number, 1, 0))
