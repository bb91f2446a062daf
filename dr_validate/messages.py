"""What the processes of several devices say to each other: a line of JSON, then the bytes of its arrays."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

PART_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A request or its answer; each request has exactly one answer, in the order of the requests."""

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one member of a team says."""

    member: int
    message: Message


class Share(Protocol):
    """One device's part of a ranking."""

    def answer(self, request: Message) -> Message:
        """Do what is asked for. Raises what that raises."""
        ...


class Team(Protocol):
    """Processes with a device each that have the same checkpoint and workload in hand; members are numbered from 0."""

    @property
    def names(self) -> Sequence[str]:
        """The devices."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet."""
        ...

    def ask(self, member: int, request: Message) -> None:
        """Send a request to the `Share` of this member; does not wait."""
        ...

    def answer(self, timeout_s: float) -> Answer | None:
        """The next answer, None if there is none within the time. Raises what a member met, and DeviceFailure if it died."""
        ...


def write_message(stream: IO[bytes], message: Message) -> None:
    """Write and flush. Raises BrokenPipeError if nobody reads any more."""
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in message.arrays.items()}
    header = {"kind": message.kind, "facts": dict(message.facts), "arrays": shapes}
    stream.write(json.dumps(header).encode() + b"\n")
    for array in message.arrays.values():
        stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    stream.flush()


def read_message(stream: IO[bytes]) -> Message | None:
    """The next message; None where the stream ends, within a message, too: its writer died."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    arrays = {}
    for name, (dtype, shape) in header["arrays"].items():
        content = bytearray(math.prod(shape) * np.dtype(dtype).itemsize)  # writable, as torch wants its arrays
        if _fill(stream, memoryview(content)) < len(content):
            return None
        arrays[name] = np.frombuffer(content, dtype=dtype).reshape(shape)
    return Message(kind=header["kind"], facts=header["facts"], arrays=arrays)


def _fill(stream: IO[bytes], into: memoryview) -> int:
    """How many bytes came before the stream ended."""
    done = 0
    while done < len(into) and (part := stream.read(min(len(into) - done, PART_BYTES))):
        into[done : done + len(part)] = part
        done += len(part)
    return done
