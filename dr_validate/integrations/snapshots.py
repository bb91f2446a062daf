"""Weights without a save: a copy at the end of a step, written into /dev/shm by a thread while the training goes on."""

import copy
import logging
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dr_validate.errors import ConfigError
from dr_validate.integrations.publish import publish, told, unwrapped

ROOM = 3  # snapshots that must fit: the newest, the one before it that is being read, and one half written
log = logging.getLogger(__name__)


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
        check_room(sum(one.numel() * one.element_size() for one in self._sources), folder)
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


def check_room(num_bytes: int, folder: Path) -> None:
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
