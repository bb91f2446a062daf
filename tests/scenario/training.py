"""The two sides of a scenario: a training that logs checkpoints through the real SDK, and the command line that follows."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.processes import LIMIT_S, wait_for
from tests.scenario.held import Held
from tests.tracker.watching import QUICK
from tests.wandb_server.fixture import ServerHandle

NUM_CHECKPOINTS = 8
STEPS = [100 * (n + 1) for n in range(NUM_CHECKPOINTS)]
TRAINER_KEY = "fedcba9876543210fedcba9876543210fedcba98"  # so that faults can tell the watcher from the training
TRAINER_FILES = ("optimizer.pt", "scheduler.pt", "training_args.bin")
WANTED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
TRAIN = """
import contextlib, sys, wandb
settings = dict(project="retrieval", id="t1", name="trainer", group="tas-b", job_type="train", tags=["a"])
with wandb.init(**settings, config={"lr": 0.1}) as run:
    run.define_metric("train/*", step_metric="train/global_step")
    print("open", flush=True)
    for line in sys.stdin:
        step, folder = line.split(maxsplit=1)
        run.log({"train/loss": 1 / int(step), "train/global_step": int(step)})
        version = wandb.Artifact("model-t1", "model", metadata={"train/global_step": int(step)})
        version.add_dir(folder.strip(), policy="immutable", skip_cache=True)
        logged = run.log_artifact(version, aliases=[f"checkpoint_global_step_{step}"])
        with contextlib.suppress(ValueError):  # a watcher may have found it, and a fault deleted it, before this asks for it
            logged.wait()
        print(step, flush=True)
"""


class Training:
    """A process that logs a checkpoint when it is told to; it ends with the block."""

    def __init__(self, server: ServerHandle, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._process = server.start_python(TRAIN, {"WANDB_API_KEY": TRAINER_KEY, **QUICK})
        self._num_logged = 0

    def __enter__(self) -> "Training":
        self._expect("open")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def log(self, num_checkpoints: int = 1) -> None:
        """The next ones, each committed when this returns."""
        for folder in self._folders[self._num_logged : self._num_logged + num_checkpoints]:
            self._num_logged += 1
            step = 100 * self._num_logged
            self._input.write(f"{step} {folder}\n")
            self._input.flush()
            self._expect(str(step))

    def end(self) -> None:
        """As a training ends that has no more to log."""
        _, errors = self._process.communicate(timeout=LIMIT_S)
        assert self._process.returncode == 0, errors

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _expect(self, line: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        assert said == line, (said, self._process.communicate())


class Watcher:
    """`python -m dr_validate` that follows the training; started again, it goes on in the same folder."""

    def __init__(self, server: ServerHandle, command_line: Any, collection: Path, *overrides: str) -> None:
        self._command_line = command_line
        self.folder = Path(command_line.folder)
        self.stop_file = self.folder / "over"
        self.log_file = self.folder / "watcher.log"
        command_line.environment.update({**server.environment(**QUICK), "OMP_NUM_THREADS": "1"})
        arguments = ["source=wandb", "source.project=retrieval", "source.api_timeout_s=600", "source.timeout_s=600"]
        arguments += ["dataset=beir", f"dataset.path={collection}", "sampler=random", "sampler.fraction=0.5"]
        arguments += ["fidelity.baseline=off", "metrics=[mrr@10]", "encoder.pooling=mean", "encoder.normalize=true"]
        arguments += ["tracker=wandb", "tracker.project=retrieval", "tracker.timeout_s=600", "device=cpu"]
        arguments += [
            "watch.order=oldest_first",
            "watch.poll_s=0.5",
            "watch.exit_timeout_s=600",
            f"watch.stop_file={self.stop_file}",
        ]
        self._arguments = [*arguments, *overrides]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        with self.log_file.open("a") as log:
            self.process = self._command_line.start(*self._arguments, stdout=log, stderr=log)

    def kill(self) -> None:
        """As the kernel would: no time for anything."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(LIMIT_S)

    def stop(self) -> int:
        """End it when it has nothing more to do; its exit code."""
        self.stop_file.touch()
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(LIMIT_S)

    @property
    def said(self) -> str:
        return self.log_file.read_text()

    @property
    def reports(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = self._command_line.reports()
        return found

    def wait_for_reports(self, num_reports: int) -> None:
        self.wait_for(lambda: len(self.reports) >= num_reports)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Fails with what it said; at once if it has ended."""
        process = self.process
        assert process is not None
        try:
            wait_for(lambda: condition() or process.poll() is not None)
            assert condition(), f"it ended with exit code {process.poll()}"
        except AssertionError as error:
            raise AssertionError(f"{error}; the watcher said:\n{self.said}") from None


@dataclass(frozen=True)
class Undisturbed:
    """What is left when nothing went wrong; `trained` is the training run as it was before the watcher's last words."""

    server: ServerHandle
    watcher: Watcher
    held: Held
    trained: list[Held]


def write_trained(folder: Path, write_checkpoint: Callable[..., Path], num_checkpoints: int) -> list[Path]:
    """Folders as the Hugging Face Trainer uploads them: two thirds of the bytes are the optimizer's."""
    folders = []
    for n in range(num_checkpoints):
        checkpoint = write_checkpoint(folder / f"checkpoint-{100 * (n + 1)}", seed=n, step=100 * (n + 1))
        size = (checkpoint / "model.safetensors").stat().st_size
        for name in TRAINER_FILES:
            (checkpoint / name).write_bytes(json.dumps([name, n]).encode() * (2 * size // 30 if name == "optimizer.pt" else 9))
        folders.append(checkpoint)
    return folders
