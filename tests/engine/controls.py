"""Who lets a ranking go on, or not, and what is ranked."""

from dataclasses import dataclass, field

from dr_validate.errors import Preempted
from dr_validate.values import Checkpoint


@dataclass
class Unhurried:
    """A control that never stops anything."""

    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def check(self) -> None:
        pass

    def progress(self, phase: str, done: int, total: int) -> None:
        self.seen.append((phase, done, total))


class GivesWay(Unhurried):
    """Lets some slices through."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.slices = slices

    def check(self) -> None:
        if len(self.seen) >= self.slices:
            raise Preempted


def checkpoint_of(step: int) -> Checkpoint:
    name = f"checkpoint-{step}"
    digest, at = f"sha256:{step:04x}", "2026-11-21T03:12:00Z"
    return Checkpoint(name=name, version=name, digest=digest, step=step, step_from="name", created_at=at, uri=name)
