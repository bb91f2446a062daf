"""Attention within each text of a packed batch, for every transformer that takes its attention from transformers' registry.

On a CPU texts of equal length attend together; on a GPU one fused kernel takes them all (torch's flash attention with variable
lengths). Imports torch: only imported when a model is loaded.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dr_validate.devices import to_device
from dr_validate.values import Int64

PACKED_ATTENTION = "dr_validate_packed"
# What some architectures add to attention and this one does not have: refused, never ignored.
REFUSED_OPTIONS = ("softcap", "s_aux", "position_bias", "head_mask", "cache", "block_sequence_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the texts of a packed batch lie; `bounds` (num_texts + 1,) int32 on the device, only for a GPU."""

    groups: tuple[tuple[int, int, int], ...]  # first token, texts, tokens of each: of texts of equal length
    longest: int
    bounds: Tensor | None


def packing(lengths: Int64, device: str) -> Packing:
    """How texts of these lengths lie one after the other; equal lengths are neighbours in a batch."""
    firsts = np.flatnonzero(np.diff(lengths, prepend=-1))
    counts = np.diff(np.append(firsts, len(lengths)))
    starts = np.cumsum(lengths) - lengths
    groups = tuple((int(starts[first]), int(n), int(lengths[first])) for first, n in zip(firsts, counts, strict=True))
    bounds = None
    if fuses(device):
        bounds = to_device(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), device)
    return Packing(groups=groups, longest=int(lengths.max()), bounds=bounds)


def fuses(device: str) -> bool:
    """Whether one kernel is to take texts of all lengths there."""
    return device.startswith("cuda")


def register() -> None:
    """Make this attention known to transformers as PACKED_ATTENTION; no mask is ever made for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, _attend_for_transformers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a token sees of its text: what comes after it only if not `causal`, and what is fewer than `window` places away."""

    scale: float | None
    causal: bool
    window: int | None


def attend(states: tuple[Tensor, Tensor, Tensor], layout: Packing, rule: Rule) -> Tensor:
    """(num_tokens, heads, head_dim) from query, key and value of that shape, the latter two perhaps with fewer heads."""
    if layout.bounds is not None:
        return _attend_fused(states, layout, rule)
    query = states[0]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for first, texts, length in layout.groups:
        part = slice(first, first + texts * length)
        shape = (texts, length, -1, query.shape[-1])
        alike = [tensor[part].view(shape).transpose(1, 2) for tensor in states]
        out[part].view(shape).copy_(_attend_alike(*alike, rule=rule).transpose(1, 2))
    return out


def _attend_for_transformers(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """(1, num_tokens, heads, head_dim) from query, key and value (1, heads, num_tokens, head_dim).

    `options` are what transformers passes: `packing` (ours, through the model's forward), scaling, is_causal, sliding_window.
    Raises TypeError for an option that this attention does not have.
    """
    refused = [name for name in REFUSED_OPTIONS if options.get(name) is not None]
    layout = options.get("packing")
    if refused or attention_mask is not None or not isinstance(layout, Packing):
        raise TypeError(f"packed attention: no {refused or 'mask'}, and with a packing (got {type(layout).__name__})")
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    rule = Rule(scale=options.get("scaling"), causal=bool(causal), window=options.get("sliding_window"))
    states = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    return attend(states, layout, rule)[None], None


def _attend_alike(query: Tensor, key: Tensor, value: Tensor, *, rule: Rule) -> Tensor:
    """(texts, heads, length, head_dim) for texts of equal length."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    length = query.shape[2]
    mask = None
    if rule.window is not None and length > rule.window:
        places = torch.arange(length, device=query.device)
        distance = places[:, None] - places
        mask = (distance < rule.window) & (distance >= 0 if rule.causal else distance > -rule.window)
    causal = rule.causal and mask is None
    return functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=rule.scale)


def _attend_fused(states: tuple[Tensor, Tensor, Tensor], layout: Packing, rule: Rule) -> Tensor:
    """The same by torch's flash attention with variable lengths, called so that every torch since 2.11 takes it.

    `enable_gqa` came with 2.12 and is passed only where there are fewer heads of keys.
    """
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = states
    assert layout.bounds is not None
    options: dict[str, Any] = {}
    if (groups := query.shape[1] // key.shape[1]) > 1:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options = {"enable_gqa": True}
        else:
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    back = -1 if rule.window is None else rule.window - 1
    places = (layout.bounds, layout.bounds, layout.longest, layout.longest)
    window = (back, 0 if rule.causal else back)
    out = varlen_attn(query, key, value, *places, scale=rule.scale, window_size=window, **options)
    assert isinstance(out, Tensor)
    return out
