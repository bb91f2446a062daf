"""What runs in each process of `engine=ray`: a device, the model on it and a running top-k. Its calls come one at a time."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from dr_validate.engine.share import Share
from dr_validate.engine.slices import Slice
from dr_validate.files import atomic_folder, locked, sha256_of_file
from dr_validate.process import set_up_logging
from dr_validate.stages import Index, Model, Workload
from dr_validate.values import Float32, TopK

log = logging.getLogger(__name__)


class Opened(Protocol):
    """A model, and what is ranked with it."""

    @property
    def model(self) -> Model: ...
    @property
    def workload(self) -> Workload: ...
    @property
    def load_s(self) -> float:
        """What loading the weights took, 0 before."""
        ...

    def contract(self) -> Mapping[str, Any]:
        """See `Model.contract`, and how the first of its vectors were computed."""
        ...


@runtime_checkable
class Elsewhere(Protocol):
    """How another process opens the same work. It goes there by pickle: settings and paths, some kB, never weights."""

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        ...

    def open(self, folder: Path, device: str, *, keep: bool) -> AbstractContextManager[Opened]:
        """The work, with the checkpoint in `folder`; `keep`: with kept vectors, and new ones kept. What two checkpoints share
        stays open in that process. Raises SetupError where that process finds other documents or another sample."""
        ...


class FolderMissing(Exception):
    """This machine does not see the folder of the checkpoint: its files are to be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One ranking, as each call to a worker names it: whoever comes late or comes back needs nothing else."""

    number: int
    elsewhere: Elsewhere
    index: Index
    machine: str  # whose kept vectors are used: locks and appended files are for processes of one machine
    files: Mapping[str, Any] = field(default_factory=dict)  # where the folder is not seen: (reference, SHA-256) by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A running top-k, and what it took; all of it since the job began, so that a later one stands for the earlier ones."""

    top: TopK
    slices: Sequence[Slice]  # whose documents are in it
    encoded_now: int
    seconds: Mapping[str, float]
    contract: Mapping[str, Any]


class RayWorker:
    """The actor. What two checkpoints share (imports, test set, tokens) stays between them; the model does not."""

    def __init__(self, device: str, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)  # before anything is imported that reads it
        if not logging.getLogger().handlers:
            set_up_logging()
            logging.getLogger("dr_validate").setLevel(logging.WARNING)  # what many do alike, the driver says once
        self._device = device
        self._stack = contextlib.ExitStack()
        self._number = -1
        self._share: Share | None = None
        self._is_open = False
        self._done: list[Slice] = []

    def hello(self) -> Mapping[str, Any]:
        """Where this is, said when what takes long is imported and the device is there."""
        import torch

        from dr_validate.devices import hold, resolve_device

        self._device = resolve_device(self._device)
        hold(self._device)
        return {"host": socket.gethostname(), "pid": os.getpid(), "threads": torch.get_num_threads()}

    def query_vectors(self, job: Job, piece: Slice) -> Float32:
        """(len(piece), dim) of a slice of the queries."""
        share = self._begin(job)
        vectors = share.queries.vectors(piece)
        share.settle()
        found: NDArray[Any] = vectors.cpu().numpy()
        return found

    def add(self, job: Job, queries: Float32 | None, piece: Slice, following: Slice | None, hand_over: bool) -> Handed | None:
        """Encode and search a slice of the documents; `queries`: the vectors of all, as soon as they are known. What is
        handed over holds all slices since the job began."""
        share = self._begin(job)
        if queries is not None and not self._is_open:
            share.open(queries.copy())  # torch wants arrays that may be written
            self._is_open = True
        share.add(piece, following)
        self._done.append(piece)
        return self.top(job, queries) if hand_over and self._is_open else None

    def top(self, job: Job, queries: Float32 | None) -> Handed:
        """See `Handed`."""
        share = self._begin(job)
        if not self._is_open:
            assert queries is not None
            share.open(queries.copy())
            self._is_open = True
        top = share.top()
        seconds = {"load": self._opened.load_s, **share.seconds}
        contract = dict(self._opened.contract())
        return Handed(
            top=top, slices=tuple(self._done), encoded_now=share.documents.encoded_now, seconds=seconds, contract=contract
        )

    def end(self) -> None:
        """Let go of the model."""
        self._number, self._share = -1, None
        self._stack.close()

    def _begin(self, job: Job) -> Share:
        if self._share is None or self._number != job.number:
            self.end()
            folder = self._stack.enter_context(_folder(job))
            opened = job.elsewhere.open(folder, self._device, keep=machine() == job.machine)
            self._opened: Opened = self._stack.enter_context(opened)
            self._share = Share(self._opened.model, self._opened.workload, job.index, self._device)
            self._stack.enter_context(contextlib.closing(self._share))
            self._number, self._is_open = job.number, False
            self._done = []
        return self._share


@contextlib.contextmanager
def _folder(job: Job) -> Iterator[Path]:
    """The folder of the checkpoint: as it is seen from here, or one that its files are written to, once for each machine."""
    folder = job.elsewhere.folder
    if folder.is_dir() or not job.files:
        if not folder.is_dir():
            raise FolderMissing(f"{folder} is not on {socket.gethostname()}")
        yield folder
        return

    root = Path(tempfile.gettempdir()) / f"dr_validate-{os.getuid()}"
    copy, used = root / folder.name, root / f"{folder.name}.used"
    root.mkdir(mode=0o700, exist_ok=True)
    try:
        with locked(used, shared=True):
            with locked(root / f"{folder.name}.fetch"):
                if not copy.is_dir():
                    _receive(job.files, copy)
            yield copy
    finally:
        with contextlib.suppress(BlockingIOError), locked(used, blocking=False):
            shutil.rmtree(copy, ignore_errors=True)


def _receive(files: Mapping[str, Any], folder: Path) -> None:
    import ray

    began = time.monotonic()
    with atomic_folder(folder) as temporary:
        for name, (reference, digest) in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(ray.get(reference))
            if sha256_of_file(path) != digest:
                raise OSError(f"{name} of {folder.name} came damaged to {socket.gethostname()}")
    log.info("%s came to %s in %.1f s", folder.name, socket.gethostname(), time.monotonic() - began)


def machine() -> str:
    """Another one on every machine, whatever they are called."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"


def environment_of(threads: int) -> Mapping[str, str]:
    """For a worker with so many threads of the processor."""
    passed = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM") if name in os.environ}
    return {**passed, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}


def files_of(folder: Path, put: Any) -> Mapping[str, Any]:
    """The files of a checkpoint for workers that do not see its folder, each sent once (`put`) and known by its SHA-256."""
    import numpy as np

    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: (put(np.fromfile(path, dtype=np.uint8)), sha256_of_file(path)) for name, path in paths.items()}
