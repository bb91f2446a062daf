"""Which files of a checkpoint encoding needs. Everything else (optimizer states, pickles, logs) is neither read nor copied."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

TOWER_FOLDERS = ("query_model", "passage_model", "document_model")
PATTERNS = (
    "config*.json",
    "dr_validate.json",  # what publish() of the training says of pooling and the like
    "sentence_*_config.json",
    "modules.json",
    "router_config.json",
    "pooler_config.json",
    "adapter_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "bpe.codes",
    "*.model",  # SentencePiece
    "*.safetensors",
    "*.safetensors.index.json",
)
TRAINING_STATE = ("optimizer*", "scheduler*", "rng_state*", "random_states*", "scaler*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MODULE_FOLDER = re.compile(r"(\w+_)?\d+_\w+")  # 1_Pooling, query_0_Transformer: modules and routes of sentence-transformers


def is_wanted(name: str, modules: Sequence[str] = ()) -> bool:
    """Whether encoding needs the file with this path in the checkpoint (`/` between folders).

    `modules` are the folders that modules.json names; `1_Pooling` and the folders of two towers are known without it.
    """
    path = PurePosixPath(name)
    return all(is_wanted_folder(part, modules) for part in path.parts[:-1]) and is_wanted_file(path.name)


def is_wanted_file(name: str) -> bool:
    """Whether encoding needs a file of this name in a folder of the checkpoint."""
    return matches(name, PATTERNS) and not matches(name, TRAINING_STATE) and not matches(name, PICKLES)


def wanted(names: Iterable[str], modules: Sequence[str] = ()) -> list[str]:
    """Those of `names` that encoding needs, sorted."""
    return sorted(name for name in names if is_wanted(name, modules))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file name matches one of the patterns, case and all."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_wanted_folder(name: str, modules: Sequence[str] = ()) -> bool:
    """Whether a folder of this name can hold files that encoding needs."""
    named = any(name in PurePosixPath(module).parts for module in modules)
    return named or name in TOWER_FOLDERS or _MODULE_FOLDER.fullmatch(name) is not None
