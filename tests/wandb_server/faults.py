"""What goes wrong on demand: which requests a fault is for, and what happens to their answers."""

import fnmatch
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Action = Literal["status", "error", "drop", "cut", "slow", "truncate", "flip", "hang", "delete"]


@dataclass(kw_only=True)
class Fault:
    """The next `times` requests (all of them if None) that match, after `skip` others, go wrong.

    `route`, `operation`, `method`, `path` and `key` (the API key that came along, empty for none) are shell patterns;
    `contains` is text that stands in the URL or the decoded body. Routes: `graphql`, `file_stream`, `upload`, `file`,
    `manifest`, `run_file`, `artifacts_v2`, `other`. What each action does:

    status    answer `status` (with `retry_after_s`), the request is not carried out; 403 = an expired URL, 401 = a rejected key
    error     answer HTTP 200 with GraphQL `errors` (`message`), not carried out
    drop      close the connection without an answer; carried out before that if `carry_out`
    cut       all headers, then `share` of the body, then the connection breaks
    slow      the body trickles at `bytes_per_s`
    truncate  `share` of the body under a Content-Length that fits it
    flip      the byte at `share` of the body has all its bits inverted
    hang      no answer until the fault is cleared, then the connection closes; carried out before that if `carry_out`
    delete    the version `artifact` (`collection:vN`) is deleted as if by somebody else, then the request is carried out
    """

    action: Action
    route: str = "*"
    operation: str = "*"
    method: str = "*"
    path: str = "*"
    key: str = "*"
    contains: str = ""
    times: int | None = 1
    skip: int = 0
    status: int = 503
    retry_after_s: float | None = None
    message: str = "refused on demand"
    share: float = 0.5
    bytes_per_s: float = 1000.0
    carry_out: bool = False
    artifact: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "Fault":
        unknown = set(given) - {part.name for part in fields(cls)}
        if unknown:
            raise ValueError(f"a fault has no {sorted(unknown)}")
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a fault's patterns look at; `content` is the URL and the decoded body."""

    method: str
    route: str
    operation: str
    path: str
    key: str
    content: bytes


class Faults:
    """The faults in force; the first that matches takes a request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self.cleared = threading.Event()
        self.num_taken = 0

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    @property
    def left(self) -> list[str]:
        """Those that nothing has used up, in words."""
        with self._lock:
            return [
                f"{f.action} {f.status} {f.route} {f.operation} {f.contains}, {f.times} times after {f.skip}"
                for f in self._faults
            ]

    def clear(self) -> None:
        """Nothing goes wrong any more, and whoever hangs is let go."""
        with self._lock:
            self._faults.clear()
            self.cleared.set()
            self.cleared = threading.Event()

    def take(self, kind: Kind) -> tuple[Fault, threading.Event] | None:
        """The fault that this request meets, which then counts one down, and the event that ends a hang."""
        with self._lock:
            for fault in self._faults:
                if not _matches(fault, kind):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                self.num_taken += 1
                return fault, self.cleared
        return None


def _matches(fault: Fault, kind: Kind) -> bool:
    pairs = [(kind.method, fault.method), (kind.route, fault.route), (kind.operation, fault.operation), (kind.path, fault.path)]
    pairs.append((kind.key, fault.key))
    return fault.contains.encode() in kind.content and all(fnmatch.fnmatchcase(value, pattern) for value, pattern in pairs)
