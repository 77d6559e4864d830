"""The orthonormal cosine basis (DCT-II) of every size, and the few of its directions that carry most of a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeAlias

import torch
from torch import Tensor

Make: TypeAlias = "Callable[[int, torch.dtype, torch.device], Tensor]"


def cosine_transform(M: Tensor) -> Tensor:
    """M Dᵀ: the orthonormal DCT-II of every row, by one real FFT of the same length.

    With v the even entries of a row followed by the odd ones backwards, V its Fourier transform and
    z_k = V_k exp(−iπk/(2n)), the sums are Re z_k, and −Im z_{n−k} beyond n/2. Makhoul, "A fast cosine transform in one
    and two dimensions" (1980).

    Args:
        M: [..., n], float32 or float64. Not changed.

    Returns:
        As `M`.

    Example:
        >>> import torch
        >>> from hasten.linalg.cosine import cosine_transform
        >>> torch.allclose(cosine_transform(torch.ones(1, 4)), torch.tensor([[2.0, 0.0, 0.0, 0.0]]), atol=1e-6)
        True
    """
    n = M.shape[-1]
    z = torch.fft.rfft(torch.cat([M[..., ::2], M[..., 1::2].flip(-1)], -1))
    z *= _twiddle(n, M.dtype, M.device)
    return torch.cat([z.real, -z.imag[..., 1 : (n + 1) // 2].flip(-1)], -1)


def cosine_rows(rows: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """D_k,j = √(2/n) cos(π k (2j + 1)/(2n)), its first row 1/√n, for some rows k.

    Args:
        rows: integers [..., r].
        n: the order of D.
        dtype: of the result, [..., r, n].

    Example:
        >>> import torch
        >>> from hasten.linalg.cosine import cosine_rows
        >>> cosine_rows(torch.tensor([0]), 4, torch.float32)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    return cosine_basis(n, dtype, rows.device)[rows]


def _kept(make: Make) -> Make:
    """Made once for each order, dtype and device; a ``torch.compile``, which sees no caches, makes it in its graph."""
    cached = lru_cache(maxsize=16)(make)

    @wraps(make)
    def get(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return make(n, dtype, device) if torch.compiler.is_compiling() else cached(n, dtype, device)

    return get


@_kept
def cosine_basis(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """D, of order n: one for all matrices of a size. Not to be written to.

    Example:
        >>> import torch
        >>> from hasten.linalg.cosine import cosine_basis
        >>> D = cosine_basis(5, torch.float64, torch.device("cpu"))
        >>> torch.allclose(D @ D.T, torch.eye(5, dtype=torch.float64))
        True
    """
    k, j = torch.arange(n, device=device).unsqueeze(1), torch.arange(n, device=device)
    angle = (k * (2 * j + 1)) % (4 * n)  # whole numbers: exact for every size
    return (torch.cos(angle.double() * (math.pi / (2 * n))) * _norm(k, n)).to(dtype)


@_kept
def _twiddle(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    k = torch.arange(n // 2 + 1, device=device)
    z = torch.polar(_norm(k, n), k.double() * (-math.pi / (2 * n)))
    return z.to(torch.complex128 if dtype is torch.float64 else torch.complex64)


def _norm(k: Tensor, n: int) -> Tensor:
    """The factor that makes row k a unit vector."""
    return torch.full(k.shape, math.sqrt(2 / n), dtype=torch.float64, device=k.device).masked_fill(
        k == 0, math.sqrt(1 / n)
    )


def leading(scores: Tensor, rank: int) -> Tensor:
    """The positions of the `rank` largest scores, in ascending order; of equal scores any.

    Args:
        scores: [..., n].
        rank: at most n.

    Returns:
        Integers [..., rank].

    Example:
        >>> import torch
        >>> from hasten.linalg.cosine import leading
        >>> leading(torch.tensor([0.1, 5.0, 0.2, 7.0]), 2)
        tensor([1, 3])
    """
    return torch.topk(scores, rank, dim=-1, sorted=False).indices.sort(dim=-1).values
