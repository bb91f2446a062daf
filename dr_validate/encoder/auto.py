"""The encoder: what the checkpoint says it is, or what is stated here, or a refusal; never a guess."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dr_validate.component import UserPath, component, fingerprint
from dr_validate.encoder.contract import read_contract
from dr_validate.encoder.spec import Contract, EncoderSpec, TowerSpec
from dr_validate.errors import ConfigError
from dr_validate.files import sha256_of_file, sha256_of_files
from dr_validate.stages import Model
from dr_validate.values import SIDES

log = logging.getLogger(__name__)

# Packed MiniLM on a CPU: 1024, 2048 and 4096 are equal within noise; more only takes more memory. Not measured on a GPU.
CPU_TOKENS = 2048
GPU_TOKENS = 32768
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

    def read(self, folder: Path) -> Mapping[str, Any]:
        """See `Encoder.read`: of what is stated only its effect counts, and files by their content."""
        contract = self._contract(folder)
        said: dict[str, Any] = {"dtype": self.dtype, "append_eos": self.append_eos}
        effect: dict[str, Any] = said | {side: _effect(contract.tower(side)) for side in SIDES}
        return {"contract": {**said, **contract.describe()}, "vectors": fingerprint(effect)}

    def _contract(self, folder: Path) -> Contract:
        contract = read_contract(folder, self._stated())
        for warning in contract.warnings:
            if warning not in self._said:  # once in a process, not for every checkpoint
                log.warning("%s", warning)
                self._said.add(warning)
        return contract

    @functools.cached_property
    def _said(self) -> set[str]:
        return set()

    def fingerprint(self) -> Mapping[str, Any]:
        """All that can change a vector; stated folders count by content, not by path."""
        stated = self._stated()
        later = {
            "config": None if stated.config is None else _file_digest(stated.config),
            "weights_prefix": self.weights_prefix,
            "native": self.native or None,
        }
        return {
            **{key: value for key, value in later.items() if value is not None},  # specs without them stay what they were
            "pooling": self.pooling,
            "normalize": self.normalize,
            "query_prefix": self.query_prefix,
            "document_prefix": self.document_prefix,
            "query_max_length": self.query_max_length,
            "document_max_length": self.document_max_length,
            "dtype": self.dtype,
            "append_eos": self.append_eos,
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
        return EncoderSpec(
            pooling=self.pooling,
            normalize=self.normalize,
            query_prefix=self.query_prefix,
            document_prefix=self.document_prefix,
            query_max_length=self.query_max_length,
            document_max_length=self.document_max_length,
            tokenizer=self.tokenizer,
            base_model=self.base_model,
            config=config,
            weights_prefix=self.weights_prefix,
            native=self.native,
        )


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
