"""Random low rank: a matrix is multiplied from one side by a random one, and keeps its structure on the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from hasten.sketches.curvature import Curvature
from hasten.sketches.dense import DenseDraw, Gaussian, Haar
from hasten.sketches.sketch import Draw, ExchangeableSketch, Sketch


class LowRankDraw(Draw):
    """One Q, of shape (long side, k), on the long side of a matrix.

    Products are a library's: workers whose processors or numbers of threads differ may differ in the last bit.
    """

    def __init__(self, shape: tuple[int, int], Q: Draw) -> None:
        self.shape = shape
        self.Q = Q
        self.tall = shape[0] > shape[1]
        self.dimension = shape[0] * shape[1]
        self.rank = min(shape) * Q.rank

    def _rows(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.Q.columns(dtype=dtype, device=device)

    def _project(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        G, Qt = g.view(self.shape).to(dtype), self._rows(dtype, g.device)
        return (Qt @ G if self.tall else G @ Qt.mT).reshape(-1)

    def _lift(self, s: Tensor, out: Tensor) -> None:
        Qt = self._rows(s.dtype, s.device)
        G = Qt.mT @ s.view(self.Q.rank, -1) if self.tall else s.view(-1, self.Q.rank) @ Qt
        out.copy_(G.reshape(-1))

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        unit = torch.zeros(stop - start, self.rank, dtype=dtype, device=device)
        unit.diagonal(start).fill_(1)
        Qt = self._rows(dtype, device)
        if self.tall:
            return (Qt.mT @ unit.view(-1, self.Q.rank, self.shape[1])).reshape(-1, self.dimension)
        return (unit.view(-1, self.shape[0], self.Q.rank) @ Qt).reshape(-1, self.dimension)


@dataclass(frozen=True)
class RandomLowRank(Sketch):
    """s = G Q for a gradient matrix G of shape (m, n) with m ≤ n, else s = Qᵀ G; lifted to G Q Qᵀ or Q Qᵀ G.

    Q is √(n/k) times k orthonormal columns, uniform among all such, on the longer side, so min(m, n) · k numbers are
    learnt; ν = d/r as for the other orthogonal families. G Q Qᵀ has rank k. Tensors of more dimensions are matrices of
    their first by all others. Use it in :class:`~hasten.sketches.PerLayer`, which knows the shapes; by itself it takes
    a vector for a single row, and is :class:`~hasten.sketches.Haar`.

    With E[Q Qᵀ A Q Qᵀ] = (α − β) A + β Aᵀ + β tr(A) I for every n × n matrix A (α, β as for Haar), each block L_ab of
    L, between rows a and b of G, becomes that. The bound from λ_max and the trace is twice as large in β as Haar's.

    Args:
        rank: k for every matrix, at most its longer side; as in PowerSGD, and other than in the other families.
        ratio: d/r, which fixes k = ⌈n/ratio⌉.
        orthogonal: False: independent normal entries of variance 1/k instead (ν = 1 + (n + 1)/k).
        shape: of the matrix; set by `divided`.

    Example:
        >>> sketch, = RandomLowRank(rank=2).divided([(4, 3, 5)])
        >>> sketch.shape, sketch.rank_in(60), sketch.nu(60)
        ((4, 15), 8, 7.5)
    """

    orthogonal: bool = field(default=True, kw_only=True)
    shape: tuple[int, int] | None = field(default=None, kw_only=True)
    formula: ClassVar[str] = "s = G Q,  Q = √(n/k) · k orthonormal columns"

    def divided(self, shapes: Sequence[Sequence[int]]) -> list[Sketch]:
        """The same rank, or ratio, for every matrix."""
        return [replace(self, shape=_as_matrix(shape)) for shape in shapes]

    def _matrix(self, dimension: int) -> tuple[int, int]:
        shape = (1, dimension) if self.shape is None else self.shape
        if math.prod(shape) != dimension:
            raise ValueError(
                f"RandomLowRank: dimension = {dimension!r} is not allowed; it is for a matrix of shape {shape}"
            )
        return shape

    def factor(self, dimension: int) -> ExchangeableSketch:
        """The family of Q, with k as its rank."""
        long = max(self._matrix(dimension))
        k = math.ceil(long / self.ratio) if self.ratio is not None else min(self.rank or 1, long)
        return Haar(rank=k) if self.orthogonal else Gaussian(rank=k)

    def rank_in(self, dimension: int) -> int:
        """min(m, n) k."""
        return min(self._matrix(dimension)) * self.factor(dimension).rank_in(max(self._matrix(dimension)))

    def _draw(self, dimension: int, key: int) -> LowRankDraw:
        shape = self._matrix(dimension)
        Q = self.factor(dimension)._draw(max(shape), key)
        assert isinstance(Q, DenseDraw)
        return LowRankDraw(shape, Q)

    def _coefficients(self, dimension: int) -> tuple[float, float]:
        alpha, beta, _ = self.factor(dimension).coefficients(max(self._matrix(dimension)))
        return alpha, beta

    def nu(self, dimension: int) -> float:
        """ν of Q."""
        return self.factor(dimension).nu(max(self._matrix(dimension)))

    def smoothed(self, L: Tensor) -> Tensor:
        """Each block L_ab becomes (α − β) L_ab + β L_abᵀ + β tr(L_ab) I."""
        L = L.double()
        shape = self._matrix(L.shape[0])
        alpha, beta = self._coefficients(L.shape[0])
        long = 0 if shape[0] > shape[1] else 1
        if L.dim() == 1:
            entries = L.view(shape)
            return (alpha * entries + beta * entries.sum(long, keepdim=True)).reshape(-1)
        blocks = L.view(*shape, *shape)
        eye = torch.eye(shape[long], dtype=torch.float64)
        traces = blocks.diagonal(dim1=long, dim2=long + 2).sum(-1)  # over the short sides, (short, short)
        spread = torch.einsum("ac,bd->abcd" if long else "bd,ac->abcd", traces, eye)
        found = (alpha - beta) * blocks + beta * (blocks.transpose(long, long + 2) + spread)
        return found.reshape(L.shape)

    def smoothness_bound(self, curvature: Curvature, minus: float = 0.0) -> float:
        """(α − β − minus)⁺ λ_max + 2β min(tr, n λ_max)."""
        alpha, beta = self._coefficients(curvature.dimension)
        long = max(self._matrix(curvature.dimension))
        spread = min(curvature.trace, long * curvature.largest)
        return max(alpha - beta - minus, 0.0) * curvature.largest + 2 * beta * spread


def _as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)
