"""Token vectors to one vector for each text, in float32. Imports torch: only imported when a model is loaded.

Formulas as in sentence_transformers 6.2 (`modules/pooling.py`). No operation here waits for a GPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dr_validate.encoder.spec import PoolingName


def pool(hidden: Tensor, lengths: Tensor, modes: Sequence[PoolingName], skip: int) -> Tensor:
    """(num_texts, len(modes) * width) from hidden (num_tokens, width) of one text after the other.

    `lengths` (num_texts,) are at least 1; the first `skip` tokens of each text are left out.
    """
    hidden = hidden.float()
    ends = lengths.cumsum(0)
    text = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths, output_size=len(hidden))
    places = torch.arange(len(hidden), device=hidden.device) - (ends - lengths)[text]
    return torch.cat([_pool_one(hidden, (lengths, ends, places), mode, skip) for mode in modes], dim=-1)


def _pool_one(hidden: Tensor, layout: tuple[Tensor, Tensor, Tensor], mode: PoolingName, skip: int) -> Tensor:
    lengths, ends, places = layout
    if mode == "cls":
        return hidden[ends - lengths + torch.where(lengths > skip, skip, 0)]
    if mode == "last":
        return hidden[ends - 1]
    inside = places >= skip  # (num_tokens,)
    if mode == "max":
        return _reduce(hidden.masked_fill(~inside[:, None], float("-inf")) if skip else hidden, lengths, "max")
    weights = inside.float()
    if mode == "weighted_mean":  # SGPT (Muennighoff 2022): weight = position, counted from 1
        weights = weights * (places + 1)
    total = _reduce(hidden * weights[:, None] if skip or mode == "weighted_mean" else hidden, lengths, "sum")
    count = _reduce(weights[:, None], lengths, "sum").clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len" else count)


def _reduce(values: Tensor, lengths: Tensor, how: str) -> Tensor:
    reduce: Any = torch.segment_reduce
    return reduce(values, how, lengths=lengths, unsafe=True)  # type: ignore[no-any-return]  # the checks would wait for a GPU
