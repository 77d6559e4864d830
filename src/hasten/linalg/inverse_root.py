"""Inverse p-th roots of stacks of symmetric positive semi-definite matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.checks import check_choice
from hasten.linalg.symmetric import (
    check_matrices,
    check_number,
    eigh,
    finite,
    identity,
    in_full_precision,
    largest_entry,
    symmetric,
)
from hasten.words import NONNEGATIVE, POSITIVE

NEWTON_STEPS = 100
"""The least eigenvalue of M at least doubles in a step, so that 60 steps suffice for any float64 matrix."""
POWER_STEPS = 32


@in_full_precision
def inv_root(
    a: Tensor,
    p: float,
    eps: float = 0.0,
    relative_eps: float = 0.0,
    fallback: Tensor | None = None,
    *,
    method: str = "eigh",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The inverse p-th roots (A + s I)^(-1/p) of a stack of symmetric positive semi-definite matrices.

    ``s = -min(λ_min, 0) + eps + relative_eps λ_max`` lifts every eigenvalue to at least ``eps``, also those that
    rounding has made negative. Only the symmetric part of A counts.

    Matrices whose root comes out not finite in float32 are taken again in float64; where that fails too (or A itself
    is not finite), the result is `fallback` where it is given, and NaN otherwise: one bad matrix does not disturb its
    neighbours.

    The derivative, in reverse and in forward mode, is exact (Daleckii & Krein), with the dependence of s on A
    included, and finite at equal eigenvalues; a second derivative is refused.

    Args:
        a: matrices [..., n, n], float32 or float64.
        p: any positive number; an integer where ``method="newton"``.
        eps: added to every eigenvalue, in units of A.
        relative_eps: added to every eigenvalue, in units of the largest.
        fallback: matrices [..., n, n] (or of a shape that broadcasts to it) for where no root is found.
        method: ``"eigh"``: by eigendecomposition. ``"newton"``: the coupled Newton iteration ``X ← X T, M ← T^p M``
            with ``T = ((p + 1) I - M) / p``, products of matrices only; λ_max comes from a power iteration there,
            and matrices that it does not settle (as with negative eigenvalues) are left to ``"eigh"``.
        dtype: of the computation; None: that of `a`. Decompositions in float32 miss the least eigenvalues by about
            1e-7 λ_max; of a float32 matrix of condition 1e6, A^(-1/4) is found to 2 % in float32 and to 0.02 % in
            float64.

    Returns:
        Matrices of the shape and dtype of `a`.

    Raises:
        ValueError: unless `a` holds square matrices in float32 or float64, p > 0, eps ≥ 0 and relative_eps ≥ 0.

    Source: shifts and retries in the order of Distributed Shampoo (Shi et al. 2023, arXiv:2309.06497); the coupled
    iteration of Guo & Higham 2006 (SIAM J. Matrix Anal. Appl. 28, 788).

    Example:
        >>> import torch
        >>> from hasten.linalg import inv_root
        >>> a = torch.tensor([[[5.0, 4.0], [4.0, 5.0]]], dtype=torch.float64)  # eigenvalues 1 and 9
        >>> inv_root(a, 2)
        tensor([[[ 0.6667, -0.3333],
                 [-0.3333,  0.6667]]], dtype=torch.float64)
    """
    check_matrices("inv_root", a)
    check_choice("inv_root", "method", method, ("eigh", "newton"))
    check_number("inv_root", "p", p, POSITIVE)
    check_number("inv_root", "eps", eps, NONNEGATIVE)
    check_number("inv_root", "relative_eps", relative_eps, NONNEGATIVE)
    if method == "newton" and p != int(p):
        raise ValueError(f"inv_root: p = {p!r} is not allowed with method='newton'; it must be an integer")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"inv_root: dtype = {dtype} is not allowed; it must be torch.float32 or torch.float64"
        )
    given, a = a.dtype, a if dtype is None else a.to(dtype)
    usable = finite(a)
    a = symmetric(torch.where(usable, a, identity(a)))
    root: Tensor = _InverseRoot.apply(a, float(p), float(eps), float(relative_eps), method)[0]  # type: ignore[no-untyped-call]
    root = root.to(given)
    usable = usable & finite(root)
    return torch.where(usable, root, torch.nan if fallback is None else fallback.to(given))


class _InverseRoot(torch.autograd.Function):
    """A → (A + s I)^(-1/p) for symmetric A, with the eigenvalues and vectors that its derivative needs."""

    @staticmethod
    def forward(
        a: Tensor, p: float, eps: float, relative_eps: float, method: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        if method == "newton":
            root = newton(a + (eps + relative_eps * _largest(a)) * identity(a), int(p))
            if finite(root).all():
                return root, a.new_empty(0), a.new_empty(0)
        values, vectors = eigh(a)
        root = _of_eigen(values, vectors, p, eps, relative_eps)
        if a.dtype == torch.float32 and not root.isfinite().all():
            again, wide = eigh(a.double())
            retried = _of_eigen(again, wide, p, eps, relative_eps).float()
            root = torch.where(finite(root), root, retried)
            lost = ~values.isfinite()
            vectors = torch.where(lost.unsqueeze(-2), wide.float(), vectors)
            values = torch.where(lost, again.float(), values)
        return root, values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        a, *ctx.settings, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(a, *output[1:])
        ctx.save_for_forward(a, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        return _derivative(ctx, gradients[0], adjoint=True), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, None, None]:
        return _derivative(ctx, tangents[0], adjoint=False), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], a: Tensor, *settings: Any) -> tuple[Any, Any]:
        root, *eigen = _InverseRoot.apply(a.movedim(in_dims[0] or 0, 0), *settings)  # type: ignore[no-untyped-call]
        return (root, *eigen), (0, *(0 if known.numel() else None for known in eigen))


@in_full_precision
def _derivative(ctx: Any, along: Tensor | None, adjoint: bool) -> Tensor | None:
    """V (K ∘ Vᵀ E V) Vᵀ with K the divided differences of λ^(-1/p), and what the shift s adds to it."""
    if along is None:
        return None
    a, values, vectors = (saved.detach() for saved in ctx.saved_tensors)
    if not a.numel():
        return along
    if not values.numel():
        values, vectors = eigh(a)
    p, eps, relative_eps = ctx.settings
    least, most = (values[..., 0] < 0).to(values.dtype), relative_eps * (values[..., -1] > 0)
    inner = vectors.mT @ symmetric(along.detach()) @ vectors
    differences = divided_differences(_lifted(values, eps, relative_eps), p)
    # Where there is no derivative there is no root either: what stands in its place does not depend on A.
    differences = torch.where(finite(differences), differences, 0)
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    if adjoint:
        inner = differences * inner
        diagonal = inner.diagonal(dim1=-2, dim2=-1)
        trace = diagonal.sum(-1)
        diagonal[..., 0] -= least * trace
        diagonal[..., -1] += most * trace
    else:
        diagonal += (most * diagonal[..., -1] - least * diagonal[..., 0]).unsqueeze(-1)
        inner = differences * inner
    derivative: Tensor = _Once.apply(vectors @ inner @ vectors.mT, ctx.saved_tensors[0], along)  # type: ignore[no-untyped-call]
    return derivative


class _Once(torch.autograd.Function):
    """A derivative as it is, that refuses to be differentiated by what it was computed from."""

    generate_vmap_rule = True

    @staticmethod
    def forward(derivative: Tensor, *sources: Tensor) -> Tensor:
        return derivative.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        return

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("inv_root has no second derivative; inv_sqrtm and sqrtm have")

    jvp = backward


def _lifted(values: Tensor, eps: float, relative_eps: float) -> Tensor:
    shift = eps + relative_eps * values[..., -1:].clamp(min=0) - values[..., :1].clamp(max=0)
    return values + shift


def _of_eigen(values: Tensor, vectors: Tensor, p: float, eps: float, relative_eps: float) -> Tensor:
    powers = _lifted(values, eps, relative_eps) ** (-1 / p)
    return symmetric((vectors * powers.unsqueeze(-2)) @ vectors.mT)


def divided_differences(values: Tensor, p: float) -> Tensor:
    """(f(a) - f(b)) / (a - b) of f(x) = x^(-1/p) for all pairs of positive values [..., n], f'(a) where they are equal.

    For a > b it is b^(-1/p) expm1(-log(a/b)/p) / (a - b), where nothing cancels.

    Example:
        >>> import torch
        >>> divided_differences(torch.tensor([1.0, 4.0]), 2)
        tensor([[-0.5000, -0.1667],
                [-0.1667, -0.0625]])
    """
    one, other = values.unsqueeze(-1), values.unsqueeze(-2)
    a, b = torch.maximum(one, other), torch.minimum(one, other)
    gap = a - b
    difference = torch.expm1(-torch.log1p(gap / b) / p) / gap
    quotient: Tensor = b ** (-1 / p) * torch.where(gap == 0, -1 / (p * b), difference)
    return quotient


def newton(a: Tensor, p: int) -> Tensor:
    """A^(-1/p) of symmetric positive definite matrices by the coupled Newton iteration; NaN where it does not settle.

    ``z = (p + 1) / (2 ‖A‖_F); X = z^(1/p) I; M = z A;`` then ``T = ((p + 1) I - M) / p; X ← X T; M ← T^p M`` until
    max |M - I| no longer falls. Each matrix stops by itself.
    """
    one = identity(a)
    z = (p + 1) / (2 * torch.linalg.matrix_norm(a, keepdim=True))
    x, m = z ** (1 / p) * one, z * a
    error = _distance(m, one)
    running = torch.ones_like(error, dtype=torch.bool)
    for _ in range(NEWTON_STEPS):
        t = ((p + 1) * one - m) / p
        x_next, m_next = symmetric(x @ t), symmetric(torch.linalg.matrix_power(t, p) @ m)
        after = _distance(m_next, one)
        # At first the small eigenvalues only grow, and the error stays near 1.
        running = running & ((after < error) | (after > 0.5) & (after < 2 * p))
        x, m = torch.where(running, x_next, x), torch.where(running, m_next, m)
        error = torch.where(running, after, error)
        if not bool(running.any()):
            break
    settled = error < 1e3 * a.shape[-1] * torch.finfo(a.dtype).eps
    return torch.where(settled, x, torch.nan)


def _distance(m: Tensor, one: Tensor) -> Tensor:
    return largest_entry(m - one)


def _largest(a: Tensor) -> Tensor:
    """λ_max of symmetric positive semi-definite matrices by power iteration, [..., 1, 1]."""
    if not a.numel():
        return a.new_zeros(*a.shape[:-2], 1, 1)
    heaviest = a.norm(dim=-2).argmax(-1)[..., None, None].expand(*a.shape[:-1], 1)
    v = a.gather(-1, heaviest)
    tiny = torch.finfo(a.dtype).tiny
    for _ in range(POWER_STEPS):
        v = a @ (v / v.norm(dim=-2, keepdim=True).clamp(min=tiny))
    unit = v / v.norm(dim=-2, keepdim=True).clamp(min=tiny)
    rayleigh: Tensor = unit.mT @ (a @ unit)
    return rayleigh
