"""`@component`: a class whose constructor is the schema of its YAML file.

Keyword-only, frozen, every value checked, unknown keys refused. Constructors do no I/O and their modules import no heavy
library at the top (torch, transformers, faiss, pyarrow, wandb ... only inside methods), so building a whole pipeline is
instant and an unused backend needs no package.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def component(cls: type[T]) -> type[T]:
    """Make `cls` a pydantic dataclass: frozen, keyword-only, `extra="forbid"`."""
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    return dataclass(cls, frozen=True, kw_only=True, config=config)  # type: ignore[return-value]  # pydantic types it as its own protocol


def fingerprint(parts: Mapping[str, Any]) -> str:
    """16 hex digits that change when any of `parts` (JSON values) does, whatever their order."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
