"""Newton–Schulz iterations towards the orthogonal polar factor, for stacks of matrices."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hasten.linalg.coefficients import Quintic


def newton_schulz(x: Tensor, quintics: Iterable[Quintic]) -> Tensor:
    """X ← a X + (b A + c A²) X with A = X Xᵀ, for each quintic, from wide matrices [k, m, n] of norm at most one."""
    for a, b, c in quintics:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def unit_norm(x: Tensor, margin: float = 1.0, eps: float = 0.0) -> Tensor:
    """X / (margin · max(‖X‖_F, eps)); zero for zero. Norms are taken in the dtype of `x`, of any magnitude."""
    largest = x.abs().amax(dim=(-2, -1), keepdim=True)
    scaled = x / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=(-2, -1), keepdim=True)
    if eps > 0:
        norm = torch.maximum(norm, eps / torch.where(largest > 0, largest, 1.0))
    return scaled / torch.where(norm > 0, norm * margin, 1.0)
