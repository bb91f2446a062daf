"""Starts Python by forking a process that has imported everything, where a new one would import it all again.

It is the same code in a process of its own, with its own pid, streams and end; what it saves is most of the 8 CPU seconds in
which a watcher and its worker begin and end (torch, transformers, ranx, Hydra). A worker is forked from a process that was
forked when its watcher began, and that dies with it. What is decided while something is imported, or taken apart at the end,
needs a real start: `cold=True`, or another value of one of the variables in AT_IMPORT. With DR_VALIDATE_COLD=1 all are real.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import types
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dr_validate
from dr_validate.process import die_with_parent
from tests.processes import LIMIT_S, children, is_alive

COMMAND = ["-m", "dr_validate"]
LIBRARIES = [
    *(
        "torch",
        "transformers",
        "transformers.models.bert.modeling_bert",
        "transformers.trainer",  # of trainings that tests run
        "numba",
        "pandas",
        "pyarrow.dataset",
        "faiss",
        "wandb.sdk.launch",  # which each run imports
        "wandb.sdk.artifacts._models.pagination",  # and each download
        "wandb_workspaces.workspaces",
        "pytest",
        "hypothesis",
        "tests.wandb_server.front",
    ),
    *("safetensors.torch", "hydra.main", "hydra.compose", "rich.console", "rich.table", "ranx", "sentence_transformers"),
]
GENERATED = ("wandb.sdk.artifacts._generated", "wandb.apis._generated")  # of which each run imports this and that
TYPED = (
    *("source.path=/x/a-1_b.c", "dataset=beir", "+run=demo", "tracker=none", "encoder.normalize=true", "top_k=10", "seed=-1"),
    *("sampler.fraction=0.5", "metrics=[ndcg@10,mrr@10]", "++tracker.project='a b'", 'state_dir="x"'),
)
# First letters of variables that are read when Python starts, or when something is imported.
AT_IMPORT = ("PYTHON", "LD_", "LC_", "LANG", "OMP_", "OPENBLAS_", "MKL_", "ATEN_", "ONEDNN_", "TORCH", "CUDA", "NUMBA_", "HF_")
SET_LATER = {
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "OPENBLAS_NUM_THREADS",
    "PYTHONWARNINGS",
    "TORCHINDUCTOR_CACHE_DIR",
}
FORKER = "DR_VALIDATE_FORKER"  # names the socket of the process that forks
BELOW = "DR_VALIDATE_WARM_BELOW"  # set where what a warm process starts is warm, too
ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1 << 20  # bytes of a request
_directories: list[Any] = []  # temporary ones that were made when something was imported
NUMBER = struct.Struct("i")
Popen = subprocess.Popen


# What is ignored below: methods of CPython's own class that typeshed leaves out.
class Forked(subprocess.Popen[str]):
    """`subprocess.Popen` of a process that `forker` forks and waits for. What it replaces of Popen has no types."""

    def __init__(self, forker: socket.socket, args: Sequence[str], **options: Any) -> None:
        self._forker = forker
        super().__init__(args, **options)

    def _execute_child(self, *args: Any) -> None:
        given = inspect.signature(subprocess.Popen._execute_child).bind(self, *args).arguments  # type: ignore[attr-defined]
        pipes = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        streams = [number if pipe == -1 else pipe for number, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        request = {
            "args": list(given["args"]),
            "folder": str(given["cwd"] or Path.cwd()),
            "environment": dict(os.environ if given["env"] is None else given["env"]),
            "new_session": given["start_new_session"],
            "group": given["process_group"],
        }
        self._answers, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._forker, [json.dumps(request).encode()], [*streams, theirs.fileno()])
        self.pid = NUMBER.unpack(self._answers.recv(NUMBER.size))[0]
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(0)  # type: ignore[attr-defined]
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags and not select.select([self._answers], [], [], 0)[0]:
            return 0, 0
        with self._answers:
            status = self._answers.recv(NUMBER.size)
        return self.pid, NUMBER.unpack(status)[0] if status else signal.SIGKILL  # of the forker, which what it forked dies with


class Below(subprocess.Popen[str]):
    """In place of subprocess.Popen in a process that says BELOW, and in the one that starts those that run the tests: what is
    Python starts warm."""

    def __new__(cls, args: Sequence[str], **options: Any) -> Any:
        return popen(args, **{"text": False, **options}) if list(args)[0] == sys.executable else Popen(args, **options)


def popen(command: Sequence[str], *, cold: bool = False, below: bool = False, **options: Any) -> "subprocess.Popen[str]":
    """`command` of this Python with `options` of subprocess.Popen, warm where that makes no difference; with `below` what it
    starts itself, too."""
    assert command[0] == sys.executable
    forker = None if cold or os.environ.get("DR_VALIDATE_COLD") else _forker()
    environment = options.get("env") or os.environ
    options = {"text": True, **options}
    if forker is None or not _like(environment, _environment()):
        return Popen(command, **options)
    return Forked(forker, command, **{**options, **({"env": {**environment, BELOW: "1"}} if below else {})})


def run(command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Wait for `popen(command, ...)`; what it wrote comes back."""
    with popen(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}) as process:
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def workers(watcher: "subprocess.Popen[str]") -> set[int]:
    """Pids of the workers of a watcher that it might take for alive; those of a warm one are below the process that forks them,
    until that has told it of their end."""
    below = children(watcher.pid)
    return set().union(*map(children, below)) if isinstance(watcher, Forked) else set(filter(is_alive, below))


def _environment() -> dict[str, str]:
    """Of the process that forks; the last two keep libraries from starting threads when they are imported."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_ERROR_REPORTING": "false"}
    return {**os.environ, **own, "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


def _like(environment: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether what is imported is the same; each worker is told itself whether it may ask the hub."""
    names = {name for name in {*environment, *other} if name.startswith(AT_IMPORT)} - SET_LATER
    return all(environment.get(name) == other.get(name) for name in names) and _warns(environment) in ("", "default")


def _warns(environment: Mapping[str, str]) -> str:
    return environment.get("PYTHONWARNINGS", "")


@functools.cache
def _forker() -> socket.socket | None:
    """The connection to the process that forks for this one; None where that has threads, which no fork has."""
    share()
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.connect(os.environ[FORKER])
    atexit.register(ours.close)
    return ours if ours.recv(1) == b"1" else None


def share() -> dict[str, str]:
    """Have a process that forks for this one and for all below it, and ends with it; returns the variable that names it."""
    if FORKER not in os.environ and not os.environ.get("DR_VALIDATE_COLD"):
        _start_forker()
    return {name: value for name, value in os.environ.items() if name == FORKER}


def _start_forker() -> None:
    folder = tempfile.mkdtemp(prefix="dr-forker-", dir="/tmp")  # a longer path may be too long for a socket
    os.environ[FORKER] = f"{folder}/requests"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.environ[FORKER])
        listener.listen()
        fds = [theirs.fileno(), listener.fileno()]
        command = [sys.executable, "-m", "tests.warm", *map(str, fds)]
        process = subprocess.Popen(command, cwd=ROOT, env=_environment(), pass_fds=fds, stdin=subprocess.DEVNULL)

    def end() -> None:
        ours.close()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)


def main() -> None:
    gc.disable()  # nothing of what is imported is garbage, and looking for it takes a quarter of the time
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for package in (dr_validate, *map(importlib.import_module, GENERATED)):
        for part in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not part.name.endswith("main__"):
                importlib.import_module(part.name)
    with contextlib.suppress(ImportError, AttributeError):  # a thousand regular expressions, made for the first model
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("bert")
    _, wrong = importlib.import_module("dr_validate.cli.overrides").composed(TYPED)
    assert wrong is None, wrong  # ANTLR's parsers remember what they saw, and Hydra the plugins that it found
    gc.collect()
    _directories[:] = [each for each in gc.get_objects() if issubclass(type(each), tempfile.TemporaryDirectory)]
    gc.freeze()
    gc.enable()
    alone = threading.active_count() == 1 and len(list(Path("/proc/self/task").iterdir())) == 1
    owner, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    with owner, listener:
        request = serve(owner, listener, b"1" if alone else b"0")
    if request:
        code: Any = 0
        try:
            _run(*request)
        except SystemExit as error:
            code = error.code or 0
        if isinstance(code, int):
            _end(code)
        sys.exit(code)


def _end(code: int) -> None:
    """As Python ends, but that nothing is taken apart: each page of an object would be copied first, in half a CPU second."""
    vars(threading)["_shutdown"]()
    vars(atexit)["_run_exitfuncs"]()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)


def serve(
    owner: socket.socket, listener: socket.socket | None = None, greeting: bytes = b""
) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each request of the owner, and of those who connect; returns it, and its streams, in the fork, and None when the
    owner has ended."""
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    answers: dict[int, socket.socket] = {}
    sources = [owner, *([listener] if listener else [])]
    while True:
        waited: list[Any] = [*sources, awake]
        ready = select.select(waited, [], [])[0]
        if awake in ready:
            os.read(awake, 512)
        _tell_ends(answers)
        for source in [source for source in sources if source in ready]:
            if source is listener:
                sources.append(source.accept()[0])
                sources[-1].send(greeting)
                continue
            message, fds, _, _ = socket.recv_fds(source, LARGEST, 4)
            if not message:
                if source is owner:
                    return None
                sources.remove(source)
                source.close()
            elif (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (awake, wake, *(one.detach() for one in (*sources, *answers.values())), fds[3]):
                    os.close(end)
                return json.loads(message), fds[:3]
            else:
                answers[pid] = socket.socket(fileno=fds[3])
                with contextlib.suppress(OSError):  # who asked may have been killed
                    answers[pid].send(NUMBER.pack(pid))
                for stream in fds[:3]:
                    os.close(stream)


def _tell_ends(answers: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with answers.pop(ended[0]) as answer, contextlib.suppress(OSError):  # nobody may wait for it any more
                answer.send(NUMBER.pack(ended[1]))


def _run(request: Mapping[str, Any], streams: Sequence[int]) -> None:
    """As Python does it from here."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if request["new_session"]:
        os.setsid()
    elif request["group"] != -1:
        os.setpgid(0, request["group"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    for directory in _directories:  # each process has its own, and removes it
        directory._finalizer.detach()
        directory.name = tempfile.mkdtemp()
        directory._finalizer = weakref.finalize(directory, shutil.rmtree, directory.name, True)
    if _warns(os.environ) == "default":
        warnings.simplefilter("default")
    if os.environ.get(BELOW):
        vars(subprocess)["Popen"] = importlib.import_module("tests.warm").Below
    command = [argument for n, argument in enumerate(request["args"]) if n and (n, argument) != (1, "-u")]
    if command[:2] == COMMAND and (worker := _fork_workers()) is not None:
        _run(*worker)
    else:
        _run_as_main(request["folder"], *command)


def _run_as_main(folder: str, first: str, *rest: str) -> None:
    """`-m module`, `-c code`, or a script or folder by its path."""
    arguments = list(rest)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    place = main.__file__ = first
    if first == "-m":
        module = arguments.pop(0)
        spec = importlib.util.find_spec(module)
        assert spec is not None
        if spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
            assert spec is not None
        main.__spec__, main.__package__ = spec, spec.parent
        place = main.__file__ = str(spec.origin)
        path, code = folder, Path(place).read_text()
    elif first == "-c":
        code = arguments.pop(0)
        path = ""
        del main.__file__
    else:
        script = Path(first) / "__main__.py" if Path(first).is_dir() else Path(first)
        path, code = str(script.parent), script.read_text()
        main.__file__ = str(script)
    sys.path[0], sys.argv[:] = path, [place, *arguments]
    exec(compile(code, place, "exec"), vars(main))


def _fork_workers() -> tuple[dict[str, Any], list[int]] | None:
    """Have the workers of this watcher forked from a copy of the process as it is now; returns a request in a worker."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        die_with_parent(signal.SIGKILL)
        ours.close()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nowhere, number)
        os.close(nowhere)
        for number in (signal.SIGINT, signal.SIGTERM):  # which a worker takes no notice of either
            signal.signal(number, signal.SIG_IGN)
        if (request := serve(theirs)) is None:
            os._exit(0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return request
    theirs.close()
    atexit.register(ours.close)
    from dr_validate.watcher import worker_process

    def start_worker(args: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        if options["env"].get("HF_HUB_OFFLINE") == "1" and _like(options["env"], os.environ):
            with contextlib.suppress(OSError, struct.error):  # ended by whoever ends this process' children
                return Forked(ours, args, **options)
        return subprocess.Popen(args, **options)

    vars(worker_process)["subprocess"] = types.SimpleNamespace(**{**vars(subprocess), "Popen": start_worker})
    return None


if __name__ == "__main__":
    main()
