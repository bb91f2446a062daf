"""The words of an encoder contract: what a user states, what a checkpoint says, and what follows from both."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dr_validate.errors import CheckpointError
from dr_validate.values import Side

CONTRACT_FILE = "dr_validate.json"  # beside the weights: what the training knows, and no other file of the checkpoint says

PoolingName = Literal["cls", "mean", "max", "last", "weighted_mean", "mean_sqrt_len"]
Kind = Literal["transformers", "sentence-transformers", "two towers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """What the configuration says about the encoder; None leaves it to the checkpoint."""

    pooling: PoolingName | None = None
    normalize: bool | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None
    query_max_length: int | None = None
    document_max_length: int | None = None
    tokenizer: Path | None = None
    base_model: Path | None = None
    config: Path | None = None  # the file
    weights_prefix: str | None = None
    native: bool = False

    def prefix(self, side: Side) -> str | None:
        """The prefix stated for one side."""
        return self.query_prefix if side == "query" else self.document_prefix

    def max_length(self, side: Side) -> int | None:
        """The maximum length stated for one side."""
        return self.query_max_length if side == "query" else self.document_max_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One module after pooling; its weights are in `folder`, under `weights_prefix`. Only the fields of its kind count."""

    kind: Literal["dense", "layer_norm", "normalize"]
    folder: Path
    in_features: int = 0
    out_features: int = 0
    bias: bool = True
    activation: str = "Identity"
    residual: bool = False
    weights_prefix: str = ""
    file: str | None = None  # None: as the model's weights are named

    def describe(self) -> str:
        """Short words for the Report."""
        origin = f" of {self.weights_prefix}*" if self.weights_prefix else ""
        if self.kind == "dense":
            return f"dense {self.in_features}->{self.out_features} {self.activation}{origin}"
        return f"{self.kind}{origin}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSpec:
    """How one side's text becomes a vector: prefix, tokens, transformer, pooling, heads, truncation, normalisation.

    `architecture` names the transformer. `max_length` counts special tokens and the prefix. `weights` is the folder of the
    transformer, which for an adapter is that of its base; of its weights those under `weights_prefix` are the transformer's,
    and `config` is its config.json.
    Prefix tokens are left out of pooling unless `include_prompt`. `warnings`: where what is stated contradicts the checkpoint.
    """

    weights: Path
    adapter: Path | None = None
    tokenizer: Path
    config: Path
    weights_prefix: str = ""
    lower_case: bool = False
    pooling: tuple[PoolingName, ...]  # more than one: concatenated
    include_prompt: bool = True
    heads: tuple[Head, ...] = ()
    truncate_dim: int | None = None
    normalize: bool
    prefix: str
    max_length: int
    max_length_from: str
    architecture: str
    static: bool = False  # a table of word vectors in place of a transformer
    warnings: tuple[str, ...] = ()

    def unused(self, names: Iterable[str]) -> list[str]:
        """Those of the names of weights that none of its heads has."""
        own = tuple(head.weights_prefix for head in self.heads if head.weights_prefix and head.folder == self.weights)
        own += ("classifier.",) if "embeddingHead." in own else ()  # ANCE's class has one from its parent, and never calls it
        return [name for name in names if not (own and name.startswith(own))]

    def describe(self) -> dict[str, Any]:
        """JSON values for the Report; no paths, so that equal contracts look equal."""
        return {
            "architecture": self.architecture,
            "pooling": "+".join(self.pooling),
            "normalize": self.normalize,
            "heads": [head.describe() for head in self.heads],
            "truncate_dim": self.truncate_dim,
            "prefix": self.prefix,
            "include_prompt": self.include_prompt,
            "lower_case": self.lower_case,
            "max_length": self.max_length,
            "max_length_from": self.max_length_from,
            "adapter": self.adapter is not None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What a checkpoint is, as far as files and configuration say it: one tower for each side."""

    kind: Kind
    query: TowerSpec
    document: TowerSpec

    def tower(self, side: Side) -> TowerSpec:
        """The tower that encodes one side."""
        return self.query if side == "query" else self.document

    def describe(self) -> dict[str, Any]:
        """JSON values for the Report."""
        sides = {"query": self.query.describe(), "document": self.document.describe()}
        return {"kind": self.kind, **sides, **({"warnings": list(self.warnings)} if self.warnings else {})}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of both sides, each once."""
        return tuple(dict.fromkeys([*self.query.warnings, *self.document.warnings]))


# Of EncoderSpec what a CONTRACT_FILE may state, with the type of each.
CONTRACT_KEYS: Mapping[str, type[Any]] = {
    "pooling": str,
    "normalize": bool,
    "query_prefix": str,
    "document_prefix": str,
    "query_max_length": int,
    "document_max_length": int,
}


def encoder_settings(said: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What `said` (the content of a CONTRACT_FILE) states of an EncoderSpec; null states nothing.

    Raises CheckpointError, beginning with `place`, for a key or value that is not known: it may change every vector.
    """
    if unknown := sorted(said.keys() - CONTRACT_KEYS.keys()):
        raise CheckpointError(f"{place}: {unknown[0]}: no such key, expected some of {', '.join(CONTRACT_KEYS)}")
    stated = {key: value for key, value in said.items() if value is not None}
    for key, value in stated.items():
        kind = CONTRACT_KEYS[key]
        if type(value) is not kind or (kind is int and value < 1):
            expected = "a positive whole number" if kind is int else {bool: "true or false", str: "a text"}[kind]
            raise CheckpointError(f"{place}: {key}: got {value!r}, expected {expected}")
    if (pooling := stated.get("pooling")) is not None and pooling not in get_args(PoolingName):
        raise CheckpointError(f"{place}: pooling: got {pooling!r}, expected one of {list(get_args(PoolingName))}")
    return stated


def contradiction(key: str, stated: object, said: object, place: str = "") -> list[str]:
    """A warning where the configuration states something else than the checkpoint says; None says nothing."""
    if stated is None or said is None or stated == said:
        return []
    where = f" ({place})" if place else ""
    return [f"encoder.{key}={_shown(stated)} is used, though the checkpoint says {_shown(said)}{where}"]


def _shown(value: object) -> str:
    """As it is typed on the command line."""
    return value if isinstance(value, str) and value and value == value.strip() else json.dumps(value)
