"""How a budget is shared out: a certain pool, a ring around it with high odds, and the rest of the corpus with low ones."""

import math
from dataclasses import dataclass

LEAST_REST = 40  # fewer say nothing about what the sample leaves out, and the estimator would give no interval
LEAST_RING = 2  # one document has no spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Documents of a corpus by what is known before the draw."""

    judged: int
    others: int
    candidates: int  # of the others: those that the runs name, and so put in pool order


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Of the budget beyond the judged documents: what goes to the pool and what to the ring, whose documents have the odds
    `ring_inclusion`; the rest of the corpus gets what remains."""

    pool: float
    ring: float
    ring_inclusion: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Strata:
    """Documents in each stratum beside the judged ones, and how many of them are drawn; the pool is in as a whole."""

    pool: int
    ring: int
    ring_drawn: int
    rest: int
    rest_drawn: int

    @property
    def odds(self) -> tuple[float, float, float]:
        """Of a document in the pool, the ring, the rest (1 where there is none)."""
        return 1.0, self.ring_drawn / self.ring if self.ring else 1.0, self.rest_drawn / self.rest if self.rest else 1.0

    def __str__(self) -> str:
        ring = f"{self.ring_drawn} of {self.ring} around it, " if self.ring else ""
        return f"a pool of {self.pool}, {ring}{self.rest_drawn} of the other {self.rest}"


def divide(budget: int, population: Population, shares: Shares) -> Strata | None:
    """Share out `budget` documents; None where that leaves fewer than 40 for a rest of which not all are in.

    As the budget grows, the pool, pool and ring together, and the rest sample never shrink. What pool and ring have no
    candidates for goes to the rest. A ring whose odds would not be above the rest's is merged with it: no two strata have
    the same odds below 1.
    """
    room = budget - population.judged
    if room < 0:
        return None
    pool_wanted, end_wanted = _part(shares.pool, room), _part(shares.pool + shares.ring / shares.ring_inclusion, room)
    pool, end = min(pool_wanted, population.candidates), min(end_wanted, population.candidates)
    ring, ring_drawn = end - pool, _part(shares.pool + shares.ring, room) - pool_wanted
    if end < end_wanted:  # fewer in the ring, at the same odds
        ring_drawn = min(ring_drawn, _part(shares.ring_inclusion, ring))
    rest, rest_drawn = population.others - end, room - pool - ring_drawn
    if ring_drawn < LEAST_RING or ring_drawn * rest <= rest_drawn * ring:
        ring, ring_drawn, rest, rest_drawn = 0, 0, population.others - pool, room - pool
    if rest_drawn < min(LEAST_REST, rest):
        return None
    return Strata(pool=pool, ring=ring, ring_drawn=ring_drawn, rest=rest, rest_drawn=rest_drawn)


def _part(share: float, whole: int) -> int:
    return math.floor(round(share * whole, 6))  # 0.7 * 10 is 7, not 6
