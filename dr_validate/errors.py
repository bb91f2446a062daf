"""Everything that dr_validate raises on purpose.

    DrValidateError(ValueError)
    ├── SetupError         the environment is wrong (device, packages, disk, a second watcher)   -> exit code 2
    │   ├── ConfigError    the configuration is wrong; carries every problem at once
    │   ├── LedgerLost     the ledger was removed or replaced while it was open: nothing can be recorded any more
    │   └── DatasetError   documents, queries or qrels are wrong; names file and line
    └── CheckpointError    this checkpoint can never be validated: one failed Report, no retry
        ├── CheckpointDeleted  it or its files were deleted before it could be fetched: reported as skipped
        ├── NoMemory       the device has no room for it; beside another checkpoint (watch.at_once) it is tried alone
        └── NotStated      neither it nor the configuration says what encoding takes: ends a run that has validated nothing yet
    Outage(OSError)        a source or tracker is out of reach; it may pass
    DeviceFailure(RuntimeError)  all devices elsewhere failed, or their processes died, again and again: an attempt less
    Interrupted(Exception)
    ├── Preempted          a baseline stopped for something more urgent; it resumes later
    ├── Stopped            the user stopped the run; the next start goes on
    └── TimedOut           one checkpoint took longer than watch.timeout_s, or stood still; counts as an attempt

Any other exception while a checkpoint is validated counts as an attempt and is tried again, up to watch.max_attempts.
A message names the place, the value and the way out: `encoder.pooling: got 'men', expected one of ['cls', 'mean']`.
"""

from collections.abc import Mapping, Sequence

WANDB_LOG_IN = "run `wandb login`, or set WANDB_API_KEY (and WANDB_BASE_URL for a server of your own)"


class DrValidateError(ValueError):
    """Base of all errors that are meant for users: printed without a traceback."""


class SetupError(DrValidateError):
    """The run cannot start or go on in this environment."""


class ConfigError(SetupError):
    """One or more problems in the configuration, each `place: what is wrong (got value)`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{count} in the configuration:", *(f"  {line}" for line in problems)]))

    def __reduce__(self) -> tuple[type, tuple[Sequence[str]]]:
        return type(self), (self.problems,)  # or else another process would make it from its message


class DatasetError(SetupError):
    """Documents, queries or qrels that cannot be used; the message names file and line where it can."""


class LedgerLost(SetupError):
    """The ledger is not the file any more that was opened; the watcher ends with this, and nobody else needs to say it."""


class CheckpointError(DrValidateError):
    """A checkpoint that will fail every time: reported failed at once, never retried."""


class CheckpointDeleted(CheckpointError):
    """A checkpoint that was there and is not any more: reported skipped, nobody's failure."""


class NoMemory(CheckpointError):
    """The device has no room now. What else runs there, a training or another checkpoint, may leave some at the next try."""


class NotStated(CheckpointError):
    """Pooling and the like, which every checkpoint of a training leaves out if one does; the message names the keys to set."""


class Outage(OSError):
    """A server cannot be reached, or asks to wait (`retry_after_s`): worth another try, never a reason to end."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeviceFailure(RuntimeError):
    """Every worker elsewhere died, or met what nobody expected, again and again; the message names the last."""


class Interrupted(Exception):
    """Work that stopped between two blocks because it was told to; nothing done so far is lost."""


class Preempted(Interrupted):
    """A baseline made room for a waiting checkpoint."""


class Stopped(Interrupted):
    """The user asked the run to stop."""


class TimedOut(Interrupted):
    """A checkpoint exceeded its time limit."""


INTERRUPTS: Mapping[str, type[Interrupted]] = {"preempted": Preempted, "stopped": Stopped, "timed_out": TimedOut}
KINDS: Mapping[str, type[Exception]] = {
    **INTERRUPTS,
    "not_stated": NotStated,
    "no_memory": NoMemory,
    "checkpoint": CheckpointError,
    "setup": SetupError,
    "device": DeviceFailure,
}
"""By the names that errors have between the watcher and the worker, the first that fits: both ends go by this."""
