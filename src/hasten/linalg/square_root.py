"""Differentiable square roots and inverse square roots of stacks of symmetric positive definite matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.checks import check_choice
from hasten.linalg.lyapunov import lyapunov
from hasten.linalg.rational import pade, polynomial
from hasten.linalg.symmetric import (
    check_matrices,
    eigh,
    identity,
    in_full_precision,
    largest_entry,
    symmetric,
)

METHODS = ("eigh", "pade", "mpa", "mtp", "newton_schulz")
LARGEST = {torch.float32: 16.0, torch.float64: 64.0}
"""How far eigenvalues may lie above 1 in the Padé approximant: its fifth powers must not drown what lies below."""
NEWTON_SCHULZ_STEPS = 60
"""A small eigenvalue grows by 9/4 in a step, so that these suffice for any float64 matrix."""


def sqrtm(a: Tensor, method: str = "eigh", steps: int | None = None) -> Tensor:
    r"""The principal square root A^(1/2) of symmetric positive semi-definite matrices.

    Only the symmetric part of A counts. With μ = tr A / n, φ = ‖A‖_F of each matrix by itself, and N/D the [5/5]
    Padé approximant of √x at x = 1:

    | method | A^(1/2) | products | relative error at condition 10, 1e2, 1e4 (n = 64) |
    |---|---|---|---|
    | ``"eigh"`` | V Λ^(1/2) Vᵀ | – | rounding |
    | ``"pade"`` | μ^½ D(A/μ)⁻¹ N(A/μ) | 4 and a solve | 1e-6, 8e-4, 2e-2 |
    | ``"mpa"`` | φ^½ D(A/φ)⁻¹ N(A/φ), as published | 4 and a solve | 9e-3, 5e-2, 2e-1 |
    | ``"mtp"`` | φ^½ Σ t_k (I - A/φ)^k, k ≤ 10, Taylor | 5 | 8e-2, 2e-1, 4e-1 |
    | ``"newton_schulz"`` | ``Y = A/φ, Z = I; T = (3I - Z Y)/2; Y ← Y T; Z ← T Z`` | 3 a step | rounding, once settled |

    ``"pade"``, ``"mpa"`` and ``"mtp"`` approximate, and are accurate where eigenvalues are not small against the
    scale: add a multiple of I. They pay on devices on which eigendecompositions are slow. ``"pade"`` differs from
    ``"mpa"`` only in the scale: the approximant is as good at 1/x as at x, so that the mean of the eigenvalues
    suits it, and ‖A‖_F, which lies above all of them, does not. (The scale is φ/16 in float32 and φ/64 in float64
    where that is larger.)

    The derivative of A^(1/2) along E is the X of ``S X + X S = E``, solved at the S that was returned: by
    eigenvalues after ``"eigh"``, otherwise by an iteration that runs until it has settled (see
    :func:`hasten.linalg.lyapunov.lyapunov`), which costs several times the root itself. After ``"mpa"`` and
    ``"mtp"`` it is thus that of the exact root of S², as published. ``"pade"`` is differentiated as it is computed,
    at a third of the cost. Derivatives can be taken any number of times, in reverse and in forward mode, and under
    ``torch.func``; at singular A they are not finite. ``torch.compile`` traces ``"pade"`` whole, and breaks its graph
    at the others.

    A matrix with NaN, or with an eigenvalue that is negative beyond rounding, gives NaN with ``"eigh"``; the other
    methods do not notice negative eigenvalues. A zero matrix gives zero.

    Args:
        a: matrices [..., n, n], float32 or float64.
        method: one of the table.
        steps: of ``"newton_schulz"``; None: until ``‖I - Z Y‖_F`` is below the square root of the precision or stops
            falling, and once more. Not allowed with other methods.

    Returns:
        Matrices of the shape and dtype of `a`, symmetric.

    Raises:
        ValueError: unless `a` holds square matrices in float32 or float64, and `method` is known.

    Source: Song, Sebe & Wang 2022, "Fast Differentiable Matrix Square Root and Inverse Square Root"
    (arXiv:2201.12543).

    Example:
        >>> import torch
        >>> from hasten.linalg import sqrtm
        >>> a = torch.tensor([[5.0, 4.0], [4.0, 5.0]], dtype=torch.float64, requires_grad=True)
        >>> root = sqrtm(a)
        >>> root.detach()
        tensor([[2.0000, 1.0000],
                [1.0000, 2.0000]], dtype=torch.float64)
        >>> root.trace().backward()
        >>> a.grad  # of the trace of the root: A^(-1/2) / 2
        tensor([[ 0.3333, -0.1667],
                [-0.1667,  0.3333]], dtype=torch.float64)
    """
    _check("sqrtm", a, method, steps)
    return _root(a, method, steps, inverse=False)


def inv_sqrtm(a: Tensor, method: str = "eigh", steps: int | None = None) -> Tensor:
    r"""The inverse square root A^(-1/2) of symmetric positive definite matrices.

    As :func:`sqrtm`, with ``N⁻¹ D`` in place of ``D⁻¹ N`` for ``"pade"`` and ``"mpa"``, the Taylor polynomial of
    (1 - z)^(-1/2) for ``"mtp"`` and the other sequence, Z, of ``"newton_schulz"``. Relative errors at condition 10,
    1e2, 1e4 (n = 64) are 5e-6, 9e-3, 5e-1 for ``"pade"`` and 2e-2, 3e-1, 8e-1 for ``"mpa"``: small eigenvalues weigh
    more here.

    The derivative along E is the X of ``R X + X R = -R² E R²``, R = A^(-1/2).

    The inverse root of a singular matrix is not finite; add a multiple of I, or use
    :func:`hasten.linalg.inv_root`, which has one.

    Args:
        a: matrices [..., n, n], float32 or float64.
        method: ``"eigh"``, ``"pade"``, ``"mpa"``, ``"mtp"`` or ``"newton_schulz"``.
        steps: as for :func:`sqrtm`.

    Returns:
        Matrices of the shape and dtype of `a`, symmetric.

    Raises:
        ValueError: as :func:`sqrtm`.

    Example:
        A batch whitened, by a rotation as near to none as can be (ZCA), through which gradients flow:

        >>> import torch
        >>> from hasten.linalg import inv_sqrtm
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        ...     [[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.3]]
        ... )
        >>> x = x - x.mean(0)
        >>> white = x @ inv_sqrtm(x.mT @ x / len(x))
        >>> print((white.mT @ white / len(x) - torch.eye(3)).abs().max() < 1e-5)
        tensor(True)
    """
    _check("inv_sqrtm", a, method, steps)
    return _root(a, method, steps, inverse=True)


def _check(owner: str, a: Tensor, method: str, steps: int | None) -> None:
    check_matrices(owner, a)
    check_choice(owner, "method", method, METHODS)
    if steps is None:
        return
    if method != "newton_schulz":
        raise ValueError(f"{owner}: steps = {steps!r} is not allowed with method={method!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{owner}: steps = {steps!r} is not allowed; it must be an integer of at least 1")


@in_full_precision
def _root(a: Tensor, method: str, steps: int | None, inverse: bool) -> Tensor:
    # Over a power of 4 every matrix is near 1, whatever its unit: squares of its entries neither overflow nor vanish.
    half = torch.round(torch.log2(largest_entry(a.detach())) / 2)
    unit = symmetric(a * torch.exp2(-half) * torch.exp2(-half))
    root: Tensor
    if method == "pade":
        scale = _mean_eigenvalue(unit)
        root = symmetric(pade(unit / scale.clamp(min=torch.finfo(a.dtype).tiny), inverse))
        root = root * (scale.rsqrt() if inverse else scale.sqrt())
    else:
        root = _Root.apply(unit, method, steps, inverse)[0]  # type: ignore[no-untyped-call]
    return root * torch.exp2(-half if inverse else half)


def _mean_eigenvalue(a: Tensor) -> Tensor:
    mean = a.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] / max(a.shape[-1], 1)
    norm = torch.linalg.matrix_norm(a, keepdim=True)
    return torch.maximum(mean, norm / LARGEST[a.dtype])


class _Root(torch.autograd.Function):
    """A → A^(1/2) or A^(-1/2) for symmetric A, with the eigenvalues and vectors of the root where they are known."""

    @staticmethod
    def forward(a: Tensor, method: str, steps: int | None, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        if method == "eigh":
            return _by_eigen(a, inverse)
        scale = torch.linalg.matrix_norm(a, keepdim=True)
        unit = a / scale.clamp(min=torch.finfo(a.dtype).tiny)
        if method == "newton_schulz":
            root = newton_schulz(unit, steps)[inverse]
        else:
            root = symmetric((polynomial if method == "mtp" else pade)(unit, inverse))
        root = root / scale.sqrt() if inverse else root * scale.sqrt()
        return root, a.new_empty(0), a.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.inverse = inputs[-1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        return _derivative(ctx, gradients[0]), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, None, None]:
        return _derivative(ctx, tangents[0]), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], a: Tensor, *settings: Any) -> tuple[Any, Any]:
        root, *eigen = _Root.apply(a.movedim(in_dims[0] or 0, 0), *settings)  # type: ignore[no-untyped-call]
        return (root, *eigen), (0, *(0 if known.numel() else None for known in eigen))


@in_full_precision
def _derivative(ctx: Any, along: Tensor | None) -> Tensor | None:
    if along is None:
        return None
    root, *eigen = ctx.saved_tensors
    if not ctx.inverse:
        return lyapunov(root, along, tuple(eigen))
    square = root @ root
    derivative: Tensor = -square @ lyapunov(root, along, tuple(eigen)) @ square
    return derivative


def newton_schulz(x: Tensor, steps: int | None = None) -> tuple[Tensor, Tensor]:
    """X^(1/2) and X^(-1/2) of symmetric positive definite matrices with eigenvalues in (0, 1], [..., n, n].

    ``Y = X, Z = I;`` then ``T = (3I - Z Y)/2; Y ← Y T; Z ← T Z``.
    """
    one = identity(x)
    tolerance = max(torch.finfo(x.dtype).eps ** 0.5, x.shape[-1] * torch.finfo(x.dtype).eps)
    y, z = x, one.expand_as(x)
    before = torch.full((), torch.inf, dtype=x.dtype, device=x.device)
    for _ in range(NEWTON_SCHULZ_STEPS if steps is None else steps):
        residual = one - z @ y
        t = one + residual / 2
        y, z = y @ t, t @ z
        if steps is not None:
            continue
        error = torch.linalg.matrix_norm(residual)
        # The residual of small eigenvalues stays near 1 at first; below that it falls until rounding stops it.
        if bool(((error < tolerance) | (error < 0.5) & (error >= before) | error.isnan()).all()):
            break
        before = error
    return symmetric(y), symmetric(z)


def _by_eigen(a: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    values, vectors = eigh(a)
    rounding = (
        a.shape[-1] * torch.finfo(a.dtype).eps * values.abs().amax(-1, keepdim=True) if a.numel() else 0
    )
    values = torch.where(values < -rounding, torch.nan, values.clamp(min=0))
    values = values.rsqrt() if inverse else values.sqrt()
    return symmetric((vectors * values.unsqueeze(-2)) @ vectors.mT), values, vectors
