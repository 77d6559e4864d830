"""The orthogonal polar factor of matrices: exact, or nearly and fast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.checks import check_choice
from hasten.linalg.coefficients import MUON_PLUS, NS5, Coefficients, Quintic, polar_express
from hasten.linalg.newton_schulz import newton_schulz, unit_norm

BACKENDS = ("polar_express", "ns5", "muon_plus", "turbo", "svd")


def orthogonalize(
    x: Tensor,
    backend: str = "polar_express",
    steps: int | None = None,
    coefficients: Sequence[Quintic] | None = None,
    low_precision: bool = True,
    *,
    eps: float = 0.0,
) -> Tensor:
    """The orthogonal polar factor U Vᵀ of every matrix U S Vᵀ of a stack [k, m, n], exactly or nearly.

    Args:
        x: matrices, float32 or float64. Not changed.
        backend: one of `BACKENDS`.
        steps: of the iteration; None: 5, for ``"turbo"`` 4.
        coefficients: (a, b, c) of each step in place of the backend's own, after its normalisation.
        low_precision: iterate in bfloat16 unless the matrices are float64.
        eps: matrices of a smaller Frobenius norm shrink in proportion, as in ``torch.optim.Muon`` (1e-7); 0: none do,
            the result does not depend on the scale. A zero matrix gives zero.

    Returns:
        As `x`.
    """
    check_choice("orthogonalize", "backend", backend, BACKENDS)
    if backend == "svd":
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        return torch.where(s[..., :1, None] > 0, u @ v, 0.0)
    quintics = _quintics(backend, steps) if coefficients is None else tuple(coefficients)
    tall = x.shape[-2] > x.shape[-1]
    y = unit_norm(x.mT if tall else x, 1.02 if backend == "polar_express" else 1.0, eps)
    if low_precision and x.dtype is not torch.float64:
        y = y.bfloat16()
    y = newton_schulz(y, quintics)
    return (y.mT if tall else y).to(x.dtype)


def _quintics(backend: str, steps: int | None) -> Coefficients:
    if backend == "polar_express":
        return polar_express(steps or 5, safety=1.02, cushion=0.02)
    if backend == "ns5":
        return (NS5,) * (steps or 5)
    count = steps or (4 if backend == "turbo" else 5)
    return MUON_PLUS[-count:] + MUON_PLUS[-1:] * (count - len(MUON_PLUS))
