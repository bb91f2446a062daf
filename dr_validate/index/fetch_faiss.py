"""faiss, or the way to get it."""

from typing import Any

from dr_validate.errors import SetupError


def import_faiss() -> Any:
    """The module. Raises SetupError where it is not installed: neither of its two packages can be a base dependency."""
    try:
        import faiss
    except ImportError as error:
        raise SetupError(
            f"index: faiss cannot be imported ({error}); install it with pip install 'dr_validate[cpu]' or "
            "pip install 'dr_validate[gpu]', or set index=torch, which gives the same ranking"
        ) from error
    return faiss
