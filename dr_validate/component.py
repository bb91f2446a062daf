"""`@component`: a class whose constructor is the schema of its YAML file.

Keyword-only, frozen, every value checked, unknown keys refused. Constructors do no I/O and their modules import no heavy
library at the top (torch, transformers, faiss, pyarrow, wandb ... only inside methods), so building a whole pipeline is
instant and an unused backend needs no package.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass

from dr_validate.files import expanded

T = TypeVar("T")


def _path_from(value: Any) -> Any:
    if value == "":
        raise ValueError("an empty path; leave the key out, or give a path")
    return expanded(value) if isinstance(value, str) else value


def _name_or_path(value: str) -> str:
    return str(expanded(value)) if value.startswith("~") else value


UserPath = Annotated[Path, BeforeValidator(_path_from)]
"""Every path that a user may type: `~` is the user's home."""
NameOrPath = Annotated[str, AfterValidator(_name_or_path)]
"""A name (`bm25`, an id on a hub) or a path, with `~` as above."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def component(cls: type[T]) -> type[T]:
    """Make `cls` a pydantic dataclass: frozen, keyword-only, `extra="forbid"`."""
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    return dataclass(cls, frozen=True, kw_only=True, config=config)  # type: ignore[return-value]  # pydantic types it as its own protocol


def fingerprint(parts: Mapping[str, Any]) -> str:
    """16 hex digits that change when any of `parts` (JSON values) does, whatever their order."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
