"""Attention in blocks is attention."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_models import same
from torch.func import jvp

from hasten.oracles import attention
from hasten.oracles.attention import blockwise_attention, differentiable_attention


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 9),
    keys=st.integers(1, 9),
    block=st.integers(1, 60),
    kind=st.sampled_from(["none", "causal", "boolean", "float", "one row"]),
    seed=st.integers(0, 99),
)
def test_values_and_derivatives(length, keys, block, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(2, 3, length, 4), (2, 3, keys, 4), (2, 3, keys, 5)]
    q, k, v = (torch.randn(s, dtype=torch.float64, generator=generator) for s in sizes)
    tangents = tuple(torch.randn(s, dtype=torch.float64, generator=generator) for s in sizes)
    seen = torch.rand(length, keys, generator=generator) > 0.4
    seen[:, 0] = True
    mask = {"boolean": seen, "float": seen.double(), "one row": seen[:1]}.get(kind)
    options = {"attn_mask": mask, "is_causal": kind == "causal", "scale": 0.3}
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        patch.setattr(attention, "BLOCK_ENTRIES", 6 * block)
        found = jvp(lambda *x: blockwise_attention(*x, **options), (q, k, v), tangents)
        exact = jvp(lambda *x: F.scaled_dot_product_attention(*x, **options), (q, k, v), tangents)
    assert all(same(a, b) for a, b in zip(found, exact, strict=True))


def test_blocks_are_used_inside_and_only_inside(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_ENTRIES", 8)
    own = F.scaled_dot_product_attention
    layer = torch.nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    whole = layer(x, x, x, need_weights=False)[0]
    sizes = []
    monkeypatch.setattr(attention, "_WHOLE", lambda q, *a, **k: sizes.append(q.shape[-2]) or own(q, *a, **k))
    with differentiable_attention():
        found = layer(x, x, x, need_weights=False)[0]
    assert same(found.detach(), whole.detach())
    assert sizes == [1] * 6
    with pytest.raises(KeyError), differentiable_attention():
        raise KeyError
    assert F.scaled_dot_product_attention is own
