"""From the `device` key to a device that exists."""

from dr_validate.errors import SetupError


def resolve_device(wanted: str) -> str:
    """`auto` becomes `cuda:0` where there is one, else `cpu`. Raises SetupError naming what exists. Imports torch."""
    import torch

    count = torch.cuda.device_count()
    known = ["cpu", *(f"cuda:{number}" for number in range(count))]
    if wanted == "auto":
        return known[1] if count else "cpu"
    device = "cuda:0" if wanted == "cuda" else wanted
    if device not in known:
        why = "" if torch.version.cuda or count else " (this torch is a CPU build)"
        raise SetupError(f"device: got {wanted!r}, but this machine has {known}{why}; set device=auto or one of these")
    return device
