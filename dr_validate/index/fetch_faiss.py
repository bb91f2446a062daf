"""faiss, or the way to get it."""

import importlib.util
from typing import Any

from dr_validate.errors import SetupError

WAY_OUT = "pip install 'dr_validate[cpu]' or pip install 'dr_validate[gpu]'"


def has_faiss() -> bool:
    """Whether it is installed; not imported for that."""
    try:
        return importlib.util.find_spec("faiss") is not None
    except ValueError:  # something else stands in its place
        return False


def import_faiss() -> Any:
    """The module. Raises SetupError where it is not installed: neither of its two packages can be a base dependency."""
    try:
        import faiss
    except ImportError as error:
        raise SetupError(
            f"index: faiss cannot be imported ({error}); {WAY_OUT}, or set index=torch, which gives the ranking of index=flat"
        ) from error
    return faiss
