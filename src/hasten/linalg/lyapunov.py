"""The Lyapunov equation S X + X S = G, which is what the derivative of a matrix square root solves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.linalg.symmetric import eigh, finite, identity, in_full_precision, largest_entry, symmetric

LYAPUNOV_STEPS = 24
"""Enough for S of condition 1e3 (A = S² of condition 1e6); what is not settled by then is solved by eigh."""


@in_full_precision
def lyapunov(s: Tensor, g: Tensor, eigen: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The symmetric X of ``S X + X S = G`` for symmetric positive definite S and the symmetric part of G.

    Newton–Schulz for the sign of [[S, G], [0, -S]] = [[I, 2X], [0, -I]], each matrix over its own scale
    σ = ‖S²‖_F^½: ``B = S/σ, C = G/σ;`` then ``C ← (3C - CB² - B²C + BCB)/2; B ← B(3I - B²)/2`` until
    ``‖B - I‖_F`` is below the square root of the precision, and once more. Matrices that `LYAPUNOV_STEPS` do not
    bring there are solved by eigendecomposition.

    Differentiable any number of times, in both modes, and under ``torch.func.vmap``.

    Args:
        s: S, [..., n, n], float32 or float64.
        g: G, [..., n, n].
        eigen: eigenvalues [..., n] and eigenvectors [..., n, n] of S where they are known: then X comes from them,
            ``X = V (VᵀGV / (σ_i + σ_j)) Vᵀ``.

    Source: Song, Sebe & Wang 2022 (arXiv:2201.12543); there with 8 steps whatever S is, which is enough for
    S² of condition 50 at most.

    Example:
        >>> import torch
        >>> from hasten.linalg.lyapunov import lyapunov
        >>> lyapunov(torch.diag(torch.tensor([1.0, 3.0])), torch.ones(2, 2))
        tensor([[0.5000, 0.2500],
                [0.2500, 0.1667]])
    """
    values, vectors = eigen or (s.new_empty(0), s.new_empty(0))
    x: Tensor = _Lyapunov.apply(s, g, values, vectors)  # type: ignore[no-untyped-call]
    return x


class _Lyapunov(torch.autograd.Function):
    """X of S X + X S = G; the equation is its own adjoint, so that every derivative is one more such equation."""

    @staticmethod
    def forward(s: Tensor, g: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        g = symmetric(g)
        if values.numel():
            return by_eigen(values, vectors, g)
        x, settled = by_sign(s, g)
        return x if bool(settled.all()) else torch.where(settled, x, by_eigen(*eigh(s), g))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        s, _, values, vectors = inputs
        ctx.save_for_backward(s, output, values, vectors)
        ctx.save_for_forward(s, output, values, vectors)

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor, Tensor, None, None]:
        s, x, *eigen = ctx.saved_tensors
        for_g = lyapunov(s, along, tuple(eigen))
        return -2 * symmetric(for_g @ x), for_g, None, None

    @staticmethod
    def jvp(ctx: Any, s_along: Tensor, g_along: Tensor, *_: None) -> Tensor:
        s, x, *eigen = ctx.saved_tensors
        return lyapunov(s, g_along - 2 * symmetric(s_along @ x), tuple(eigen))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        s, g, values, vectors = (
            x.movedim(dim, 0) if dim is not None else x.expand(info.batch_size, *x.shape)
            for x, dim in zip(inputs, in_dims, strict=True)
        )
        return lyapunov(s, g, (values, vectors)), 0


def by_sign(s: Tensor, g: Tensor, steps: int = LYAPUNOV_STEPS) -> tuple[Tensor, Tensor]:
    """X by the iteration for symmetric G, and which matrices it has settled, [..., 1, 1]."""
    one = identity(s)
    tolerance = max(torch.finfo(s.dtype).eps ** 0.5, s.shape[-1] * torch.finfo(s.dtype).eps)
    entry = largest_entry(s)
    b, c = s / entry, g / entry
    scale = torch.linalg.matrix_norm(b @ b, keepdim=True).sqrt().clamp(min=torch.finfo(s.dtype).tiny)
    b, c = b / scale, c / scale
    settled = scale.new_zeros(scale.shape, dtype=torch.bool)
    for _ in range(steps):
        settled = torch.linalg.matrix_norm(b - one, keepdim=True) < tolerance
        product = b @ c
        # CB² + B²C - BCB is W + Wᵀ with W = B (BC - CB/2), since C is symmetric.
        c = 1.5 * c - symmetric(b @ (product - product.mT / 2))
        if bool(settled.all()):
            break
        b = 1.5 * b - (b @ (b @ b)) / 2
    return symmetric(c) / 2, settled & finite(c)


def by_eigen(values: Tensor, vectors: Tensor, g: Tensor) -> Tensor:
    """X from the eigenvalues and vectors of S."""
    inner = (vectors.mT @ g @ vectors) / (values.unsqueeze(-1) + values.unsqueeze(-2))
    return symmetric(vectors @ inner @ vectors.mT)
