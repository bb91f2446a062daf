"""The encoder: what the checkpoint says it is, joined with what is stated here, or a refusal that names the keys to set.

Pooling and normalisation are never guessed; a prefix that is stated nowhere is none. For that, JSON and the headers of weight
files are read, and stated folders are hashed; torch is imported when a model is loaded.
"""

import contextlib
import functools
import importlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dr_validate.component import UserPath, component, fingerprint
from dr_validate.encoder.backbone import Backbone, read_backbone
from dr_validate.encoder.checks import USE_STEP_VERSION, check_no_link_leaves, check_unused, read_object, weight_shapes
from dr_validate.encoder.modules import modules_tower
from dr_validate.encoder.spec import (
    CONTRACT_FILE,
    Contract,
    EncoderSpec,
    Head,
    Kind,
    TowerSpec,
    contradiction,
    encoder_settings,
)
from dr_validate.errors import CheckpointError, ConfigError, NotStated
from dr_validate.files import sha256_of_file, sha256_of_files
from dr_validate.process import importing
from dr_validate.stages import Model
from dr_validate.values import SIDES, Side

log = logging.getLogger(__name__)

# Packed MiniLM on a CPU: 1024, 2048 and 4096 are equal within noise; more only takes more memory. GPUs: scripts/GPU.md.
CPU_TOKENS = 2048
GPU_TOKENS = 32768
QUERY_FOLDER = "query_model"
DOCUMENT_FOLDERS = ("passage_model", "document_model")
# Of DPR's two encoders: the class, and what its weights begin with.
DPR: Mapping[Side, tuple[str, str]] = {
    "query": ("DPRQuestionEncoder", "question_encoder"),
    "document": ("DPRContextEncoder", "ctx_encoder"),
}
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
TOKENIZER_PATTERNS = ("config.json", "tokenizer*", "vocab.*", "*tokens*.json", "merges.txt", "bpe.codes", "*.model")


@component
class AutoEncoder:
    """Transformers, sentence-transformers, PEFT and two-tower folders to vectors; a stated value wins over the checkpoint's.

    `tokenizer` and `base_model` are folders, `config` a folder or a config.json, for checkpoints that came without. Where the
    names of weights begin with `weights_prefix` (a module of one's own, saved as a state dict), it is taken away, and weights
    without it are left out. `native`: the auto_map of config.json, which names code, is passed over for the class that
    transformers itself has for its model_type. Lengths count special tokens and the prefix of a text.
    `append_eos`: every text ends with the end-of-text token (Tevatron's flag); None: as the tokenizer does.
    `max_tokens_per_batch` counts padding where there is any; None: 2048 on the CPU, where each thread has a batch of its own,
    32768 elsewhere. It is halved when memory runs out. The Report's contract says how texts went through: `packed` without
    padding, or `padded` for architectures whose attention cannot be replaced.
    """

    pooling: Literal["cls", "mean", "max", "last", "weighted_mean"] | None = None
    normalize: bool | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None
    query_max_length: int | None = Field(default=None, ge=1)
    document_max_length: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    tokenizer: UserPath | None = None
    base_model: UserPath | None = None
    config: UserPath | None = None
    weights_prefix: str | None = None
    native: bool = False
    append_eos: bool | None = None
    max_tokens_per_batch: int | None = Field(default=None, ge=1)

    @contextlib.contextmanager
    def load(self, folder: Path, device: str, weights_of: Model | None = None) -> Iterator[Model]:
        """See `Encoder.load`. Raises CheckpointError or ConfigError before any weight is read."""
        contract = self._contract(folder)
        _import_libraries()
        from dr_validate.encoder.model import TransformerModel

        budget = self.max_tokens_per_batch or (CPU_TOKENS if device == "cpu" else GPU_TOKENS)
        with _one_thread():
            assert weights_of is None or isinstance(weights_of, TransformerModel), (
                "weights are shared between models of one kind"
            )
            stated: dict[str, Any] = {"dtype": self.dtype, "append_eos": self.append_eos, "max_tokens": budget}
            model = TransformerModel(contract, device=device, weights_of=weights_of, **stated)
        if weights_of is None:
            log.debug("loaded %s on %s: %s", folder.name, device, model.contract)
        try:
            yield model
        finally:
            model.close()
            if weights_of is None:
                _free(device)

    def check(self, folder: Path) -> None:
        """Raise what reading the contract does, and warn of nothing: that is for the process that encodes."""
        read_contract(folder, self._stated())

    def read(self, folder: Path) -> Mapping[str, Any]:
        """See `Encoder.read`: of what is stated only its effect counts, and files by their content."""
        contract = self._contract(folder)
        settings: dict[str, Any] = {"dtype": self.dtype, "append_eos": self.append_eos}
        effect: dict[str, Any] = settings | {side: _effect(contract.tower(side)) for side in SIDES}
        return {"contract": {**settings, **contract.describe()}, "vectors": fingerprint(effect)}

    def _contract(self, folder: Path) -> Contract:
        contract = read_contract(folder, self._stated())
        for warning in contract.warnings:
            if warning not in self._warned:  # once in a process, not for every checkpoint
                log.warning("%s", warning)
                self._warned.add(warning)
        return contract

    @functools.cached_property
    def _warned(self) -> set[str]:
        return set()

    def fingerprint(self) -> Mapping[str, Any]:
        """All that can change a vector; stated folders count by content, not by path."""
        stated = self._stated()
        as_they_are = ("pooling", "normalize", "query_prefix", "document_prefix", "query_max_length", "document_max_length")
        later = {
            "config": None if stated.config is None else _file_digest(stated.config),
            "weights_prefix": self.weights_prefix,
            "native": self.native or None,
        }
        return {
            **{key: value for key, value in later.items() if value is not None},  # specs without them stay what they were
            **{key: getattr(self, key) for key in (*as_they_are, "dtype", "append_eos")},
            "tokenizer": None if stated.tokenizer is None else _digest(stated.tokenizer),
            "base_model": None if stated.base_model is None else _digest(stated.base_model),
        }

    def _stated(self) -> EncoderSpec:
        folders = {"encoder.tokenizer": self.tokenizer, "encoder.base_model": self.base_model}
        problems = [f"{key}: no such folder (got {str(path)!r})" for key, path in folders.items() if path and not path.is_dir()]
        config = self.config / "config.json" if self.config and self.config.is_dir() else self.config
        if config is not None and not config.is_file():
            problems.append(f"encoder.config: no such folder with a config.json, and no such file (got {str(self.config)!r})")
        if problems:
            raise ConfigError(problems)
        return EncoderSpec(**{field.name: getattr(self, field.name) for field in fields(EncoderSpec)} | {"config": config})


def read_contract(folder: Path, stated: EncoderSpec) -> Contract:
    """The contract of the checkpoint in `folder`; what is stated wins over what the checkpoint says, and of that what its
    dr_validate.json says (see `integrations/publish.py`) over the rest.

    Raises CheckpointError where the folder cannot be used, NotStated where pooling, normalisation, a length or a base
    model are said nowhere, and where it is not clear which of several prompts is a prefix: the message names the `encoder.`
    keys that state them.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    check_no_link_leaves(folder)
    said = encoder_settings(read_object(folder / CONTRACT_FILE), str(folder / CONTRACT_FILE))
    warnings = [one for key, value in said.items() for one in contradiction(key, getattr(stated, key), value, CONTRACT_FILE)]
    joined = replace(stated, **{key: value for key, value in said.items() if getattr(stated, key) is None})
    found = _towers(folder, joined)
    return replace(found, query=replace(found.query, warnings=(*warnings, *found.query.warnings))) if warnings else found


def _towers(folder: Path, stated: EncoderSpec) -> Contract:
    if (folder / QUERY_FOLDER).is_dir():
        return _two_towers(folder, stated)
    kind: Kind = "sentence-transformers" if (folder / "modules.json").is_file() else "transformers"
    query, document = (_tower(folder, folder, side, stated) for side in ("query", "document"))
    return Contract(kind=kind, query=query, document=document)


def _two_towers(folder: Path, stated: EncoderSpec) -> Contract:
    present = [folder / name for name in DOCUMENT_FOLDERS if (folder / name).is_dir()]
    if len(present) != 1:
        wanted = " or ".join(DOCUMENT_FOLDERS)
        raise CheckpointError(f"{folder}: {QUERY_FOLDER} needs exactly one of {wanted} beside it, found {len(present)}")
    return Contract(
        kind="two towers",
        query=_tower(folder / QUERY_FOLDER, folder, "query", stated),
        document=_tower(present[0], folder, "document", stated),
    )


def _tower(folder: Path, root: Path, side: Side, stated: EncoderSpec) -> TowerSpec:
    if (folder / "modules.json").is_file():
        return modules_tower(folder, root, side, stated)
    backbone = read_backbone(folder, root, stated)
    if backbone.config["model_type"] == "dpr":
        return _dpr_tower(backbone, folder, side, stated)
    if heads := _ance_heads(backbone) or _tevatron_heads((folder, root), side):
        return _headed_tower(backbone, heads, side, stated)
    return _plain_tower(backbone, folder, side, stated)


def _plain_tower(backbone: Backbone, folder: Path, side: Side, stated: EncoderSpec) -> TowerSpec:
    """A folder of transformers alone: pooling and normalisation are not in it, so both must be stated."""
    lacking = [f"encoder.{key}" for key in ("pooling", "normalize") if getattr(stated, key) is None]
    if stated.pooling is None or stated.normalize is None:
        raise NotStated(
            f"{folder}: a plain transformers folder does not say how token vectors become one vector, and a wrong guess gives "
            f"wrong scores without an error; set {' and '.join(lacking)} as in training; if training saved modules.json, "
            f"{USE_STEP_VERSION}"
        )
    prefix = stated.prefix(side) or ""
    return backbone.tower(side, stated, {}, pooling=(stated.pooling,), normalize=stated.normalize, prefix=prefix)


def _dpr_tower(backbone: Backbone, folder: Path, side: Side, stated: EncoderSpec) -> TowerSpec:
    """One of DPR's two encoders, whose classes say what a vector is: that of the first token, projected if `projection_dim`."""
    name, key = DPR[side]
    shapes = weight_shapes(folder)
    if not any(weight.startswith(f"{key}.bert_model.") for weight in shapes):
        raise CheckpointError(
            f"{folder}: {side} vectors need a {name} of DPR, and this folder holds none (no weights {key}.bert_model.*): put "
            "the DPRQuestionEncoder into query_model/ and the DPRContextEncoder into passage_model/ of one folder. If one "
            "encoder serves both sides, save its BERT alone (its bert_model, with save_pretrained)"
        )
    heads: tuple[Head, ...] = ()
    if width := backbone.config.get("projection_dim"):
        sizes = int(backbone.config["hidden_size"]), int(width)
        prefix = f"{key}.encode_proj."
        heads = (Head(kind="dense", folder=folder, in_features=sizes[0], out_features=sizes[1], weights_prefix=prefix),)
    used = (f"{key}.bert_model.", *(head.weights_prefix for head in heads))
    check_unused(folder, [weight for weight in shapes if not weight.startswith(used)], "dpr")
    return replace(_headed_tower(backbone, heads, side, stated), weights_prefix=f"{key}.bert_model.")


def _headed_tower(backbone: Backbone, heads: tuple[Head, ...], side: Side, stated: EncoderSpec) -> TowerSpec:
    """A trainer's own heads over the first token, compared by dot product: DPR's, ANCE's, and Tevatron 1's."""
    return backbone.tower(
        side,
        stated,
        {},
        pooling=(stated.pooling or "cls",),
        normalize=bool(stated.normalize),
        heads=heads,
        prefix=stated.prefix(side) or "",
        warnings=[*contradiction("pooling", stated.pooling, "cls"), *contradiction("normalize", stated.normalize, False)],
    )


def _ance_heads(backbone: Backbone) -> tuple[Head, ...]:
    """ANCE keeps a linear layer and a layer norm beside the transformer (`RobertaDot_NLL_LN` of github.com/microsoft/ANCE)."""
    shapes = weight_shapes(backbone.weights)
    wanted = {"embeddingHead.weight", "embeddingHead.bias", "norm.weight", "norm.bias"}
    if backbone.weights_prefix or backbone.adapter is not None or not wanted <= shapes.keys():
        return ()
    (out, width), place = shapes["embeddingHead.weight"], backbone.weights
    dense = Head(kind="dense", folder=place, in_features=width, out_features=out, weights_prefix="embeddingHead.")
    return dense, Head(kind="layer_norm", folder=place, out_features=out, weights_prefix="norm.")


def _tevatron_heads(places: Iterable[Path], side: Side) -> tuple[Head, ...]:
    """Tevatron 1 keeps a linear layer for each side, or one for both, in `pooler.pt` beside `pooler_config.json`."""
    folder = next((place for place in places if (place / "pooler_config.json").is_file()), None)
    if folder is None:
        return ()
    file = "pooler.safetensors"
    if not (folder / file).is_file():
        raise CheckpointError(
            f"{folder}: pooler_config.json says that a linear layer makes the vectors, but its weights are a pickle, "
            f"pooler.pt, which can run code and is never loaded; convert it where you trust it: safetensors.torch.save_file("
            f"{{k: v.clone() for k, v in torch.load('pooler.pt', weights_only=True).items()}}, '{file}')"
        )
    shapes = weight_shapes(folder, file)
    prefix = "linear_q." if side == "query" or "linear_p.weight" not in shapes else "linear_p."
    if len(shape := shapes.get(f"{prefix}weight", ())) != 2:
        raise CheckpointError(f"{folder / file}: holds no {prefix}weight, as the linear layer of Tevatron 1 is named")
    head = Head(kind="dense", folder=folder, file=file, in_features=shape[1], out_features=shape[0], weights_prefix=prefix)
    return (replace(head, bias=f"{prefix}bias" in shapes),)


def _effect(tower: TowerSpec) -> Mapping[str, Any]:
    """All of one side that can change a vector of a checkpoint, however it came to be."""
    told = {key: value for key, value in tower.describe().items() if key != "max_length_from"}
    base = None if tower.adapter is None else _digest(tower.weights, MODEL_FILES)
    return {
        **told,
        "tokenizer": _digest(tower.tokenizer, TOKENIZER_PATTERNS),
        "config": _file_digest(tower.config),
        "weights_prefix": tower.weights_prefix,
        "base_model": base,
    }


def _digest(folder: Path, patterns: Sequence[str] = MODEL_FILES) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return sha256_of_files({path.name: _file_digest(path) for path in files})


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)  # a base model of many GiB is read once, not for every fingerprint
def _digest_of(path: Path, size: int, modified_ns: int) -> str:
    return sha256_of_file(path)


@functools.cache
def _import_libraries() -> None:
    with importing():
        for name in ("transformers.modeling_layers", "dr_validate.encoder.model"):  # and all that each model takes of theirs
            importlib.import_module(name)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Loading is many small steps, after each of which threads wait for each other: on cores that others use, for MiniLM, two
    threads took 2.3 CPU seconds and 4.6 on the wall, one 0.2 and 0.6."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _free(device: str) -> None:
    """Give memory back before the next checkpoint comes."""
    import gc

    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
    else:
        from dr_validate.encoder.cpu import release_heap

        release_heap()
