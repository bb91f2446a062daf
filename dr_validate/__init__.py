"""Validate checkpoints of dense retrievers while they train. For notebooks: `from dr_validate import evaluate, reports`."""

import importlib
from typing import Any

__all__ = ["evaluate", "reports"]


def __getattr__(name: str) -> Any:
    """Import what is asked for by name when it is: the package itself stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'dr_validate' has no attribute {name!r}")
    return getattr(importlib.import_module("dr_validate.cli.python"), name)
