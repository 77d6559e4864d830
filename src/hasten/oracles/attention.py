"""Attention that can be differentiated forward, in blocks of queries: long contexts need no T×T matrix."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BLOCK_ENTRIES = 2**20
"""Scores held at once, at most."""

_WHOLE = F.scaled_dot_product_attention


@contextlib.contextmanager
def differentiable_attention() -> Iterator[None]:
    """Inside it, ``scaled_dot_product_attention`` uses the math backend, block by block.

    Torch's faster kernels have no forward derivative, and its math backend holds all scores of a layer at once.
    """
    before = F.scaled_dot_product_attention
    with sdpa_kernel(SDPBackend.MATH):
        F.scaled_dot_product_attention = blockwise_attention
        try:
            yield
        finally:
            F.scaled_dot_product_attention = before


def blockwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(QKᵀ/√d) V, the same as torch's, a block of queries at a time.

    With dropout all queries are taken together, so that the masks are those of an ordinary pass.

    Args:
        query: shape (…, L, d).
        key: shape (…, S, d).
        value: shape (…, S, e).
        attn_mask: broadcasts to (…, L, S).
        dropout_p: probability.
        is_causal: query i sees keys up to i.
        scale: in place of 1/√d.
        enable_gqa: whether heads of the keys are shared by several of the queries.

    Example:
        >>> q, k, v = torch.randn(3, 2, 5, 4).unbind()
        >>> torch.allclose(blockwise_attention(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6)
        True
    """
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    length, keys = query.shape[-2], key.shape[-2]
    rows = max(1, BLOCK_ENTRIES // max(math.prod(query.shape[:-2]) * keys, 1))
    if dropout_p > 0 or rows >= length:
        return _WHOLE(query, key, value, attn_mask, dropout_p, is_causal, **options)
    blocks = []
    for i in range(0, length, rows):
        j, seen, mask = min(i + rows, length), keys, attn_mask
        if is_causal:
            seen = min(j, keys)
            mask = torch.ones(j - i, seen, dtype=torch.bool, device=query.device).tril(i)
        elif mask is not None and mask.dim() > 1 and mask.shape[-2] == length:
            mask = mask[..., i:j, :]
        blocks.append(_WHOLE(query[..., i:j, :], key[..., :seen, :], value[..., :seen, :], mask, **options))
    return torch.cat(blocks, dim=-2)
