"""Token vectors to one vector for each text, in float32. Imports torch: only imported when a model is loaded.

Formulas as in sentence_transformers 6.2 (`modules/pooling.py`), for padding on the right.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dr_validate.encoder.terms import PoolingName


def pool(hidden: Tensor, lengths: Tensor, modes: Sequence[PoolingName], skip: int) -> Tensor:
    """(num_texts, len(modes) * width) from hidden (num_texts, longest, width); the first `skip` tokens are left out."""
    hidden = hidden.float()
    places = torch.arange(hidden.shape[1], device=hidden.device)
    inside = (places < lengths[:, None]) & (places >= skip)  # (num_texts, longest)
    return torch.cat([_pool_one(hidden, lengths, inside, mode, skip) for mode in modes], dim=-1)


def _pool_one(hidden: Tensor, lengths: Tensor, inside: Tensor, mode: PoolingName, skip: int) -> Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    if mode == "cls":
        return hidden[rows, torch.where(lengths > skip, skip, 0)]
    if mode == "last":
        return hidden[rows, lengths - 1]
    if mode == "max":
        return hidden.masked_fill(~inside[:, :, None], float("-inf")).amax(dim=1)
    weights = inside.float()
    if mode == "weighted_mean":  # SGPT (Muennighoff 2022): weight = position, counted from 1
        weights = weights * torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    total = torch.einsum("tlw,tl->tw", hidden, weights)
    count = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len" else count)
