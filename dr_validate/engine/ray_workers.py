"""The workers of `engine=ray`: actors that come, answer, are lost and replaced, and what runs in each, one call at a time.

A worker is a process with a device, the model on it and a running top-k. Imports ray when it is used.
"""

import contextlib
import gc
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from dr_validate.engine.local import DeviceShare, Slice
from dr_validate.errors import DeviceFailure
from dr_validate.files import atomic_folder, locked, sha256_of_file
from dr_validate.process import importing, set_up_logging
from dr_validate.stages import Index, Model, Workload
from dr_validate.values import Float32, TopK

COUNT_DEVICES_EVERY_S = 5.0
MOST_LOSSES = 5  # in a row at one place, without a slice done: then it is given up
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
class Wanted:
    """The settings, as far as they are about workers. `workers` None: one for each device of the cluster."""

    device: str
    workers: int | None
    resources: Mapping[str, float]
    threads: int
    save_every_s: float
    slice_documents: int | None


@dataclass(slots=True, kw_only=True)
class Call:
    """What a worker was asked and has not answered."""

    kind: str
    job: int
    began: float
    piece: Slice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A running top-k, and what it took; all of it since the job began, so that a later one stands for the earlier ones."""

    top: TopK
    slices: Sequence[Slice]  # whose documents are in it
    encoded_now: int
    seconds: Mapping[str, float]
    contract: Mapping[str, Any]


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """A place for a worker, and who is in it; its actor is replaced when it is lost."""

    number: int
    actor: Any = None
    where: str = ""  # empty until it has said hello
    call: Call | None = None
    losses: int = 0  # in a row
    finished: list[Slice] = field(default_factory=list)  # of this ranking, by this actor
    handed: list[Handed] = field(default_factory=list)  # the latest of each actor that was here
    is_new: bool = True  # the latest is of an actor before this one, or there is none
    handed_at: float = 0.0
    busy_s: float = 0.0
    num_slices: int = 0
    num_lost: int = 0

    @property
    def name(self) -> str:
        return f"worker {self.number}" + (f" ({self.where})" if self.where else "")


class Workers:
    """Those that there are; they stay between rankings. To be closed."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.all: list[Worker] = []
        self._calls: dict[Any, tuple[Worker, Any]] = {}  # by reference: who was asked, and the actor that was there then
        self._counted_at = -float("inf")
        self.tend()

    def close(self) -> None:
        """End the workers at once."""
        import ray

        for worker in self.all:
            if worker.actor is not None and ray.is_initialized():
                ray.kill(worker.actor)
        self.all, self._calls = [], {}

    def tend(self) -> None:
        """Have an actor in each place, and a place for each device that has joined."""
        now = time.monotonic()
        if now - self._counted_at >= COUNT_DEVICES_EVERY_S:
            self._counted_at = now
            number = self.wanted.workers or max(1, _num_devices(self.wanted))
            self.all += [Worker(number=place + 1) for place in range(len(self.all), number)]
        for worker in self.all:
            if worker.actor is None and worker.losses < MOST_LOSSES:
                worker.actor, worker.where, worker.call, worker.is_new = self._new_actor(), "", None, True
                self.ask(worker, "hello", 0)

    def end(self) -> None:
        """Have them let go of the model, each after what it does now."""
        for worker in self.all:
            if worker.actor is not None and worker.where:
                worker.actor.end.remote()

    def ask(self, worker: Worker, kind: str, job: int, *arguments: Any, piece: Slice | None = None) -> None:
        """Call a method of the worker; does not wait."""
        worker.call = Call(kind=kind, job=job, began=time.monotonic(), piece=piece)
        self._calls[getattr(worker.actor, kind).remote(*arguments)] = (worker, worker.actor)

    def answers(self, timeout_s: float) -> Iterable[tuple[Worker, Call, Any]]:
        """What was answered, after waiting for the first: a value, or what the worker raised, or how it was lost (RayError)."""
        import ray

        if not self._calls:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        more, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for reference in dict.fromkeys([*ready, *more]):
            worker, actor = self._calls.pop(reference)
            if actor is not worker.actor or worker.call is None:
                continue  # of one that was given up
            call, worker.call = worker.call, None
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                answer = error.cause
            except ray.exceptions.RayError as error:
                answer = error
            if call.kind == "hello" and isinstance(answer, Mapping):
                worker.where = f"{answer['host']}, process {answer['pid']}"
                log.info("%s is there, %d threads", worker.name, answer["threads"])
                continue
            yield worker, call, answer

    def lose(self, worker: Worker, reason: BaseException) -> None:
        """The actor is gone, or is to go: another one comes, unless this happens again and again."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(worker.actor)
        worker.actor, worker.call, worker.finished = None, None, []
        worker.losses += 1
        worker.num_lost += 1
        words = " ".join(str(reason).split())[:300]
        log.warning("%s was lost: %s: %s", worker.name, type(reason).__name__, words)
        if worker.losses >= MOST_LOSSES:
            log.error("%s is given up: lost %d times without finishing anything", worker.name, worker.losses)
            if all(one.losses >= MOST_LOSSES for one in self.all):
                raise DeviceFailure(f"all workers were lost again and again, last {worker.name}: {words}")

    def _new_actor(self) -> Any:
        import ray

        wanted = self.wanted
        others = {name: value for name, value in wanted.resources.items() if name not in ("CPU", "GPU", "memory")}
        options = {
            "num_cpus": wanted.resources["CPU"],
            "num_gpus": wanted.resources.get("GPU", 0),
            "memory": wanted.resources.get("memory"),
            "resources": others,
            "max_restarts": 0,  # whoever is restarted knows nothing; the unit of a new try is a slice
            "max_task_retries": 0,
        }
        return ray.remote(RayWorker).options(**options).remote(wanted.device, environment_of(wanted.threads))


def machine() -> str:
    """Another one on every machine, whatever they are called."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingJob:
    """One ranking, as each call to a worker names it: whoever comes late or comes back needs nothing else."""

    number: int
    elsewhere: Elsewhere
    index: Index
    machine: str  # whose kept vectors are used: locks and appended files are for processes of one machine
    files: Mapping[str, Any] = field(default_factory=dict)  # where the folder is not seen: (reference, SHA-256) by name


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
        self._share: DeviceShare | None = None
        self._is_frozen = False
        self._is_open = False
        self._done: list[Slice] = []

    def hello(self) -> Mapping[str, Any]:
        """Where this is, said when what takes long is imported and the device is there."""
        with importing():
            import torch

            from dr_validate.devices import hold, resolve_device

        self._device = resolve_device(self._device)
        hold(self._device)
        return {"host": socket.gethostname(), "pid": os.getpid(), "threads": torch.get_num_threads()}

    def query_vectors(self, job: RankingJob, piece: Slice) -> Float32:
        """(len(piece), dim) of a slice of the queries."""
        share = self._begin(job)
        vectors = share.queries.vectors(piece)
        share.settle()
        found: NDArray[Any] = vectors.cpu().numpy()
        return found

    def add(
        self, job: RankingJob, queries: Float32 | None, piece: Slice, following: Slice | None, hand_over: bool
    ) -> Handed | None:
        """Encode and search a slice of the documents; `queries`: the vectors of all, as soon as they are known. What is
        handed over holds all slices since the job began."""
        share = self._begin(job, queries)
        share.add(piece, following)
        self._done.append(piece)
        return self.top(job, queries) if hand_over and queries is not None else None

    def top(self, job: RankingJob, queries: Float32) -> Handed:
        """See `Handed`."""
        share = self._begin(job, queries)
        top = share.top()
        seconds = {"load": self._opened.load_s, **share.seconds}
        contract = dict(self._opened.contract())
        return Handed(
            top=top, slices=tuple(self._done), encoded_now=share.documents.encoded_now, seconds=seconds, contract=contract
        )

    def end(self) -> None:
        """Let go of the model."""
        was_loaded = self._share is not None
        self._number, self._share = -1, None
        self._stack.close()
        if was_loaded and not self._is_frozen:
            gc.freeze()  # all libraries are imported now: as in worker/main
            self._is_frozen = True

    def _begin(self, job: RankingJob, queries: Float32 | None = None) -> DeviceShare:
        """What this device does of the job, its search open once the vectors of the queries are known."""
        if self._share is None or self._number != job.number:
            self.end()
            folder = self._stack.enter_context(_folder(job))
            opened = job.elsewhere.open(folder, self._device, keep=machine() == job.machine)
            self._opened: Opened = self._stack.enter_context(opened)
            self._share = DeviceShare(self._opened.model, self._opened.workload, job.index, self._device)
            self._stack.enter_context(contextlib.closing(self._share))
            self._number, self._is_open = job.number, False
            self._done = []
        if queries is not None and not self._is_open:
            self._share.open(queries.copy())  # torch wants arrays that may be written
            self._is_open = True
        return self._share


def sent_files(folder: Path, put: Any) -> Mapping[str, Any]:
    """The files of a checkpoint for workers that do not see its folder, each sent once (`put`) and known by its SHA-256."""
    import numpy as np

    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: (put(np.fromfile(path, dtype=np.uint8)), sha256_of_file(path)) for name, path in paths.items()}


def environment_of(threads: int) -> Mapping[str, str]:
    """For a worker with so many threads of the processor."""
    passed = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM") if name in os.environ}
    return {**passed, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}


def _num_devices(wanted: Wanted) -> int:
    """For how many workers there is room in the cluster now."""
    import ray

    there: Mapping[str, float] = ray.cluster_resources()
    return min((int(there.get(name, 0) // number) for name, number in wanted.resources.items() if number > 0), default=1)


@contextlib.contextmanager
def _folder(job: RankingJob) -> Iterator[Path]:
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
