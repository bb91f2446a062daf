"""The encoder: what the checkpoint says it is, or what is stated here, or a refusal; never a guess."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dr_validate.component import UserPath, component
from dr_validate.encoder.contract import read_contract
from dr_validate.encoder.terms import Stated
from dr_validate.errors import ConfigError
from dr_validate.files import sha256_of_file, sha256_of_files
from dr_validate.stages import Model

log = logging.getLogger(__name__)

# Packed MiniLM on a CPU: 1024, 2048 and 4096 are equal within noise; more only takes more memory. Not measured on a GPU.
CPU_TOKENS = 2048
GPU_TOKENS = 32768
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


@component
class AutoEncoder:
    """Transformers, sentence-transformers, PEFT and two-tower folders to vectors; a stated value wins over the checkpoint's.

    `tokenizer` and `base_model` are folders, for checkpoints that came without. Lengths count special tokens and the prefix.
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
    append_eos: bool | None = None
    max_tokens_per_batch: int | None = Field(default=None, ge=1)

    @contextlib.contextmanager
    def load(self, folder: Path, device: str) -> Iterator[Model]:
        """The model in `folder` on `device`, freed on exit. Raises CheckpointError or ConfigError before any weight is read."""
        contract = read_contract(folder, self._stated())
        from dr_validate.encoder.transformer import TransformerModel

        budget = self.max_tokens_per_batch or (CPU_TOKENS if device == "cpu" else GPU_TOKENS)
        with _one_thread():
            model = TransformerModel(contract, dtype=self.dtype, device=device, append_eos=self.append_eos, max_tokens=budget)
        log.debug("loaded %s on %s: %s", folder.name, device, model.contract)
        try:
            yield model
        finally:
            model.close()
            _free(device)

    def fingerprint(self) -> Mapping[str, Any]:
        """All that can change a vector; stated folders count by content, not by path."""
        stated = self._stated()
        return {
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

    def _stated(self) -> Stated:
        folders = {"encoder.tokenizer": self.tokenizer, "encoder.base_model": self.base_model}
        problems = [f"{key}: no such folder (got {str(path)!r})" for key, path in folders.items() if path and not path.is_dir()]
        if problems:
            raise ConfigError(problems)
        return Stated(
            pooling=self.pooling,
            normalize=self.normalize,
            query_prefix=self.query_prefix,
            document_prefix=self.document_prefix,
            query_max_length=self.query_max_length,
            document_max_length=self.document_max_length,
            tokenizer=self.tokenizer,
            base_model=self.base_model,
        )


def _digest(folder: Path) -> str:
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    stats = {path: path.stat() for path in files}
    return sha256_of_files({path.name: _file_digest(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()})


@functools.lru_cache(maxsize=64)  # a base model of many GiB is read once, not for every fingerprint
def _file_digest(path: Path, size: int, modified_ns: int) -> str:
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
        from dr_validate.encoder.threads import release_heap

        release_heap()
