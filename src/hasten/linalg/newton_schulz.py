"""Newton–Schulz iterations towards the orthogonal polar factor, for stacks of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hasten.linalg.coefficients import Quintic
from hasten.linalg.products import gram, halves, symmetric_product

Norm: TypeAlias = Literal["frobenius", "schatten8", "rows"]
"""What matrices are divided by at first, so that no singular value exceeds one. All come from the first Gram matrix A,
which the first step needs anyway.

`frobenius`: ‖X‖_F = (Σ σ²)^½. `schatten8`: (Σ σ⁸)^⅛ = ‖A²‖_F^¼, nearer to the largest singular value: of a square
Gaussian matrix of 1000 rows it is 1.6 times as large, ‖X‖_F 16 times. `rows`: row i (column i, if tall) by
(Σ_j |A_ij|)^½, "almost orthogonal layers"; the result is then the polar factor of the rescaled matrix.
"""


def newton_schulz(
    x: Tensor,
    quintics: Sequence[Quintic],
    norm: Norm = "frobenius",
    *,
    margin: float = 1.0,
    eps: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """X ← a X + (b A + c A²) X with A = X Xᵀ for each quintic; of tall X from the right, with A = Xᵀ X.

    Each X is multiplied by one matrix of the size of A. Where the longer side exceeds 1.5 times the shorter, that
    matrix takes two steps at once: the second A follows from the first. Not more than two: in bfloat16, rounding makes
    small eigenvalues of A negative, and these grow from step to step until X is computed again.

    Args:
        x: a stack of matrices [k, m, n] of any magnitude. Not changed.
        quintics: (a, b, c) of each step.
        norm: see `Norm`.
        margin: matrices are divided by so many times their norm: room for rounding.
        eps: matrices of a smaller Frobenius norm shrink in proportion to it. 0: none do.
        dtype: of the iteration; None: that of `x`.

    Returns:
        [k, m, n] in the dtype of the iteration. A zero matrix gives zero; one with a NaN or an infinity gives NaN.
    """
    y, largest = _over_largest(x.detach(), dtype or x.dtype)
    rows, columns = x.shape[-2:]
    tall = rows > columns
    stride = 2 if 2 * max(rows, columns) > 3 * min(rows, columns) else 1
    for i in range(0, len(quintics) if x.numel() else 0, stride):
        a, scale = gram(y), None
        if i == 0:
            a, z, scale = _normalised(a, quintics[0], norm, margin, largest / eps if eps else None)
        else:
            z = _bend(a, quintics[i])
        q = _factor(a, z, quintics[i : i + stride], scale)
        y = y @ q.mT if tall else q @ y
    return y


def _over_largest(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Matrices with largest entry ±1 in another dtype, and what they were divided by: 1 for zero."""
    if not x.numel():
        return x.to(dtype, copy=True), x.new_ones(len(x), 1, 1)
    largest = torch.maximum(x.amax((-2, -1), keepdim=True), -x.amin((-2, -1), keepdim=True))
    largest = torch.where(largest == 0, 1.0, largest)
    return torch.div(x, largest, out=torch.empty_like(x, dtype=dtype)), largest


def _normalised(
    a: Tensor, quintic: Quintic, norm: Norm, margin: float, unit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A and b A + c A² of the normalised X, and what the columns of its factor are to be multiplied by."""
    exact = torch.float64 if a.dtype is torch.float64 else torch.float32
    trace = a.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=exact)[:, None, None]
    factor = torch.full_like(trace, 1 / margin)
    if unit is not None:
        factor = factor * (trace.sqrt() * unit).clamp(max=1.0)
    if norm == "rows":
        rows = a.abs().sum(-1, keepdim=True, dtype=exact)
        scale = (torch.where(rows > 0, rows, 1.0).rsqrt() * factor).to(a.dtype)
        a = a * scale * scale.mT
        return a, _bend(a, quintic), scale.mT
    if norm == "frobenius":
        factor = factor / torch.where(trace > 0, trace, 1.0).sqrt()
        a = _combination(a, factor**2)
        return a, _bend(a, quintic), factor
    square = symmetric_product(a, a)
    size = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True).to(exact)
    factor = factor / torch.where(size > 0, size, 1.0) ** 0.25
    _, b, c = quintic
    a = _combination(a, factor**2)
    return a, _combination(square, c * factor**4, a, b), factor


def _combination(x: Tensor, p: Tensor, y: Tensor | None = None, q: float = 0.0) -> Tensor:
    """p x + q y for stacks [k, r, r] and numbers p [k, 1, 1], known more exactly than the entries. Overwrites x."""
    if x.device.type == "cpu" and len(x) <= 8 and not torch.compiler.is_compiling():
        # Numbers leave the entries in their dtype, a tensor of numbers would convert them first. No device to wait for.
        for one, number in zip(x, p.flatten().tolist(), strict=True):
            one.mul_(number)
        return x if y is None else x.add_(y, alpha=q)
    product = x * p
    return (product if y is None else product.add_(y, alpha=q)).to(x.dtype)


def _bend(a: Tensor, quintic: Quintic) -> Tensor:
    """b A + c A²."""
    _, b, c = quintic
    if halves(a):
        return symmetric_product(a, a).mul_(c).add_(a, alpha=b)
    return torch.baddbmm(a, a, a, beta=b, alpha=c)


def _factor(a: Tensor, z: Tensor, segment: Sequence[Quintic], scale: Tensor | None) -> Tensor:
    """What X is multiplied by in one step or two: (a₂ I + Z₂) (a₁ I + Z₁) · scale, Z = b A + c A². Overwrites `z`."""
    linear = segment[0][0]
    alone = len(segment) == 1
    if not alone:
        w = torch.baddbmm(a, z, a, beta=linear)
        a = torch.baddbmm(w, w, z, beta=linear)
    if scale is None:
        q = z if alone else z.clone()
        q.diagonal(dim1=-2, dim2=-1).add_(linear)
    else:
        q = _combination(z, scale) if scale.shape[-1] == 1 else z * scale
        q.diagonal(dim1=-2, dim2=-1).add_((linear * scale).expand(-1, 1, q.shape[-1]).squeeze(1))
    if alone:
        return q
    second = _bend(a, segment[1])
    return torch.baddbmm(q, second, q, beta=segment[1][0])
