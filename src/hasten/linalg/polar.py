"""The orthogonal polar factor of matrices: exact, or nearly and fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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


def _express(steps: int) -> Coefficients:
    """Five steps: the table used in training. Each step less raises 4.5 times larger singular values to the same band.

    With less room for rounding (1.01, no cushion) bfloat16 was seen to throw singular values out of the band, to 9.
    """
    return polar_express(steps, 1e-3 * 4.5 ** max(0, 5 - steps), safety=1.02, cushion=0.02)


# Decimals cannot be traced. This is all that torch.compiler.assume_constant_result does, which imports the compiler.
_express._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _last_rows(steps: int) -> Coefficients:
    return MUON_PLUS[-steps:] + MUON_PLUS[-1:] * (steps - len(MUON_PLUS))


ITERATIONS: dict[str, Backend] = {
    "polar_express": Backend(4, _express, "schatten8", 1.02),
    "ns5": Backend(5, lambda steps: (NS5,) * steps, "frobenius"),
    "muon_plus": Backend(5, _last_rows, "frobenius"),
    "turbo": Backend(4, _last_rows, "rows"),
}
BACKENDS = (*ITERATIONS, "svd")


def polar(
    x: Tensor,
    method: str = "svd",
    steps: int | None = None,
    *,
    coefficients: Sequence[Quintic] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""The orthogonal polar factor U Vᵀ of matrices U S Vᵀ: the nearest matrix with orthonormal rows or columns.

    | method | iteration ``X ← a X + (b A + c A²) X, A = X Xᵀ`` | steps |
    |---|---|---|
    | ``"svd"`` | none: by singular value decomposition, exact | |
    | ``"polar_express"`` | quintics of least worst-case error, one after another, from X / (Σ σ⁸)^⅛ | 4 |
    | ``"ns5"`` | one quintic, steep at zero; singular values end between 0.68 and 1.20, never nearer | 5 |
    | ``"muon_plus"`` | the table of Muon+; longer rows repeat its last | 5 |
    | ``"turbo"`` | the last rows of the same, from X with rescaled rows: a slightly different limit | 4 |

    The iterations are meant for optimizers, which need speed, and directions rather than digits. Relative errors
    ‖X − U Vᵀ‖_F / √r of a Gaussian 1024 × 1024 matrix, a 256 × 1024 one, and one with singular values 1/k, k ≤ 256, in
    bfloat16: ``"polar_express"`` 0.10, 0.08, 0.10; with 6 steps 0.03, 0.02, 0.02; ``"ns5"`` 0.21, 0.15, 0.19;
    ``"muon_plus"`` 0.13, 0.02, 0.09; ``"turbo"`` 0.10, 0.02, 0.28. Why ``"polar_express"`` takes 4 steps: with the
    norm (Σ σ⁸)^⅛ in place of the usual ‖X‖_F, which is several times the largest singular value, they leave smaller
    errors than 5 steps of ``"ns5"`` from ‖X‖_F unless singular values fall as fast as 1/k².

    Singular values that are zero, up to rounding, stay zero: a zero matrix gives zero, and U Vᵀ is unique. The
    derivative, in reverse mode, once, is that of the exact factor at X whatever the method. It is not finite where
    the smaller dimension exceeds the rank.

    Args:
        x: matrices [..., m, n] of any magnitude, float32 or float64.
        method: one of the table.
        steps: of the iteration. Not allowed with ``"svd"``.
        coefficients: (a, b, c) of each step in place of the method's own, after its normalisation.
        dtype: of the iteration; None: that of `x`. ``torch.bfloat16`` is what is fast where there are matrix units.

    Returns:
        [..., m, n], in the dtype of `x`. A matrix with NaN or an infinity gives NaN.

    Raises:
        ValueError: for matrices in another dtype, an unknown method, and arguments it does not take.

    Source: Jordan et al. 2024 (Muon); Amsel et al. 2025 (Polar Express); Boissin et al. 2025 (Turbo-Muon).

    Example:
        >>> import torch
        >>> from hasten.linalg import polar
        >>> x = torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
        >>> polar(x)
        tensor([[0.6000, 0.0000],
                [0.8000, 0.0000],
                [0.0000, 1.0000]], dtype=torch.float64)
        >>> (polar(x, "polar_express", steps=8) - polar(x)).abs().max() < 1e-6
        tensor(True)
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or x.dtype not in (torch.float32, torch.float64):
        given = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"polar: x = {given} is not allowed; it must be matrices [..., m, n] in torch.float32 or torch.float64"
        )
    quintics = _check("polar", method, steps, coefficients)
    if dtype is not None and (method == "svd" or not dtype.is_floating_point):
        raise ValueError(f"polar: dtype = {dtype} is not allowed with method={method!r}")
    factor: Tensor = _Polar.apply(x, method, quintics, dtype or x.dtype)  # type: ignore[no-untyped-call]
    return factor


class _Polar(torch.autograd.Function):
    """The factor by any method, with the derivative of the exact one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, method: str, quintics: Coefficients, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x)
        stack = x.reshape(x.shape[:-2].numel(), *x.shape[-2:])
        return _factors(stack, method, quintics, 0.0, dtype).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        tall = x.shape[-2] >= x.shape[-1]
        x, g = (x, along) if tall else (x.mT, along.mT)
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        # X = Q H, dQ = Q K + (I - Q Qᵀ) dX H⁻¹ with the skew K of K H + H K = Qᵀ dX - dXᵀ Q.
        inner = u.mT @ g @ v.mT
        turned = u @ ((inner - inner.mT) / (s.unsqueeze(-1) + s.unsqueeze(-2))) @ v
        outside = (g - u @ (u.mT @ g)) @ (v.mT / s.unsqueeze(-2)) @ v
        found = turned + outside if x.shape[-2] > x.shape[-1] else turned
        return found if tall else found.mT, None, None, None


def orthogonalize(
    x: Tensor,
    backend: str = "polar_express",
    steps: int | None = None,
    coefficients: Sequence[Quintic] | None = None,
    low_precision: bool = True,
    *,
    eps: float = 0.0,
) -> Tensor:
    """What optimizers call: :func:`polar` of a stack [k, m, n], nearly and fast, without a derivative.

    Args:
        x: matrices, float32 or float64. Not changed.
        backend: a method of :func:`polar`.
        steps: of the iteration; None: the method's own number.
        coefficients: (a, b, c) of each step in place of the method's own, after its normalisation.
        low_precision: iterate in bfloat16 unless the matrices are float64.
        eps: matrices of a smaller Frobenius norm shrink in proportion, as in ``torch.optim.Muon`` (1e-7); 0: none do,
            the result does not depend on the scale.

    Returns:
        As `x`.

    Example:
        >>> import torch
        >>> from hasten.linalg.polar import orthogonalize
        >>> orthogonalize(torch.full((1, 1, 4), 1e-20), "svd")
        tensor([[[0.5000, 0.5000, 0.5000, 0.5000]]])
    """
    quintics = _check("orthogonalize", backend, steps, coefficients)
    dtype = torch.bfloat16 if low_precision and x.dtype is not torch.float64 else x.dtype
    return _factors(x.detach(), backend, quintics, eps, dtype)


def _check(
    owner: str, method: str, steps: int | None, coefficients: Sequence[Quintic] | None
) -> Coefficients:
    """The quintics of the iteration; none for the exact factor."""
    check_choice(owner, "method", method, BACKENDS)
    if steps is not None and (method == "svd" or coefficients is not None):
        raise ValueError(
            f"{owner}: steps = {steps!r} is not allowed with {'coefficients' if coefficients else repr(method)}"
        )
    if coefficients is not None and method == "svd":
        raise ValueError(f"{owner}: coefficients = {coefficients!r} is not allowed with 'svd'")
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
        raise ValueError(f"{owner}: steps = {steps!r} is not allowed; it must be a whole number, at least 1")
    if coefficients is not None:
        if not coefficients or any(len(p) != 3 or not all(map(math.isfinite, p)) for p in coefficients):
            raise ValueError(
                f"{owner}: coefficients = {coefficients!r} is not allowed; it must be (a, b, c) for each step"
            )
        return tuple(coefficients)
    return () if method == "svd" else ITERATIONS[method].quintics(steps or ITERATIONS[method].steps)


def _factors(x: Tensor, method: str, quintics: Coefficients, eps: float, dtype: torch.dtype) -> Tensor:
    if method == "svd":
        return _exact(x)
    own = ITERATIONS[method]
    return newton_schulz(x, quintics, own.norm, margin=own.margin, eps=eps, dtype=dtype)


def _exact(x: Tensor) -> Tensor:
    usable = x.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    u, s, v = torch.linalg.svd(torch.where(usable, x, 0.0), full_matrices=False)
    if not s.numel():
        return torch.zeros_like(x)
    floor = s[..., :1] * (max(x.shape[-2:]) * torch.finfo(x.dtype).eps)
    return torch.where(usable, (u * (s > floor).to(s.dtype).unsqueeze(-2)) @ v, torch.nan)
