"""Attention over packed texts: nobody sees another text, and windows and causality are as transformers means them."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dr_validate.encoder.attention import Packing, Rule, attend, packing

LENGTHS = np.array([9, 9, 5, 2, 2, 2, 1])
RULES = [Rule(scale=0.3, causal=causal, window=window) for causal in (False, True) for window in (None, 1, 3, 9)]


def states(key_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(int(LENGTHS.sum()), 4, 8, generator=generator),
        torch.randn(int(LENGTHS.sum()), key_heads, 8, generator=generator),
        torch.randn(int(LENGTHS.sum()), key_heads, 8, generator=generator),
    )


def one_text_at_a_time(parts: tuple[Tensor, Tensor, Tensor], bounds: list[int], sees: Tensor, scale: float) -> Tensor:
    """`sees` (longest, longest): whether a token at the place of the row sees the one at the place of the column."""
    query, key, value = (part.transpose(0, 1) for part in parts)
    key, value = (part.repeat_interleave(len(query) // len(part), dim=0) for part in (key, value))
    outs = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        q, k, v = (part[None, :, start:stop] for part in (query, key, value))
        mask = sees[: stop - start, : stop - start]
        outs.append(functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)[0].transpose(0, 1))
    return torch.cat(outs)


def expected(parts: tuple[Tensor, Tensor, Tensor], rule: Rule) -> Tensor:
    distance = torch.arange(9)[:, None] - torch.arange(9)
    sees = torch.ones(9, 9, dtype=torch.bool)
    if rule.causal:
        sees &= distance >= 0
    if rule.window is not None:
        sees &= distance.abs() < rule.window
    assert rule.scale is not None
    return one_text_at_a_time(parts, [0, *np.cumsum(LENGTHS).tolist()], sees, rule.scale)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("key_heads", [4, 2])
def test_packed_attention_is_that_of_one_text_at_a_time(rule: Rule, key_heads: int) -> None:
    parts = states(key_heads)
    assert torch.allclose(attend(parts, packing(LENGTHS, "cpu"), rule), expected(parts, rule), atol=1e-6)


def of_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """`varlen_attn` as torch 2.11 has it, computed one text at a time; it has no grouped heads."""
    assert query.shape[1] == key.shape[1] == value.shape[1]
    assert cu_seq_q is cu_seq_k and cu_seq_q.dtype == torch.int32 and (max_q, max_k) == (9, 9) and scale is not None
    ahead = torch.arange(9) - torch.arange(9)[:, None]
    left, right = (int(size) if size >= 0 else 99 for size in window_size)
    return one_text_at_a_time((query, key, value), cu_seq_q.tolist(), (ahead <= right) & (-ahead <= left), scale)


def of_2_12(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """As torch 2.12 and 2.13 have it."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    return of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.mark.parametrize("varlen_attn", [of_2_11, of_2_12], ids=["torch-2.11", "torch-2.12-and-2.13"])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_fused_kernel_of_each_torch_is_asked_for_the_same(
    rule: Rule, key_heads: int, varlen_attn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    parts = states(key_heads)
    bounds = torch.tensor([0, *np.cumsum(LENGTHS).tolist()], dtype=torch.int32)
    found = attend(parts, Packing(groups=(), longest=9, bounds=bounds), rule)
    assert torch.allclose(found, expected(parts, rule), atol=1e-6)


def test_the_torch_that_is_installed_has_one_of_these_signatures() -> None:
    from torch.nn.attention.varlen import varlen_attn

    def names(function: Any) -> list[tuple[str, Any]]:
        return [(name, one.kind) for name, one in inspect.signature(function).parameters.items()]

    if torch.__version__ < "2.14":
        assert names(varlen_attn) in (names(of_2_11), names(of_2_12))
