"""Encode and search on many devices with Ray: an actor for each, slices dealt one at a time, exact top-k merged here."""

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dr_validate.component import component
from dr_validate.devices import resolve_device
from dr_validate.engine.ray_ranking import RayRanker
from dr_validate.engine.ray_workers import Wanted
from dr_validate.errors import SetupError
from dr_validate.stages import Ranker

OBJECT_STORE_BYTES = 1 << 30  # of a cluster of our own: query vectors and top-k; memory is taken as it is used
REACHED_WITHIN_S = 10.0  # the port at `address`, by TCP: who waits there for Ray's own tries waits for a quarter of an hour
CLEANED_WITHIN_S = 5.0
TRIES = "RAY_gcs_server_port_wait_time_s"  # environment: how often Ray tries
FOLDER = "dr-ray-"
LONGEST_FOLDER = 107 - len("/session_2026-11-27_09-54-35_669020_4194304/sockets/plasma_store")  # what a socket's path may have
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 is for what nobody waits for: beside other programs a worker would stand still
    "RAY_prestart_worker_first_driver": "0",  # one idle process for each CPU, which nobody here gives work
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end would start another cluster, anywhere
}
log = logging.getLogger(__name__)


@component
class RayEngine:
    """Many devices, each with a process of its own, which share the documents of a checkpoint; the ranking is that of one.

    A cluster of its own on this machine, or the one at `address` (`auto`, `host:6379`). `workers`: how many; None: one for
    each GPU that is there or joins, one where there is none. `resources`: what each takes, in Ray's names (`CPU`, `GPU`,
    `memory`, your own); a GPU and a CPU, or an equal part of this machine's CPUs, if not said otherwise. A worker that is
    lost costs what it had done since it last handed over its top-k (`save_every_s`); one that is late does what is left; one
    that is slow keeps nobody waiting: its last slices are done by others as well.
    """

    address: str | None = None
    workers: int | None = Field(default=None, ge=1)
    resources: Mapping[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    save_every_s: float = Field(default=30, ge=0)
    slice_documents: int | None = Field(default=None, ge=1)

    def find_device(self, wanted: str) -> str:
        """See `Engine.find_device`: `cpu` or `cuda`, for which of them a worker holds is Ray's to say."""
        if wanted not in ("auto", "cpu", "cuda"):
            raise SetupError(
                f"device: got {wanted!r}, but engine=ray gives each worker a device of its own; set device=cpu or device=cuda"
            )
        if wanted == "auto" and self.address is not None:
            raise SetupError(
                f"device: got 'auto', but what is on the machines of engine.address={self.address} is not known here; "
                "set device=cuda or device=cpu"
            )
        return resolve_device(wanted).partition(":")[0] if wanted == "auto" else wanted

    def problems_of_many(self) -> Sequence[str]:
        """See `Engine.problems_of_many`: who gets which device is for one cluster to say, so that none takes all of them."""
        missing = [key for key in ("address", "workers") if getattr(self, key) is None]
        whose = {"address": "the cluster that they share (`ray start --head`)", "workers": "how many each takes"}
        return [f"engine.{key}: watch.at_once has several processes rank with Ray; set {whose[key]}" for key in missing]

    def describe(self, device: str) -> str:
        """See `Engine.describe`: starts the cluster, or connects to it, and asks what is there."""
        wanted = self._wanted(device)
        with _cluster(self.address, wanted):
            ray = import_ray()
            there = ray.cluster_resources()
            nodes = sum(node["Alive"] for node in ray.nodes())
        found = ", ".join(f"{there.get(name, 0):g} {name}" for name in ("GPU", "CPU"))
        needs = ", ".join(f"{number:g} {name}" for name, number in wanted.resources.items())
        place = "of its own on this machine" if self.address is None else f"at {self.address}"
        many = wanted.workers or "as many as fit"
        return f"ray {ray.__version__}, a cluster {place}: {nodes} nodes, {found}; workers on {device}: {many}, each {needs}"

    @contextlib.contextmanager
    def start(self, device: str) -> Iterator[Ranker]:
        """See `Engine.start`: starts a cluster or connects to one, and asks for its workers, which are not waited for."""
        wanted = self._wanted(device)
        with _cluster(self.address, wanted), contextlib.closing(RayRanker(wanted)) as ranker:
            yield ranker

    def clean_up(self) -> None:
        """See `Engine.clean_up`: the folders of clusters, whose processes may still write to them for a moment."""
        end = time.monotonic() + CLEANED_WITHIN_S
        while remove_leftovers() and time.monotonic() < end:
            time.sleep(0.1)

    def _wanted(self, device: str) -> Wanted:
        cpus, workers = len(os.sched_getaffinity(0)), self.workers
        if self.address is None and device == "cuda":
            gpus = _num_gpus()
            if workers is not None and workers * self.resources.get("GPU", 1) > gpus:
                raise SetupError(f"engine.workers: got {workers}, but this machine has {gpus} GPUs; lower it")
        if self.address is None and device == "cpu":
            workers = workers or 1
        threads = int(os.environ.get("OMP_NUM_THREADS") or cpus)
        share = max(1, threads // (workers or 1)) if device == "cpu" and self.address is None else 1
        resources = {"CPU": float(share), **({"GPU": 1.0} if device == "cuda" else {}), **self.resources}
        return Wanted(
            device=device,
            workers=workers,
            resources=resources,
            threads=max(1, int(resources["CPU"])),
            save_every_s=self.save_every_s,
            slice_documents=self.slice_documents,
        )


def set_environment(*, own_cluster: bool) -> None:
    """Of this process, whose own cluster lets nobody in but those with its token: Ray reads it once for a process."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if own_cluster:  # in memory only: Ray would write one to the user's home
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def import_ray() -> Any:
    """The module. Raises SetupError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise SetupError(f"engine=ray: ray cannot be imported ({error}); pip install 'dr_validate[ray]'") from error
    return ray


@contextlib.contextmanager
def _cluster(address: str | None, wanted: Wanted) -> Iterator[None]:
    """Ray in this process, for the block. Raises SetupError where it is not installed or cannot be reached."""
    _reach(address or "")
    set_environment(own_cluster=address is None)
    ray = import_ray()
    with contextlib.ExitStack() as stack:
        options: Mapping[str, Any] = {"address": address}
        if address is None:
            options = _own_cluster(wanted, stack.enter_context(_folder()))
        stack.callback(ray.shutdown)
        with _own_signals(), _one_try() if address else contextlib.nullcontext():
            try:
                ray.init(configure_logging=False, namespace="dr_validate", **options)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                place = "on this machine" if address is None else f"at engine.address={address}"
                raise SetupError(f"engine=ray: no cluster {place} ({' '.join(str(error).split())})") from error
        yield


def _reach(address: str) -> None:
    """Raises SetupError where nobody listens at `host:port`; says nothing about any other address (`auto`)."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), REACHED_WITHIN_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise SetupError(
            f"engine.address: nobody answers at {address} ({error}); is the cluster up (`ray status`), and is this its "
            "host:port? Leave the key out for a cluster of this machine's own"
        ) from error


def _own_cluster(wanted: Wanted, folder: Path) -> Mapping[str, Any]:
    others = {name: number for name, number in wanted.resources.items() if name not in ("CPU", "GPU", "memory")}
    workers = wanted.workers or 1
    cpus = max(len(os.sched_getaffinity(0)), int(wanted.resources["CPU"] * workers))
    return {
        "num_cpus": cpus,
        "num_gpus": _num_gpus() if wanted.device == "cuda" else 0,
        "resources": {name: number * workers for name, number in others.items()},
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": str(folder),
        "_node_ip_address": "127.0.0.1",
    }


def _num_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """For sockets and logs, named by this process and removed with the block."""
    remove_leftovers()
    names = [root / f"{FOLDER}{os.getpid()}" for root in _roots()]
    folder = next(
        (name for name in names if len(os.fsencode(name)) <= LONGEST_FOLDER and os.access(name.parent, os.W_OK)), None
    )
    if folder is None:
        most = LONGEST_FOLDER - len(names[0].name) - 1
        raise SetupError(f"engine=ray: no folder for sockets: set TMPDIR to one whose path has at most {most} characters")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> bool:
    """Remove the folders of clusters whose processes were killed; whether one is still there that may go in a moment."""
    is_left = False
    for root in _roots():
        for left in root.glob(f"{FOLDER}*"):
            number = left.name.removeprefix(FOLDER)
            if number == str(os.getpid()) or not Path(f"/proc/{number}").exists():
                shutil.rmtree(left, ignore_errors=True)
                is_left |= left.exists() and os.access(left, os.W_OK)
    return is_left


def _roots() -> list[Path]:
    return [Path(tempfile.gettempdir()), Path("/dev/shm"), Path("/tmp")]


@contextlib.contextmanager
def _one_try() -> Iterator[None]:
    """Of some 40 s to get hold of a cluster, where Ray makes 20."""
    known = os.environ.get(TRIES)
    os.environ.setdefault(TRIES, "1")
    try:
        yield
    finally:
        if known is None:
            del os.environ[TRIES]


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """What a signal means to this process is not Ray's to say."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
