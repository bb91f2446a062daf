"""Is a safetensors file all there? Its header says how long it must be; no weight is read."""

import json
from pathlib import Path

from dr_validate.source.remembered import by_stamp

MAX_HEADER_BYTES = 4 << 20  # of 30,000 tensors; parsed, a header takes up to 25 times its size. The format allows 100 MB


@by_stamp
def what_is_wrong(path: Path) -> str | None:
    """What keeps the file from being whole, in words, or None. Reads the header only."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            return f"its header is not all there ({size:,} bytes so far)"
        if length > MAX_HEADER_BYTES:
            return f"its header has {length:,} bytes, more than {MAX_HEADER_BYTES:,}: save the weights in several files"
        header = stream.read(length)
    end = _data_bytes(header)
    if end is None:
        return "its header cannot be read: being written, or not a safetensors file"
    if size != (expected := 8 + length + end):
        return f"{size:,} of {expected:,} bytes"
    return None


def _data_bytes(header: bytes) -> int | None:
    try:
        tensors = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return max(ends, default=0) if all(isinstance(end, int) for end in ends) else None
