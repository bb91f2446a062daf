"""Which of the rows that were logged the server is known to have, and when it is time to ask.

The SDK says nothing of it: after an answer that it takes for final (401, 403, 404) it sends no more rows, and nobody hears.
"""

import time

CONFIRM_AFTER_S = 60.0  # the SDK sends every 15 s
LOST_AFTER_S = 300.0


class Lost(OSError):
    """Rows that the SDK took long ago have not arrived, though the server answers."""


class Arrivals:
    """Rows by the id of their Report."""

    def __init__(self) -> None:
        self.arrived: set[str] = set()
        self._logged: dict[str, float] = {}  # when: monotonic seconds
        self._next_look = 0.0

    def __contains__(self, key: object) -> bool:
        """Whether it was logged, by this process or before it."""
        return key in self._logged or key in self.arrived

    @property
    def is_complete(self) -> bool:
        return self._logged.keys() <= self.arrived

    def log(self, key: str) -> None:
        """The SDK has taken it."""
        self._logged[key] = time.monotonic()

    def is_time_to_look(self) -> bool:
        """Whether something should have arrived by now; not true again for a while."""
        now = time.monotonic()
        if now < self._next_look or not any(when < now - CONFIRM_AFTER_S for when in self._missing()):
            return False
        self._next_look = now + CONFIRM_AFTER_S
        return True

    def require(self) -> None:
        """Raises Lost for what should have arrived long ago."""
        limit = time.monotonic() - LOST_AFTER_S
        if num_lost := sum(when < limit for when in self._missing()):
            raise Lost(f"{num_lost} rows have not arrived in {LOST_AFTER_S:.0f} s, though the server answers")

    def _missing(self) -> list[float]:
        return [when for key, when in self._logged.items() if key not in self.arrived]
