"""Texts in batches, and each batch through the transformer: packed into one row where architecture, type and device allow it,
else padded. `choose_forward` tries each way against the plain one, and falls back; `choose_static`: tables of word vectors.

Imports torch: only imported when a model is loaded.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dr_validate.devices import is_out_of_memory, to_device
from dr_validate.encoder.attention import PACKED_ATTENTION, Packing, fuses, packing, register
from dr_validate.encoder.backbone import PADDING_OFFSET_MODELS, positions
from dr_validate.encoder.cpu import prepack_linears
from dr_validate.errors import CheckpointError
from dr_validate.values import Int64, TokenBlock

log = logging.getLogger(__name__)
SHARES = 4  # of the work that is left, a thread takes one in so many at a time, so that all end together
SMALLEST_SHARE = 256  # tokens; below it the matrix products lose more than the threads win
# Packed rows are filled up to a multiple of this, so that they have few different lengths: for each, oneDNN keeps a program
# and its memory, up to 1024 of them (measured: 0.3 GiB in 300 batches).
ROUND_TO = 64
CUTS = 4  # a batch ends at that one of its last so many texts where least has to be filled up: 0.6% of the tokens, not 1.8%
ALIKE = 0.9  # padded texts of one batch are at least so long, as parts of the longest ...
TOO_FEW = 8  # ... unless the batch would have fewer tokens than one in so many of the budget
# Largest difference of hidden states, relative to the largest of them, between two ways of computing the same.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
CHECKED_LENGTHS = (9, 3, 3)
LARGEST_CHECKED_WINDOW = 512
# What a transformer raises that does not know packed batches.
CANNOT = (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError, AssertionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some texts of a block, by descending length, and their token ids one text after the other."""

    rows: Int64  # (num_texts,) positions in the block
    lengths: Int64  # (num_texts,) at least 1
    ids: Int64  # (num_tokens,)

    @property
    def places(self) -> Int64:
        """(num_tokens,) place of each token in its text, from 0."""
        starts = np.cumsum(self.lengths) - self.lengths
        places: Int64 = np.arange(len(self.ids)) - np.repeat(starts, self.lengths)
        return places


def plan(lengths: Int64, max_tokens: int, threads: int, *, pad: bool) -> list[Int64]:
    """Positions of the texts that are not empty, in batches of at most `max_tokens` tokens, or of one text that is longer.

    What needs most memory comes first, so that it fails at once if at all. With `pad`, tokens count padding.
    """
    order: Int64 = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    ends = np.cumsum(lengths[order])
    batches, start = [], 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        share = -(-(int(ends[-1]) - before) // (SHARES * threads)) if threads > 1 else max_tokens
        budget = min(max_tokens, max(share, SMALLEST_SHARE))
        if pad:
            stop = start + _similar(lengths[order[start:]], budget)
        else:
            stop = int(np.searchsorted(ends, before + budget, side="right"))
            if stop < len(order):
                stop = _least_filling(ends - before, start, stop)
        stop = max(stop, start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def take(tokens: TokenBlock, rows: Int64) -> Batch:
    """The texts at `rows` of a block, none of them empty."""
    taken = tokens.take(rows)
    return Batch(rows=rows, lengths=taken.lengths, ids=np.asarray(taken.ids).astype(np.int64))


def _least_filling(ends: Int64, start: int, stop: int) -> int:
    """Where to end a batch that begins at `start`, at `stop` or a few texts before; of equals, the latest."""
    cuts = np.arange(stop, max(start, stop - CUTS), -1)
    return int(cuts[np.argmin(-ends[cuts - 1] % ROUND_TO)]) if len(cuts) else stop


def _similar(lengths: Int64, budget: int) -> int:
    """How many of the first texts are padded together."""
    longest = int(lengths[0])
    alike = int(np.searchsorted(-lengths, -ALIKE * longest, side="right"))
    return min(len(lengths), budget // longest, max(alike, budget // TOO_FEW // longest))


class Forward(Protocol):
    """Hidden states of texts, without padding."""

    name: str
    pads: bool

    def __call__(self, batch: Batch) -> Tensor:
        """(num_tokens, width) on the device, one text after the other, in the model's own type."""
        ...


class Static:
    """A row of a table for each token: a StaticEmbedding, as sentence-transformers and model2vec save it."""

    name, pads = "static", False

    def __init__(self, table: Tensor, device: str) -> None:
        self._table = table.to(device)
        self._device = device

    def __call__(self, batch: Batch) -> Tensor:
        return self._table[to_device(batch.ids.astype(np.int64), self._device)]


class Padded:
    """Every text padded to the longest of its batch: works for every architecture."""

    name, pads = "padded", True

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device
        pad_id = getattr(model.config, "pad_token_id", None)
        self._pad_id = pad_id if isinstance(pad_id, int) and 0 <= pad_id < _vocabulary_size(model) else 0

    def __call__(self, batch: Batch) -> Tensor:
        longest = int(batch.lengths.max())
        ids = np.full((len(batch.lengths), longest), self._pad_id, dtype=np.int64)
        inside = np.arange(longest) < batch.lengths[:, None]
        ids[inside] = batch.ids
        # Without padding no mask: attention is faster, and nothing has to look whether the mask is full.
        mask = None if inside.all() else to_device(inside.astype(np.int64), self._device)
        hidden = self._model(input_ids=to_device(ids, self._device), attention_mask=mask).last_hidden_state
        flat: Tensor = hidden.reshape(-1, hidden.shape[-1])
        return flat if mask is None else flat[to_device(np.flatnonzero(inside), self._device)]


class Packed:
    """Texts in one row, without padding between them; attention stays within a text (`attention.py`).

    The row ends with a text of less than ROUND_TO tokens that nobody asked for.
    """

    name, pads = "packed", False

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device
        self._pad_id = None
        if model.config.model_type in PADDING_OFFSET_MODELS:
            self._pad_id = 1 if model.config.pad_token_id is None else int(model.config.pad_token_id)

    def __call__(self, batch: Batch) -> Tensor:
        ids, positions, layout = self._row(batch)
        hidden = self._model(input_ids=ids[None], position_ids=positions[None], packing=layout).last_hidden_state
        states: Tensor = hidden[0, : len(batch.ids)]
        return states

    def _row(self, batch: Batch) -> tuple[Tensor, Tensor, Packing]:
        """Ids and positions (num_tokens,) on the device, and where the texts lie."""
        ids, positions, lengths = batch.ids, self._positions(batch), batch.lengths
        if extra := -len(ids) % ROUND_TO:
            ids, positions = (np.append(array, np.full(extra, array[0])) for array in (ids, positions))
            lengths = np.append(lengths, extra)
        layout = packing(lengths, self._device)
        return to_device(ids, self._device), to_device(positions, self._device), layout

    def _positions(self, batch: Batch) -> Int64:
        if self._pad_id is None:
            return batch.places
        # As RoBERTa counts: from the padding's number on, and padding that stands in the text itself does not count.
        counts = np.cumsum(batch.ids != self._pad_id)
        firsts = np.cumsum(batch.lengths) - batch.lengths
        before = np.repeat(counts[firsts] - (batch.ids[firsts] != self._pad_id), batch.lengths)
        places: Int64 = (counts - before) * (batch.ids != self._pad_id) + self._pad_id
        return places


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A transformer and the fastest way through it whose hidden states agree with the plain one's within TOLERANCES."""

    forward: Forward
    vocabulary_size: int
    prepacked_linears: int  # how many of its layers run through oneDNN

    def describe(self) -> dict[str, str]:
        """For the Report: what was computed how."""
        return {"batches": self.forward.name, "linear_layers": "oneDNN" if self.prepacked_linears else "torch"}


def choose_static(weights: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> Chosen:
    """The table of a StaticEmbedding. model2vec's may have fewer rows than words, and a weight for each word."""
    table = weights.get("embedding.weight", weights.get("embeddings"))
    if table is None or table.dim() != 2:
        raise CheckpointError(f"no table of word vectors among the weights {sorted(weights)}; expected embedding.weight")
    table = table.float()
    if "embedding.weight" not in weights:
        table = table[weights["mapping"].long()] if "mapping" in weights else table
        table = table * weights["weights"].float()[:, None] if "weights" in weights else table
    return Chosen(forward=Static(table.to(dtype), device), vocabulary_size=len(table), prepacked_linears=0)


def choose_forward(load: Callable[[], Any], dtype: torch.dtype, device: str) -> Chosen:
    """Load the model and choose. Every change is checked against the padded forward of the model as it came, or undone."""
    model = load()
    padded = Padded(model, device)
    batch = _example_for(model)
    with torch.inference_mode():
        expected = padded(batch)
        if not bool(expected.isfinite().all()):  # nothing to compare with; encoding says what is wrong
            return Chosen(forward=padded, vocabulary_size=_vocabulary_size(model), prepacked_linears=0)
        num_prepacked = prepack_linears(model) if device == "cpu" else 0
        if num_prepacked and not _same(padded, batch, expected):
            log.info("%s computes with the weights of its linear layers: they stay as they are", type(model).__name__)
            del model, padded  # never two at a time
            model, num_prepacked = load(), 0
            padded = Padded(model, device)
        packed = _packed(model, dtype, device)
        if packed is not None and not _same(packed, batch, expected):
            model.set_attn_implementation("sdpa")
            packed = None
    if packed is None:
        is_wide = fuses(device) and dtype == torch.float32
        faster = "; encoder.dtype=bfloat16 needs no padding, and is several times as fast" if is_wide else ""
        log.info("%s in %s on %s: no packed batches, they are padded%s", type(model).__name__, dtype, device, faster)
    return Chosen(forward=packed or padded, vocabulary_size=_vocabulary_size(model), prepacked_linears=num_prepacked)


def takes_packed(dtype: torch.dtype, device: str) -> bool:
    """Whether attention over packed texts is fast here: on a GPU for the types that its fused kernel takes."""
    return not fuses(device) or dtype in (torch.float16, torch.bfloat16)


def _packed(model: Any, dtype: torch.dtype, device: str) -> Packed | None:
    """For the architectures that let their attention be replaced."""
    if not takes_packed(dtype, device) or not getattr(model, "_supports_attention_backend", False):
        return None
    register()
    model.set_attn_implementation(PACKED_ATTENTION)
    return Packed(model, device)


def _same(forward: Forward, batch: Batch, expected: Tensor) -> bool:
    try:
        difference = (forward(batch).float() - expected.float()).abs().max()
    except CANNOT as error:
        if is_out_of_memory(error):
            raise
        log.info("another way through the model: %s: %s", type(error).__name__, error)
        return False
    return bool(difference <= TOLERANCES[expected.dtype] * expected.float().abs().max().clamp(min=1e-6))


def _example_for(model: Any) -> Batch:
    """Texts of several lengths, one beyond the window where attention is local and the window small."""
    longest = positions(model.config.to_dict()) or LARGEST_CHECKED_WINDOW
    lengths = [max(1, min(length, longest)) for length in CHECKED_LENGTHS]
    window = getattr(model.config, "sliding_window", None)
    if isinstance(window, int) and window <= LARGEST_CHECKED_WINDOW:
        lengths.insert(0, min(2 * window + 3, longest))
    ids = np.arange(sum(lengths)) * 7 % _vocabulary_size(model)
    return Batch(rows=np.arange(len(lengths)), lengths=np.array(lengths), ids=ids)


def _vocabulary_size(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)
