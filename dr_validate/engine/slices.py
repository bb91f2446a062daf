"""A workload's texts cut into slices, and who takes which of them next."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dr_validate.stages import TextBlocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Consecutive texts of one block: what is encoded between two looks at the control."""

    block: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def part(self) -> slice:
        """Positions among all texts."""
        return slice(self.start, self.stop)


def cut(blocks: TextBlocks, size: int) -> list[Slice]:
    """All texts, at most `size` at a time; a slice never crosses the border of a block."""
    slices = []
    for number in range(len(blocks)):
        block = blocks.positions(number)
        for start in range(block.start, block.stop, size):
            slices.append(Slice(block=number, start=start, stop=min(start + size, block.stop)))
    return slices


class Dealer:
    """Gives each slice to exactly one of several members, to whoever asks first.

    A member has a block to itself as long as there are untouched ones: two that took turns in one block would both tokenize
    it, and wait for each other's kept vectors. After that it takes the last slice of whoever has most left.
    """

    def __init__(self, slices: Sequence[Slice], members: int) -> None:
        blocks: dict[int, deque[Slice]] = {}
        for piece in slices:
            blocks.setdefault(piece.block, deque()).append(piece)
        self._untouched = deque(blocks.values())
        self._own: list[deque[Slice]] = [deque() for _ in range(members)]

    def next(self, member: int) -> Slice | None:
        """What this member is to do next; None when nothing is left."""
        if not self._own[member] and self._untouched:
            self._own[member] = self._untouched.popleft()
        if self._own[member]:
            return self._own[member].popleft()
        richest = max(self._own, key=len)
        return richest.pop() if richest else None
