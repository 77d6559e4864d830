"""The orthogonal polar factor of matrices: exact, or nearly and fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.checks import check_choice
from hasten.linalg.coefficients import MUON_PLUS, NS5, Coefficients, Quintic, polar_express
from hasten.linalg.newton_schulz import Norm, newton_schulz


@dataclass(frozen=True)
class Backend:
    """An iteration: how many steps unless told otherwise, its quintics for a number of steps, its first norm."""

    steps: int
    quintics: Callable[[int], Coefficients]
    norm: Norm
    margin: float = 1.0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # decimals cannot be traced
def _express(steps: int) -> Coefficients:
    """Five steps: the table used in training. Each step less raises 4.5 times larger singular values to the same band.

    With less room for rounding (1.01, no cushion) bfloat16 was seen to throw singular values out of the band, to 9.
    """
    return polar_express(steps, 1e-3 * 4.5 ** max(0, 5 - steps), safety=1.02, cushion=0.02)


def _last_rows(steps: int) -> Coefficients:
    return MUON_PLUS[-steps:] + MUON_PLUS[-1:] * (steps - len(MUON_PLUS))


ITERATIONS: dict[str, Backend] = {
    "polar_express": Backend(4, _express, "schatten8", 1.02),
    "ns5": Backend(5, lambda steps: (NS5,) * steps, "frobenius"),
    "muon_plus": Backend(5, _last_rows, "frobenius"),
    "turbo": Backend(4, _last_rows, "rows"),
}
BACKENDS = (*ITERATIONS, "svd")


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
        steps: of the iteration; None: 5, for ``"polar_express"`` and ``"turbo"`` 4.
        coefficients: (a, b, c) of each step in place of the backend's own, after its normalisation.
        low_precision: iterate in bfloat16 unless the matrices are float64.
        eps: matrices of a smaller Frobenius norm shrink in proportion, as in ``torch.optim.Muon`` (1e-7); 0: none do,
            the result does not depend on the scale. A zero matrix gives zero.

    Returns:
        As `x`.
    """
    check_choice("orthogonalize", "backend", backend, BACKENDS)
    if backend == "svd":
        # LAPACK refuses what is not finite.
        finite = torch.isfinite(x).all(-1, keepdim=True).all(-2, keepdim=True)
        u, s, v = torch.linalg.svd(torch.where(finite, x, 0.0), full_matrices=False)
        return torch.where(finite, torch.where(s[..., :1, None] > 0, u @ v, 0.0), torch.nan)
    own = ITERATIONS[backend]
    quintics = own.quintics(steps or own.steps) if coefficients is None else tuple(coefficients)
    dtype = torch.bfloat16 if low_precision and x.dtype is not torch.float64 else x.dtype
    return newton_schulz(x, quintics, own.norm, margin=own.margin, eps=eps, dtype=dtype).to(x.dtype)
