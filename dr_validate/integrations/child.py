"""The watcher beside a training: `python -m dr_validate`, started by the trainer's process, gone with it, its log in a file.

As a program (`python -m dr_validate.integrations.child PID key=value ...`) it is that command line, and ends with process PID.
"""

import contextlib
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import Run, build, check_datasets
from dr_validate.errors import DrValidateError, SetupError
from dr_validate.ledger.ledger import Ledger
from dr_validate.process import SETUP_IS_WRONG, die_with_parent
from dr_validate.values import Report
from dr_validate.watcher.lock import holder

POLL_S = 0.25  # of a file's size, by a thread of its own
STOP_S = 15.0  # beyond watch.exit_timeout_s, until it is killed
MAX_STARTS = 5  # without a result between
LAST_WORDS = 2000  # characters of its log
# What tells a process its part in the training: the watcher has none, and no run of its own to go on with.
RANKS = re.compile(
    r"RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|(LOCAL|GROUP|ROLE|NODE)_(RANK|WORLD_SIZE|NAME)|GROUP_WORLD_SIZE|ROLE_\w+|"
    r"(TORCHELASTIC|ACCELERATE|FSDP|OMPI|PMI|PMIX|SLURM_STEP)_\w+|SLURM_(PROCID|LOCALID|NTASKS)|"
    r"WANDB_(SERVICE|RUN_ID|RESUME|NAME|RUN_GROUP|JOB_TYPE)"
)
CLAIMED = re.compile(r"is in use for spec (\w+) by(?: process (\d+))?")
log = logging.getLogger(__name__)


def main() -> None:
    """The command line without its first argument, which is the process to end with."""
    die_with_parent(signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):  # it ended before the kernel was told
        return
    sys.argv[:2] = ["dr_validate"]
    from dr_validate.__main__ import main as run

    run()


def child_environment(environment: Mapping[str, str], visible: str | None = None) -> dict[str, str]:
    """Without ranks of the training; `visible`: the GPUs that it sees, None for the trainer's."""
    kept = {key: value for key, value in environment.items() if not RANKS.fullmatch(key)}
    return kept if visible is None else {**kept, "CUDA_VISIBLE_DEVICES": visible}


def compose(overrides: Sequence[str]) -> Run:
    """What the command line makes of `overrides`, every component checked, data set files looked for; nothing is loaded.

    Composed in a process of its own, as a training may be a Hydra program itself. Raises SetupError with every problem.
    """
    command = [sys.executable, "-m", "dr_validate", *overrides, "--cfg", "job"]
    done = subprocess.run(command, env=child_environment(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError((done.stderr or done.stdout).strip())
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.create(done.stdout), resolve=True)
    assert isinstance(config, dict)
    run = build({str(key): value for key, value in config.items()})
    check_datasets(run)
    return run


class WatcherChild:
    """One watcher for one training; `latest` holds the Reports of its spec, as the ledger has them.

    Another process that works on the same spec in the same state_dir is used in its place, and not stopped.
    """

    def __init__(self, overrides: Sequence[str], run: Run, places: Sequence[Path], visible: str | None) -> None:
        """`places`: where checkpoints of the training lie, the first for the log. `visible`: see child_environment."""
        self._places, log_file = [place.resolve() for place in places], places[0] / ".dr_validate" / "watcher.log"
        self.state_dir, self.log_file = run.settings.state_dir.absolute(), log_file
        self.latest: tuple[Report, ...] = ()
        self.by_collection: dict[str, list[Report]] = {}  # of a suite, by digest: those of its collections that are done
        self.version = 0  # counts changes of `latest`
        self.spec: str | None = None
        self._command = [sys.executable, "-m", "dr_validate.integrations.child", str(os.getpid()), *overrides]
        self._environment = child_environment(os.environ, visible)
        self._exit_s = run.watch.exit_timeout_s + STOP_S
        self._process: subprocess.Popen[bytes] | None = None
        self._starts, self._starts_of = 0, -1
        self._is_foreign, self._is_suite = False, bool(run.members)
        self._closing = threading.Event()
        self._candidate: str | None = None
        self._seen = -1  # size of reports.jsonl when the ledger was read
        self._thread = threading.Thread(target=self._read, name="dr_validate-results", daemon=True)

    def start(self) -> None:
        """From the main thread: the watcher ends with the thread that started it."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as stream:
            self._begun = stream.tell()
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": stream}
            # In a session of its own: Ctrl-C is for the trainer, which ends it.
            self._process = subprocess.Popen(self._command, env=self._environment, start_new_session=True, **streams)
        self._starts = self._starts + 1 if self._starts_of == self.version else 1
        self._starts_of = self.version
        if not self._thread.is_alive():
            self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the watcher, if this process has one that lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def check(self) -> bool:
        """Start it again where it has died; false where that does not help any more. Raises SetupError for what its settings,
        or its data, made it refuse before any result: a training that is validated by nobody is told early."""
        if self._is_foreign:
            return self.spec is not None and holder(self.state_dir, self.spec) is not None
        if self._process is None or (code := self._process.poll()) is None:
            return self._process is not None
        if claimed := CLAIMED.search(self.said):
            if (watched := watched_by(claimed[2])) is not None and watched not in self._places:
                raise SetupError(
                    f"state_dir: {self.state_dir} is in use by process {claimed[2]}, which watches {watched} and will not see "
                    "this training; set another state_dir"
                )
            if self._is_suite and not self._is_of_suite(claimed[1]):
                raise SetupError(
                    f"state_dir: {self.state_dir} is in use by process {claimed[2]}, which validates one collection of "
                    "the suite alone; wait for it, stop it, or set another state_dir"
                )
            self.spec, self._is_foreign, self._process = claimed[1], True, None
            log.info("validation: a watcher that runs already on %s is used (spec %s)", self.state_dir, self.spec)
            return True
        self._process = None
        if code == SETUP_IS_WRONG and not self.latest:
            raise SetupError(f"the watcher refuses ({self.log_file}):\n{self.said.strip()[-LAST_WORDS:]}")
        if self._starts >= MAX_STARTS:
            log.error("validation has ended for good (exit code %d, see %s): no further results", code, self.log_file)
            return False
        log.warning("the watcher ended with exit code %d (see %s); started again", code, self.log_file)
        self.start()
        return True

    @property
    def said(self) -> str:
        """What the process that was started last has written to its log."""
        with self.log_file.open("rb") as stream:
            stream.seek(self._begun)
            return stream.read().decode(errors="replace")

    def stop(self) -> None:
        """A clean end, with the last deliveries; after watch.exit_timeout_s and some seconds it is killed."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._exit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def revised(self) -> list[Report]:
        """All Reports, as far as is known now: what later checkpoints say of a sample changes values of earlier ones."""
        if self.spec is None:
            return []
        with Ledger(self.state_dir / "ledger.db", read_only=True) as ledger:
            return ledger.revised(self.spec)

    def _read(self) -> None:
        while not self._closing.wait(POLL_S):
            # The ledger may be being made, or be locked for longer than we wait: it is there the next time.
            with contextlib.suppress(OSError, DrValidateError, sqlite3.Error):
                self._look()

    def _look(self) -> None:
        self.spec = self.spec or self._own_spec()
        if self.spec is None:
            return
        size = (self.state_dir / "reports.jsonl").stat().st_size
        if size == self._seen:
            return
        with Ledger(self.state_dir / "ledger.db", read_only=True) as ledger:
            latest = tuple(ledger.reports(self.spec))
            done = [one for spec in self._members(ledger) for one in ledger.reports(spec) if one.metrics]
        by_collection: dict[str, list[Report]] = {}
        for one in done:
            by_collection.setdefault(one.checkpoint.digest, []).append(one)
        self.by_collection, self.latest = by_collection, latest
        self._seen = size
        self.version += 1

    def _is_of_suite(self, spec: str) -> bool:
        with Ledger(self.state_dir / "ledger.db", read_only=True) as ledger:
            return "members" in ledger.specs().get(spec, {})

    def _members(self, ledger: Ledger) -> Iterable[str]:
        return dict(ledger.specs().get(self.spec or "", {}).get("members", {})).values()

    def _own_spec(self) -> str | None:
        """The spec that the watcher has claimed for good: for a baseline it holds another one for a while."""
        with Ledger(self.state_dir / "ledger.db", read_only=True) as ledger:
            described = ledger.specs()
        held = [spec for spec in described if (holder(self.state_dir, spec) or {}).get("pid", 0) == self.pid]
        # Of a suite the mean, which nobody but its watcher has.
        found = min(
            held, key=lambda spec: (bool(described[spec].get("baseline")), "members" not in described[spec]), default=None
        )
        before, self._candidate = self._candidate, found
        return found if found == before else None


def watched_by(pid: str | None) -> Path | None:
    """The folder that a watcher on this machine was told to watch; None where that cannot be known."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        base = Path(f"/proc/{pid}/cwd").resolve()
    except OSError:
        return None
    values = [word.partition("=")[2].strip("\"'") for word in words if word.startswith("source.path=")]
    return (base / Path(values[-1]).expanduser()).resolve() if values else None


def set_of(overrides: Iterable[str]) -> dict[str, str]:
    """Keys and values as they are typed, without `+` and `++`."""
    parts = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


if __name__ == "__main__":
    main()
