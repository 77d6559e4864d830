"""What is known of the curvature of an objective: a matrix, its diagonal, or only two numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Curvature:
    """A smoothness matrix L ⪰ 0 with ``f(y) ≤ f(x) + ⟨∇f(x), y−x⟩ + ½ (y−x)ᵀ L (y−x)``, or what is known of it.

    Args:
        dimension: d, the number of variables.
        largest: λ_max(L).
        trace: tr(L), between `largest` and `dimension · largest`.
        diagonal: the diagonal of L, shape (d,), where it is known.
        matrix: L itself, shape (d, d), where it is known. A diagonal L is known whole by its `diagonal` and
            ``is_diagonal=True``.

    Example:
        >>> Curvature.of(torch.tensor([4.0, 2.0, 1.0, 1.0])).effective_rank
        2.0
    """

    dimension: int
    largest: float
    trace: float
    diagonal: Tensor | None = None
    matrix: Tensor | None = None
    is_diagonal: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.largest) and self.largest > 0):
            raise ValueError(
                f"Curvature: largest = {self.largest!r} is not allowed; it must be positive and finite"
            )
        low, high = self.largest * (1 - 1e-9), self.dimension * self.largest * (1 + 1e-9)
        if not low <= self.trace <= high:
            raise ValueError(
                f"Curvature: trace = {self.trace!r} is not allowed; it must lie between largest = {self.largest!r} "
                f"and dimension · largest = {self.dimension * self.largest!r}"
            )

    @classmethod
    def of(cls, smoothness: Tensor | Curvature) -> Curvature:
        """From a matrix (d, d) or a diagonal (d,); a curvature is returned as it is.

        Raises:
            ValueError: the tensor has another shape, or is not finite, symmetric and positive semi-definite.
        """
        if isinstance(smoothness, Curvature):
            return smoothness
        L = smoothness.detach().to("cpu", torch.float64)
        square = L.dim() == 2 and L.shape[0] == L.shape[1]
        if not (L.dim() == 1 or square) or L.numel() == 0:
            raise ValueError(f"Curvature: shape {tuple(L.shape)} is not allowed; it must be (d,) or (d, d)")
        if not bool(torch.isfinite(L).all()):
            raise ValueError("Curvature: the smoothness holds NaN or infinity")
        if L.dim() == 1:
            eigenvalues, diagonal, matrix = L, L, None
        else:
            if not torch.allclose(L, L.mT, rtol=1e-8, atol=1e-12):
                raise ValueError("Curvature: the smoothness matrix is not symmetric")
            eigenvalues, diagonal, matrix = torch.linalg.eigvalsh(L), L.diagonal(), L
        largest = float(eigenvalues.max())
        if float(eigenvalues.min()) < -1e-9 * abs(largest):
            raise ValueError(
                f"Curvature: the smoothness has the negative eigenvalue {float(eigenvalues.min())!r}"
            )
        return cls(L.shape[0], largest, float(diagonal.sum()), diagonal, matrix, matrix is None)

    @property
    def effective_rank(self) -> float:
        """ρ = tr(L)/λ_max(L), between 1 and d."""
        return self.trace / self.largest

    def plus(self, shift: float) -> Curvature:
        """The curvature of f + (shift/2)‖x‖²."""
        return Curvature(
            self.dimension,
            self.largest + shift,
            self.trace + self.dimension * shift,
            None if self.diagonal is None else self.diagonal + shift,
            None
            if self.matrix is None
            else self.matrix + shift * torch.eye(self.dimension, dtype=torch.float64),
            self.is_diagonal,
        )
