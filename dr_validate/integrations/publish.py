"""One line in any training loop: `publish(model, step, folder)` leaves a complete checkpoint that a watcher can validate.

A folder appears at once and whole, under its final name, with the encoder contract (dr_validate.json) beside the weights: what
is said here need not be said again on the watcher's command line. Below, weights without a save: a copy at the end of a step,
written into /dev/shm by a thread while the training goes on.
"""

import contextlib
import copy
import json
import logging
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dr_validate.encoder.spec import CONTRACT_FILE, CONTRACT_KEYS, encoder_settings
from dr_validate.errors import ConfigError
from dr_validate.files import atomic_folder, write_atomically

log = logging.getLogger(__name__)
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
ROOM = 3  # snapshots that must fit: the newest, the one before it that is being read, and one half written


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


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """A step's weights on their way: `folder` once `written` is set, None if they were not written."""

    step: int
    folder: Path | None = None
    written: threading.Event = field(default_factory=threading.Event)


class Snapshots:
    """Snapshots of one model in `folder`/checkpoint-`step`, written by `publish`; of PEFT the adapter alone is copied.

    Holds one copy of these weights in the memory of the host, pinned where they are on a GPU. A snapshot that is asked for
    while the one before is being written is not taken. Raises ConfigError where `folder` has no room for ROOM of them.
    """

    def __init__(self, model: Any, folder: Path, tokenizer: Any, contract: dict[str, Any]) -> None:
        import torch

        self._torch: Any = torch
        self._folder, self._tokenizer, self._contract = folder, tokenizer, contract
        model = unwrapped(model)
        told(model, tokenizer, contract)
        self._sources = saved_tensors(model)
        check_room_for_snapshots(sum(one.numel() * one.element_size() for one in self._sources), folder)
        self._twin, self._copies = _twin(model, self._sources)
        self._stream = self._torch.cuda.Stream() if any(one.is_cuda for one in self._sources) else None
        self._event: Any = None
        self._thread: threading.Thread | None = None

    def take(self, step: int, wait: bool = False) -> Snapshot | None:
        """Copy the weights as they are now and have them written; None where the last is not written yet, unless `wait`."""
        if self._thread is not None and self._thread.is_alive():
            if not wait:
                return None
            self._thread.join()
        with self._torch.no_grad():
            if self._stream is None:
                self._copy()
            else:
                self._stream.wait_stream(self._torch.cuda.current_stream())
                with self._torch.cuda.stream(self._stream):
                    self._copy()
                self._event = self._stream.record_event()
        snapshot = Snapshot(step=step)
        self._thread = threading.Thread(target=self._write, args=(snapshot, self._event), name=f"snapshot-{step}", daemon=True)
        self._thread.start()
        return snapshot

    def before_weights_change(self) -> None:
        """Have the next change of the weights wait, on the device, for a copy that is under way."""
        if self._event is not None:
            self._torch.cuda.current_stream().wait_event(self._event)
            self._event = None

    def remove(self, snapshot: Snapshot) -> None:
        """Of no use any more."""
        if snapshot.folder is not None:
            shutil.rmtree(snapshot.folder, ignore_errors=True)

    def _copy(self) -> None:
        for mine, theirs in zip(self._copies, self._sources, strict=True):
            mine.copy_(theirs, non_blocking=self._stream is not None)

    def _write(self, snapshot: Snapshot, event: Any) -> None:
        from safetensors import SafetensorError

        try:
            if event is not None:
                event.synchronize()
            snapshot.folder = publish(self._twin, snapshot.step, self._folder, tokenizer=self._tokenizer, **self._contract)
        except (OSError, SafetensorError) as error:  # safetensors says so of a full disk, too
            free = f"{shutil.disk_usage(self._folder).free:,} bytes free in {self._folder}"
            log.warning("no snapshot of step %d: %s (%s); the training goes on without it", snapshot.step, error, free)
        finally:
            snapshot.written.set()


def saved_tensors(model: Any) -> list[Any]:
    """Parameters and buffers that a snapshot holds: all, or of PEFT those that are trained. Each once."""
    is_adapter = hasattr(model, "peft_config")
    found = [one for one in model.parameters() if one.requires_grad or not is_adapter]
    return found if is_adapter else [*found, *model.buffers()]


def check_room_for_snapshots(num_bytes: int, folder: Path) -> None:
    """Raises ConfigError where `folder` has no room for ROOM snapshots of so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < ROOM * num_bytes:
        way_out = "give it more room (mount -o remount,size=..., docker run --shm-size), or set another snapshot_folder"
        need = f"{ROOM} snapshots of {num_bytes:,} bytes must fit"
        raise ConfigError([f"snapshot_folder: {folder} has {free:,} bytes free, and {need}; {way_out}"])


def _twin(model: Any, saved: list[Any]) -> tuple[Any, list[Any]]:
    """The same model with its saved tensors in the memory of the host, and these; the rest is on no device (`meta`).

    What a model knows of its training (the model card of a SentenceTransformer holds the trainer) stays shared.
    """
    import torch

    wanted = {id(one) for one in saved}
    memo: dict[int, Any] = {}
    for one in [*model.parameters(), *model.buffers()]:
        made = one.detach().to("cpu", copy=True) if id(one) in wanted else one.detach().to("meta")
        made = made.pin_memory() if id(one) in wanted and one.is_cuda else made
        memo[id(one)] = torch.nn.Parameter(made, requires_grad=False) if isinstance(one, torch.nn.Parameter) else made
    if (card := getattr(model, "model_card_data", None)) is not None:
        memo[id(card)] = card
    twin = copy.deepcopy(model, memo)
    return twin, [memo[id(one)] for one in saved]
