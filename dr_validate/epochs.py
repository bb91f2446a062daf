"""Which sample is in use, and when a full-corpus baseline has it drawn again; opt-in, by `sampler.epochs=drift`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from dr_validate.errors import SetupError
from dr_validate.files import write_atomically
from dr_validate.values import Ranking, Sample, TestSet


class NotKept(Exception):
    """Work that is only worth doing with kept vectors needs others."""


@runtime_checkable
class EpochSampler(Protocol):
    """A sampler whose pool can follow the model."""

    @property
    def epochs(self) -> Literal["never", "drift"]:
        """Whether it does."""
        ...

    def drifted(self, sample: Sample, baseline: Ranking) -> float | None:
        """How far the model has moved away from the sample, where that is too far; None where it is not."""
        ...

    def redraw_levels(self, test_set: TestSet, seed: int, cache: Path, baseline: Ranking, epoch: int) -> Mapping[int, Sample]:
        """The samples of a later epoch by level, the deepest last; `seed` is that of the run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One after the first: the baseline of checkpoint `anchor` showed `drift`, and its ranking joined the pool."""

    number: int
    anchor: str  # digest
    anchor_step: int
    drift: float


class Epochs:
    """What a spec has been through, in one file: a restart goes on where it was, and no epoch ever comes back."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def all(self) -> tuple[Epoch, ...]:
        """Oldest first, without epoch 0. Raises SetupError for a damaged file."""
        try:
            return tuple(Epoch(**entry) for entry in json.loads(self._file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return ()
        except (ValueError, TypeError) as error:
            raise SetupError(
                f"{self._file} is damaged ({error}), so that nobody knows which sample is in use; put it back from a copy, or "
                "begin anew with another seed or state_dir"
            ) from error

    def add(self, epoch: Epoch) -> None:
        """Open one more."""
        before = self.all()
        assert epoch.number == len(before) + 1, f"epoch {epoch.number} after {len(before)}"
        entries = [asdict(each) for each in (*before, epoch)]
        write_atomically(self._file, json.dumps(entries, indent=2) + "\n")
