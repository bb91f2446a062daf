"""A workload's texts cut into slices, and who takes which of them next."""

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import groupby

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
    """Gives each slice to exactly one of several workers, to whoever asks first; workers come and go.

    A worker has a block to itself as long as there are untouched ones: two that took turns in one block would both tokenize
    it, and wait for each other's kept vectors. After that it takes the last slice of whoever has most left.
    """

    def __init__(self, slices: Iterable[Slice]) -> None:
        self._untouched: deque[deque[Slice]] = deque(_by_block(slices))
        self._own: dict[Hashable, deque[Slice]] = {}
        self._left = sum(map(len, self._untouched))

    def __len__(self) -> int:
        return self._left

    def next(self, worker: Hashable) -> Slice | None:
        """What this worker is to do next; None when nothing is left."""
        own = self._own.setdefault(worker, deque())
        if not own and self._untouched:
            own.extend(self._untouched.popleft())
        self._left -= self._left > 0
        if own:
            return own.popleft()
        richest = max(self._own.values(), key=len)
        return richest.pop() if richest else None

    def following(self, worker: Hashable) -> Slice | None:
        """What it would be given after that, as far as can be known."""
        block = self._own.get(worker) or (self._untouched[0] if self._untouched else ())
        return block[0] if block else None

    def give_back(self, worker: Hashable, slices: Iterable[Slice]) -> None:
        """This worker is gone: what it had not begun, and `slices`, are for others, before all else."""
        begun = list(slices)
        self._left += len(begun)
        mine = [*self._own.pop(worker, ()), *begun]
        self._untouched.extendleft(reversed(_by_block(sorted(mine, key=lambda piece: piece.start))))


def _by_block(slices: Iterable[Slice]) -> list[deque[Slice]]:
    return [deque(group) for _, group in groupby(slices, key=lambda piece: piece.block)]
