"""Newton–Schulz iterations towards the orthogonal polar factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NS5 = ((3.4445, -4.7750, 2.0315),) * 5


def newton_schulz(
    x: Tensor, coefficients: Sequence[tuple[float, float, float]], dtype: torch.dtype | None = None
) -> Tensor:
    """X ← a X + (b A + c A²) X with A = X Xᵀ, from X / ‖X‖_F, for a stack [k, m, n]."""
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).to(dtype or x.dtype)
    y = y / torch.linalg.matrix_norm(y, keepdim=True).clamp(min=1e-7)
    for a, b, c in coefficients:
        gram = y @ y.mT
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return (y.mT if tall else y).to(x.dtype)
