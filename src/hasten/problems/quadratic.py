"""Quadratics with a chosen spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from hasten.problems.convex import ConvexProblem
from hasten.problems.spectra import spectrum
from hasten.sketches.curvature import Curvature

__all__ = ["Quadratic"]


class Quadratic(ConvexProblem):
    r""":math:`f(x) = \tfrac12 (x - x^\ast)^\top Q\,\mathrm{diag}(\lambda)\,Q^\top (x - x^\ast)`.

    The rotation ``Q`` (Haar distributed) and the minimiser ``x*`` (standard normal) come from the
    seed; everything is float64 and every method takes leading batch axes. Along the coordinate axes
    (``rotate=False``) no matrix is formed, so a dimension of a million is no trouble.

    Args:
        eigenvalues: the spectrum, non-negative and not all zero.
        seed: seed of the rotation and the minimiser.
        rotate: ``False`` keeps the coordinate axes as eigenvectors, which coordinate-wise methods
            (masks, Adam) can tell from a rotated problem.
        minimiser: x*, shape ``(d,)``, in place of the random one.

    Example:
        >>> problem = Quadratic([1.0, 0.1, 0.01])
        >>> float(problem.value(problem.minimiser))
        0.0
        >>> problem.condition
        100.0
    """

    def __init__(
        self,
        eigenvalues: Sequence[float] | Tensor,
        seed: int = 0,
        rotate: bool = True,
        minimiser: Tensor | None = None,
    ) -> None:
        values = torch.as_tensor(eigenvalues, dtype=torch.float64).detach().clone()
        if values.ndim != 1 or values.numel() == 0:
            raise ValueError(
                f"Quadratic: eigenvalues of shape {tuple(values.shape)} must be one-dimensional and not empty"
            )
        if not bool(torch.isfinite(values).all() and (values >= 0).all() and values.any()):
            raise ValueError(
                f"Quadratic: eigenvalues must be finite, >= 0 and not all zero, got {_shortened(values)}"
            )
        self.eigenvalues = values
        self.dimension = values.numel()
        generator = torch.Generator().manual_seed(seed)
        self.rotation = _haar(self.dimension, generator) if rotate else None
        self._minimiser = torch.randn(self.dimension, generator=generator, dtype=torch.float64)
        if minimiser is not None:
            if minimiser.shape != values.shape or not bool(torch.isfinite(minimiser).all()):
                raise ValueError(
                    f"Quadratic: minimiser of shape {tuple(minimiser.shape)} must be finite "
                    f"and of shape {tuple(values.shape)}, like eigenvalues"
                )
            self._minimiser = minimiser.detach().to(torch.float64).clone()

    @classmethod
    def named(cls, name: str, dimension: int = 256, *, rotate: bool = False, seed: int = 7) -> Quadratic:
        """A spectrum of `hasten.problems.SPECTRA`, and NumPy's standard normal numbers as minimiser.

        NumPy's generator makes the problem the same in every language that can read its stream.

        Example:
            >>> problem = Quadratic.named("inverse", 256)
            >>> round(problem.distance**2, 6), round(problem.gap, 6)
            (225.000846, 1.761918)
        """
        import numpy

        drawn = torch.from_numpy(numpy.random.default_rng(seed).standard_normal(dimension))
        return cls(spectrum(name, dimension), seed=seed, rotate=rotate, minimiser=drawn)

    def __repr__(self) -> str:
        return f"Quadratic(dimension={self.dimension}, condition={self.condition:g})"

    @property
    def minimiser(self) -> Tensor:
        """x*, shape ``(d,)``."""
        return self._minimiser

    @property
    def strong_convexity(self) -> float:
        """The smallest eigenvalue."""
        return float(self.eigenvalues.min())

    @cached_property
    def curvature(self) -> Curvature:
        """The Hessian; known by its diagonal alone where the axes are the eigenvectors."""
        if self.rotation is None:
            return Curvature.of(self.eigenvalues)
        # The eigenvalues are known: no need to find them again, with round-off, in the matrix.
        largest, trace = float(self.eigenvalues.max()), float(self.eigenvalues.sum())
        return Curvature(self.dimension, largest, trace, self.hessian.diagonal(), self.hessian)

    @cached_property
    def hessian(self) -> Tensor:
        """Q diag(λ) Qᵀ, a dense matrix, shape ``(d, d)``."""
        if self.rotation is None:
            return torch.diag(self.eigenvalues)
        return (self.rotation * self.eigenvalues) @ self.rotation.mT

    def gradient(self, x: Tensor) -> Tensor:
        """``H (x - x*)``, shape ``(..., d)``."""
        centred = x - self.minimiser
        return centred * self.eigenvalues if self.rotation is None else centred @ self.hessian

    def value(self, x: Tensor) -> Tensor:
        """``f(x)``, shape ``(...)``."""
        return 0.5 * ((x - self.minimiser) * self.gradient(x)).sum(-1)


def _haar(dimension: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    # QR alone is not Haar: the signs of R's diagonal carry the convention of the routine.
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def _shortened(values: Tensor, most: int = 8) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:most].tolist())
    return f"[{shown}, ...]" if values.numel() > most else f"[{shown}]"
