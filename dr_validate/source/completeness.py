"""Is a checkpoint folder all there? Its files tell; that they rest, only where the file that a trainer writes last never
comes. And which of its files encoding needs: everything else (optimizer states, pickles, logs) is neither read nor copied."""

import json
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from dr_validate.errors import CheckpointError
from dr_validate.files import SHARD, two_sets_of_weights
from dr_validate.source.remembered import by_stamp, is_at_rest

MAX_JSON_MIB = 8
MAX_HEADER_BYTES = 4 << 20  # of 30,000 tensors; parsed, a header takes up to 25 times its size. The format allows 100 MB
MAX_MIB_OF = {"tokenizer.json": 64, "vocab.json": 64, "trainer_state.json": 128}  # a large vocabulary has 35, a long log 100
MAX_SHOWN = 600  # characters of what a stranger wrote
TRAINER_LEAVES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")
HAVE_WEIGHTS = (".Dense", ".LayerNorm", ".StaticEmbedding")
STEP_VERSION = "a version made by a plain save_model() lacks it for good"
NO_CONFIG = (
    f"config.json is not there ({STEP_VERSION}); if these are the weights of a module of your own, set encoder.config, "
    "encoder.tokenizer and encoder.weights_prefix"
)
AS_SAFETENSORS = "save with model.save_pretrained(folder, safe_serialization=True), as safetensors"
MAX_STEP = 2**53  # what JSON and SQLite both keep exactly
STEP_IN_NAME = re.compile(r"(?:^|[^a-z])(?:checkpoint|ckpt|global[-_]?step|step|steps|iter)[-_=.]?(\d+)", re.IGNORECASE)
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


def what_is_missing(folder: Path, siblings_have_state: bool, needs_config: bool = True) -> str | None:
    """What a checkpoint lacks to be used, in words for a user, or None if it is complete.

    `siblings_have_state`: whether other checkpoints of the same training, complete ones, hold trainer_state.json.
    `needs_config`: whether one without config.json lacks something.
    """
    try:
        names = {path.name for path in folder.iterdir()}
        # What the model lacks first: that stays, where its trainer was killed, and is told once.
        lacks = _missing_in_model(folder, names) or _trainer_is_writing(folder, names, siblings_have_state)
        # A bare state dict has no sub-folders: what else there may be needs a config.json of its own.
        return _missing_weights(folder) if lacks == NO_CONFIG and not needs_config else lacks
    except Unreadable as error:
        return str(error)


class Unreadable(ValueError):
    """A file that is not what its name says: being written, or broken."""


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises Unreadable."""
    _check_regular(path)
    if path.stat().st_size > (limit := MAX_MIB_OF.get(path.name, MAX_JSON_MIB)) << 20:
        raise Unreadable(f"{path.name} has more than {limit} MiB")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path.name} cannot be read as JSON: being written, or broken ({error})") from error


@by_stamp
def check_json(path: Path) -> None:
    """Raises Unreadable where a file holds no JSON."""
    read_json(path)


@by_stamp
def trainer_state(path: Path) -> Mapping[str, Any]:
    """`global_step` and `save_steps` as a trainer_state.json has them. Raises Unreadable."""
    content = read_json(path)
    return {key: content.get(key) for key in ("global_step", "save_steps")} if isinstance(content, dict) else {}


def what_it_did(error: Exception) -> str:
    """Why an entry is not usable that did what nobody expected while it was listed, in words that can be written down."""
    said = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
    return shown(f"it cannot be looked at ({said}); mend or delete it")


def shown(text: str) -> str:
    """As it can be written down: bytes that are not UTF-8, which Linux allows in names, as `\\udcff` and the like."""
    return text.encode("utf-8", "backslashreplace").decode()


def module_folders(folder: Path) -> list[str]:
    """Folders that modules.json of the checkpoint or of its towers names; empty for other checkpoints. Raises Unreadable."""
    paths = [folder / name / "modules.json" for name in ("", *TOWER_FOLDERS)]
    return [place for path in paths if path.is_file() for _, place in _modules(path) if place]


def _trainer_is_writing(folder: Path, names: Collection[str], siblings_have_state: bool) -> str | None:
    # The Hugging Face Trainer writes weights, tokenizer, optimizer, scheduler, random state, and trainer_state.json last.
    lacks = None
    if (folder / "trainer_state.json").is_file():
        try:
            trainer_state(folder / "trainer_state.json")
        except Unreadable as error:
            lacks = str(error)
    elif any(matches(name, TRAINER_LEAVES) for name in names) or (
        siblings_have_state and folder.name.startswith("checkpoint-")
    ):
        lacks = "trainer_state.json is not there yet (the trainer writes it last)"
    # A trainer that was killed, or a copy without it: its own files tell whether the model is whole.
    return lacks if lacks and not is_at_rest(folder) else None


def _missing_in_model(folder: Path, names: Collection[str]) -> str | None:
    if not names:
        return "the folder is empty"
    if towers := [name for name in TOWER_FOLDERS if (folder / name).is_dir()]:
        return _missing_in_towers(folder, towers)
    if "modules.json" in names:
        return _missing_in_modules(folder)
    if "adapter_config.json" in names or "config.json" in names:
        return _missing_in_transformer(folder)
    return only_pickles(names) or NO_CONFIG


def _missing_in_towers(folder: Path, towers: list[str]) -> str | None:
    if alone := lacks_a_tower(towers):
        return alone
    for name in towers:
        if missing := _missing_in_model(folder / name, {path.name for path in (folder / name).iterdir()}):
            return f"{name}/: {missing}"
    return None


def lacks_a_tower(towers: Sequence[str]) -> str | None:
    """What is missing beside the folders of towers that are there, in words, or None."""
    if "query_model" in towers and len(towers) > 1:
        return None
    return f"{towers[0]}/ is there, but not the other tower: query_model/ and passage_model/ belong together"


def _missing_in_modules(folder: Path) -> str | None:
    for kind, place in _modules(folder / "modules.json"):
        for each, at in _routed(folder, kind, place):
            if missing := _missing_in_module(folder, each, at):
                return missing
    return None


def _routed(folder: Path, kind: str, place: str) -> list[tuple[str, str]]:
    """A module, with those that it chooses from."""
    path = folder / place / "router_config.json"
    if not kind.endswith((".Router", ".Asym")) or not path.is_file():
        return [(kind, place)]
    content = read_json(path)
    types = content.get("types") if isinstance(content, dict) else None
    if not isinstance(types, dict):
        raise Unreadable("router_config.json has no object of types")
    for name in types:
        _check_inside(name, "router_config.json")
    return [(kind, place), *((str(each), f"{place}/{name}".lstrip("/")) for name, each in types.items())]


def _missing_in_module(folder: Path, kind: str, place: str) -> str | None:
    if kind.endswith(".Normalize"):
        return None  # has no settings; older versions leave an empty folder, which not every store keeps
    part = folder / place
    if not part.is_dir() or not any(path.suffix == ".json" for path in part.iterdir()):
        return f"modules.json names {place or '.'} ({kind}), but there is no such folder with a config.json ({STEP_VERSION})"
    if kind.endswith(".Transformer") and (missing := _missing_in_transformer(part)):
        return f"{place}: {missing}" if place else missing
    if kind.endswith(HAVE_WEIGHTS) and (missing := _missing_weights(part)):
        return f"{place}: {missing}"
    return None


def _missing_in_transformer(part: Path) -> str | None:
    config = next((name for name in ("adapter_config.json", "config.json") if (part / name).is_file()), None)
    if config is None:
        return f"config.json is not there ({STEP_VERSION})"
    check_json(part / config)
    return _missing_weights(part)


@by_stamp
def _modules(path: Path) -> list[tuple[str, str]]:
    entries = read_json(path)
    try:
        modules = [(str(entry["type"]), str(entry["path"])) for entry in entries]
    except (TypeError, KeyError) as error:
        raise Unreadable("modules.json is not a list of modules with a type and a path") from error
    for _, place in modules:
        _check_inside(place, "modules.json")
    return modules


def _missing_weights(folder: Path) -> str | None:
    """Whether there are weights and all of them, and of one model only."""
    names = {path.name for path in folder.iterdir()}
    if two := two_sets_of_weights(names):
        return two
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = _shards(index)
        if index.name.removesuffix(".index.json") in names and not names >= set(shards):
            continue  # only the other set of weights is whole
        for shard in shards:
            _check_inside(shard, index.name)
            if not (folder / shard).is_file():
                return f"{index.name} names {shard}, which is not there"
    if lacks_index := _missing_index(names):
        return lacks_index
    if broken := _broken_weights(folder):
        return broken
    if not any(is_wanted_file(name) and name.endswith(".safetensors") for name in names):
        return only_pickles(names) or "weights (*.safetensors) are not there"
    if "adapter_config.json" in names and "adapter_model.safetensors" not in names:
        return "adapter_config.json is there, but not adapter_model.safetensors; delete the former if this is a whole model"
    return None


def _missing_index(names: Collection[str]) -> str | None:
    shards = sorted(filter(SHARD.fullmatch, names))
    is_leftover = "model.safetensors" in names or {"adapter_model.safetensors", "adapter_config.json"} <= set(names)
    if not shards or is_leftover or "model.safetensors.index.json" in names:
        return None
    return f"model.safetensors.index.json is not there yet, which is written after the shards ({shards[0]} and the like)"


@by_stamp
def _shards(index: Path) -> list[str]:
    content = read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict):
        raise Unreadable(f"{index.name} has no weight_map")
    return sorted({str(name) for name in shards.values()})


def _broken_weights(folder: Path) -> str | None:
    for path in sorted(folder.glob("*.safetensors")):
        _check_regular(path)
        if wrong := _what_is_cut(path):
            return f"{path.name}: {wrong}"
    return None


def only_pickles(names: Iterable[str], way_out: str = AS_SAFETENSORS) -> str | None:
    """What is wrong where these files of a folder, without safetensors among them, hold weights; None where they do not."""
    known = (*TRAINING_STATE, "training_args.bin")
    found = sorted(name for name in names if matches(name, PICKLES) and not matches(name, known))
    if not found:
        return None
    return f"weights only as a pickle ({', '.join(found[:3])}), which is never loaded: it can run code; {way_out}"


def _check_regular(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise Unreadable(f"{path.name} is not a regular file")


def _check_inside(place: str, said_by: str) -> None:
    path = PurePosixPath(place)
    if path.is_absolute() or ".." in path.parts or "\\" in place or "\0" in place:
        raise Unreadable(f"{said_by} names {place!r}, which is outside the checkpoint")


@by_stamp
def _what_is_cut(path: Path) -> str | None:
    """What keeps a safetensors file from being whole, in words, or None. Reads the header, which says how long it must be."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            return f"its header is not all there ({size:,} bytes so far)"
        if length > MAX_HEADER_BYTES:
            return f"its header has {length:,} bytes, more than {MAX_HEADER_BYTES:,}: save the weights in several files"
        header = stream.read(length)
    end = _data_bytes(header)
    if end is None:
        return "its header cannot be read: being written, or not a safetensors file"
    if size != (expected := 8 + length + end):
        return f"{size:,} of {expected:,} bytes"
    return None


def _data_bytes(header: bytes) -> int | None:
    try:
        tensors = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return max(ends, default=0) if all(isinstance(end, int) for end in ends) else None


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


def names_a_step(name: str) -> bool:
    """Whether a folder name such as `checkpoint-500` says which step it holds."""
    return STEP_IN_NAME.search(name) is not None
