"""Quadratics with a chosen spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Quadratic"]


class Quadratic:
    r""":math:`f(x) = \tfrac12 (x - x^\ast)^\top Q\,\mathrm{diag}(\lambda)\,Q^\top (x - x^\ast)`.

    The rotation ``Q`` (Haar distributed) and the minimiser ``x*`` (standard normal) come from the
    seed; everything is float64 and every method takes leading batch axes.

    Args:
        eigenvalues: the spectrum, non-negative and not all zero.
        seed: seed of the rotation and the minimiser.
        rotate: ``False`` keeps the coordinate axes as eigenvectors, which coordinate-wise methods
            (masks, Adam) can tell from a rotated problem.

    Example:
        >>> problem = Quadratic([1.0, 0.1, 0.01])
        >>> float(problem.value(problem.minimiser))
        0.0
        >>> problem.condition
        100.0
    """

    minimum: float = 0.0

    def __init__(self, eigenvalues: Sequence[float] | Tensor, seed: int = 0, rotate: bool = True) -> None:
        spectrum = torch.as_tensor(eigenvalues, dtype=torch.float64).detach().clone()
        if spectrum.ndim != 1 or spectrum.numel() == 0:
            raise ValueError(
                f"Quadratic: eigenvalues of shape {tuple(spectrum.shape)} must be one-dimensional "
                "and not empty"
            )
        if not bool(torch.isfinite(spectrum).all() and (spectrum >= 0).all() and spectrum.any()):
            raise ValueError(
                f"Quadratic: eigenvalues must be finite, >= 0 and not all zero, got {spectrum.tolist()}"
            )
        self.eigenvalues = spectrum
        self.dimension = spectrum.numel()
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(self.dimension, self.dimension, generator=generator, dtype=torch.float64)
        self.minimiser = torch.randn(self.dimension, generator=generator, dtype=torch.float64)
        self.rotation = torch.eye(self.dimension, dtype=torch.float64)
        if rotate:
            q, r = torch.linalg.qr(normal)
            # QR alone is not Haar: the signs of R's diagonal carry the convention of the routine.
            self.rotation = q * r.diagonal().sign()
        self.hessian = (self.rotation * spectrum) @ self.rotation.mT

    def __repr__(self) -> str:
        return f"Quadratic(dimension={self.dimension}, condition={self.condition:g})"

    @property
    def smoothness(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues.max())

    @property
    def strong_convexity(self) -> float:
        """The smallest eigenvalue."""
        return float(self.eigenvalues.min())

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; infinite for a singular quadratic."""
        smallest = self.strong_convexity
        return self.smoothness / smallest if smallest else float("inf")

    def gradient(self, x: Tensor) -> Tensor:
        """``H (x - x*)``, shape ``(..., d)``."""
        return (x - self.minimiser) @ self.hessian

    def value(self, x: Tensor) -> Tensor:
        """``f(x)``, shape ``(...)``."""
        centred = x - self.minimiser
        return 0.5 * (centred * (centred @ self.hessian)).sum(-1)
