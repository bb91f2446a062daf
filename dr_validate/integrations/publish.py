"""One line in any training loop: `publish(model, step, folder)` leaves a complete checkpoint that a watcher can validate.

A folder appears at once and whole, under its final name, with the encoder contract (dr_validate.json) beside the weights: what
is said here need not be said again on the watcher's command line.
"""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dr_validate.encoder.spec import CONTRACT_FILE, CONTRACT_KEYS, encoder_settings
from dr_validate.errors import ConfigError
from dr_validate.files import atomic_folder, write_atomically

STATE_FILE = "trainer_state.json"
TEVATRON_POOLING = {
    "cls": "cls",
    "first": "cls",
    "mean": "mean",
    "avg": "mean",
    "average": "mean",
    "last": "last",
    "eos": "last",
}


def publish(model: Any, step: int, folder: str | Path, *, tokenizer: Any = None, **contract: Any) -> Path:
    """Write `model` to `folder`/checkpoint-`step`, and return that path. A checkpoint of that name is replaced.

    `model`: a SentenceTransformer; a model of transformers or PEFT, with its `tokenizer`; Tevatron's encoder; each also within
    DistributedDataParallel or torch.compile. Call it in the process of rank 0 alone, between two steps.
    `contract`: pooling, normalize, query_prefix, document_prefix, query_max_length, document_max_length, as the keys `encoder.`
    of the command line. A SentenceTransformer says them itself; of a transformers model pooling and normalize are required.
    Raises ConfigError where something is lacking or wrong: before anything is written.
    """
    encoder, said = told(model, tokenizer, contract)
    target = Path(folder).absolute() / f"checkpoint-{step}"
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(atomic_folder(target))
        write_model(encoder, place, tokenizer)
        write_contract(place, said)
        (place / STATE_FILE).write_text(json.dumps({"global_step": step}))
        if target.exists():  # of a training that was killed after this step, and has come here again
            old = target.with_name(f".{target.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            stack.callback(shutil.rmtree, old, ignore_errors=True)
    return target


def told(model: Any, tokenizer: Any, contract: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The part of `model` that is saved, and its contract. Raises ConfigError."""
    encoder, said = unwrapped(model), dict(contract)
    if not hasattr(encoder, "save_pretrained") and hasattr(getattr(encoder, "encoder", None), "save_pretrained"):
        said = {**tevatron_contract(encoder), **said}
        encoder = encoder.encoder
    if not hasattr(encoder, "save_pretrained"):
        raise ConfigError(
            [
                f"publish: got {type(encoder).__name__}, which has no save_pretrained; pass the model of transformers, PEFT or "
                "sentence-transformers inside it"
            ]
        )
    problems = []
    if not is_sentence_transformer(encoder):
        lacking = [key for key in ("pooling", "normalize") if said.get(key) is None]
        problems += [f"publish: {key}: a transformers model does not say it; pass {key}= as in training" for key in lacking]
        if tokenizer is None:
            problems.append("publish: tokenizer: a transformers model comes without; pass tokenizer=")
    if problems:
        raise ConfigError(problems)
    try:
        return encoder, encoder_settings(said, "publish")
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def unwrapped(model: Any) -> Any:
    """The model within DistributedDataParallel, DataParallel or torch.compile."""
    while (inner := getattr(model, "_orig_mod", None)) is not None or (
        type(model).__name__ in ("DistributedDataParallel", "DataParallel") and (inner := model.module) is not None
    ):
        model = inner
    return model


def is_sentence_transformer(model: Any) -> bool:
    """Whether it is a SentenceTransformer, going by names: the library need not be there."""
    return any(f"{one.__module__}.".startswith("sentence_transformers.") for one in type(model).__mro__)


def tevatron_contract(model: Any) -> dict[str, Any]:
    """What the attributes of Tevatron's encoder say; prefixes and lengths are arguments of its data, and are to be passed."""
    pooling = TEVATRON_POOLING.get(str(getattr(model, "pooling", None)))
    normalize = getattr(model, "normalize", None)
    return {key: value for key, value in (("pooling", pooling), ("normalize", normalize)) if value is not None}


def write_model(encoder: Any, place: Path, tokenizer: Any) -> None:
    """Weights, configuration and tokenizer; no model card, which would ask the hub."""
    if is_sentence_transformer(encoder):
        encoder.save_pretrained(str(place), create_model_card=False)
    else:
        encoder.save_pretrained(str(place))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(place))


def write_contract(place: Path, said: Mapping[str, Any]) -> None:
    """dr_validate.json with every key; null is for what the other files of the checkpoint say."""
    content = {key: said.get(key) for key in CONTRACT_KEYS}
    write_atomically(place / CONTRACT_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
