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

FAST = 256
"""From so many rows (columns, if tall), a X + Z X is computed as (a I + Z) X, and two steps at once on long matrices.
That saves time, and costs digits in bfloat16: 2 % rather than 1 % from the float64 iteration, more on smaller matrices,
whose errors average less."""
FEW = 32
"""In low precision, norms are rounded up to one of so many numbers an octave: they enter the coefficients of the first
step, and oneDNN builds a program for every scalar that it meets in a product, and keeps it with its memory."""
ROUNDING = 0.02
"""A squared Frobenius norm so near to one was one before the matrix was rounded to low precision."""
SMALL = 2**14
"""Matrices with fewer entries are iterated in stacks on every device."""


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

    From `FAST` rows on, each X is multiplied by one matrix of the size of A. Where the longer side exceeds 1.5 times
    the shorter, that matrix takes two steps at once: the second A follows from the first. Not more than two: in
    bfloat16, rounding makes small eigenvalues of A negative, and these grow until X is computed again.

    Args:
        x: a stack of matrices [k, m, n] of any magnitude. Not changed.
        quintics: (a, b, c) of each step.
        norm: see `Norm`.
        margin: matrices are divided by so many times their norm: room for rounding.
        eps: matrices of a smaller Frobenius norm shrink in proportion to it. 0: none do.
        dtype: of the iteration; None: that of `x`.

    Returns:
        [k, m, n] in the dtype of `x`. A zero matrix gives zero; one with a NaN or an infinity gives NaN.
    """
    x, settings = x.detach(), (quintics, norm, margin, eps, dtype or x.dtype)
    if not x.numel():
        return x.clone()
    if x.device.type != "cpu" or x[0].numel() < SMALL:
        return _iterated(x, *settings).to(x.dtype)
    if len(x) == 1:  # without a second matrix beside the iteration
        return _iterated(x[0], *settings).to(x.dtype)[None]
    # One after another: stacks of products are not faster there, copy what is stored transposed, and need memory.
    found = torch.empty_like(x)
    for one, place in zip(x, found, strict=True):
        place.copy_(_iterated(one, *settings))
    return found


def _iterated(
    x: Tensor, quintics: Sequence[Quintic], norm: Norm, margin: float, eps: float, dtype: torch.dtype
) -> Tensor:
    """The iteration on one matrix [m, n] or a stack [k, m, n]."""
    rows, columns = x.shape[-2:]
    tall, fast = rows > columns, min(rows, columns) >= FAST
    stride = 2 if fast and 2 * max(rows, columns) > 3 * min(rows, columns) else 1
    y, unit = _of_order_one(x, dtype)
    for i in range(0, len(quintics), stride):
        first, *second = quintics[i : i + stride]
        a, square = gram(y), None
        if i == 0:
            factor, square = _reciprocal_norm(a, norm, margin, unit / eps if eps else None)
            if factor.numel() == 1 and _free(factor):
                # The quintic of f X is one of X: nothing needs to be multiplied.
                f = factor.item()
                first = (first[0] * f, first[1] * f**3, first[2] * f**5)
            else:
                factor = factor.to(dtype)
                y, a = y * (factor.mT if tall else factor), a * factor * factor.mT
                square = None if square is None else (square * factor.to(unit.dtype) ** 4).to(dtype)
        if fast:
            q = _matrix_of_steps(a, square, first, second)
            y = y @ q.mT if tall else q @ y
        else:
            z = _bend(a, first, square)
            y = _plus_product(y, first[0], *((y, z.mT) if tall else (z, y)))
    return y


def _of_order_one(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Matrices in another dtype, and what they were divided by so that no eighth power overflows or vanishes."""
    if x.ndim == 2 and _free(x):
        size = torch.linalg.vector_norm(x)
        if 1e-15 < size.item() < 1e15:
            return (x / size).to(dtype), size
    largest = torch.maximum(x.amax((-2, -1), keepdim=True), -x.amin((-2, -1), keepdim=True))
    largest = torch.where(largest == 0, 1.0, largest)
    return (x / largest).to(dtype), largest


def _reciprocal_norm(
    a: Tensor, norm: Norm, margin: float, unit: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What X is to be multiplied by, [..., 1, 1] or, for rows, [..., r, 1]; and A² if it was needed.

    `unit` is what a norm of one stands for, in terms of the norm below which matrices shrink.
    """
    exact = torch.float64 if a.dtype is torch.float64 else torch.float32
    square = None
    squares = a.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=exact)[..., None, None]
    if a.dtype is not exact:
        squares = torch.where((squares - 1).abs() < ROUNDING, 1.0, squares)
    shrink = torch.ones_like(squares) if unit is None else (squares.sqrt() * unit).clamp(max=1.0)
    if a.dtype is not exact:  # less than half a unit in the last place
        shrink = torch.where(shrink > 0.999, 1.0, shrink)
    factor = shrink / margin
    if norm == "rows":
        squares = a.abs().sum(-1, keepdim=True, dtype=exact)
    size = torch.where(squares > 0, squares, 1.0).sqrt()
    if norm == "schatten8":
        square = symmetric_product(a, a)
        fourth = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True).to(exact)
        ratio = torch.where(fourth > 0, fourth, 1.0) ** 0.25 / size
        size = size * (ratio if a.dtype is exact else torch.exp2(torch.ceil(FEW * ratio.log2()) / FEW))
    return factor / size, square


def _free(x: Tensor) -> bool:
    """Whether its numbers can be read without waiting for a device or ending a trace."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _matrix_of_steps(a: Tensor, square: Tensor | None, first: Quintic, second: Sequence[Quintic]) -> Tensor:
    """(a₁ I + Z₁), or (a₂ I + Z₂) (a₁ I + Z₁), with Z = b A + c A² of the A that the step starts from."""
    z = _bend(a, first, square)
    q = z.clone() if second else z
    q.diagonal(dim1=-2, dim2=-1).add_(first[0])
    if not second:
        return q
    w = _plus_product(a, first[0], z, a)
    a = _plus_product(w, first[0], w, z)
    return _plus_product(q, second[0][0], _bend(a, second[0]), q)


def _bend(a: Tensor, quintic: Quintic, square: Tensor | None = None) -> Tensor:
    """b A + c A². Overwrites `square`."""
    _, b, c = quintic
    if square is None and halves(a):
        square = symmetric_product(a, a)
    return _plus_product(a, b, a, a, c) if square is None else square.mul_(c).add_(a, alpha=b)


def _plus_product(x: Tensor, p: float, left: Tensor, right: Tensor, q: float = 1.0) -> Tensor:
    """p x + q left · right."""
    return (torch.addmm if x.ndim == 2 else torch.baddbmm)(x, left, right, beta=p, alpha=q)
