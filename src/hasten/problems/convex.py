"""What a convex problem with known constants offers to tests, benchmarks, races and the theory."""

from __future__ import annotations

import abc
from functools import cached_property

import torch
from torch import Tensor

from hasten.sketches.curvature import Curvature

__all__ = ["ConvexProblem"]


class ConvexProblem(abc.ABC):
    r"""A smooth convex function of a float64 vector, with everything that a convergence bound asks for.

    A problem states `value` (a differentiable torch function), `gradient`, `dimension`, `curvature`,
    `strong_convexity` and `minimiser`; the rest follows. `value` and `gradient` take leading batch axes.

    Example:
        >>> from hasten.problems import Quadratic
        >>> problem = Quadratic([4.0, 1.0], rotate=False)
        >>> problem.smoothness, problem.strong_convexity
        (4.0, 1.0)
        >>> x = problem.start.requires_grad_()
        >>> problem.value(x).backward()
        >>> torch.equal(x.grad, problem.gradient(problem.start))
        True
    """

    dimension: int
    """d, the number of variables."""

    @abc.abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """f(x), shape ``(...)``, of points of shape ``(..., d)``."""

    @abc.abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """∇f(x), shape ``(..., d)``."""

    @property
    @abc.abstractmethod
    def curvature(self) -> Curvature:
        """A matrix L with f(y) ≤ f(x) + ⟨∇f(x), y−x⟩ + ½ (y−x)ᵀ L (y−x), or what is known of it."""

    @property
    @abc.abstractmethod
    def strong_convexity(self) -> float:
        """μ ≥ 0, in the Euclidean norm."""

    @property
    @abc.abstractmethod
    def minimiser(self) -> Tensor:
        """x*, shape ``(d,)``."""

    @property
    def start(self) -> Tensor:
        """x₀ = 0, shape ``(d,)``; a fresh tensor each time."""
        return torch.zeros(self.dimension, dtype=torch.float64)

    @cached_property
    def minimum(self) -> float:
        """f*."""
        return float(self.value(self.minimiser))

    @property
    def smoothness(self) -> float:
        """λ_max(L)."""
        return self.curvature.largest

    @property
    def condition(self) -> float:
        """λ_max(L)/μ; infinite without strong convexity."""
        return self.smoothness / self.strong_convexity if self.strong_convexity else float("inf")

    @cached_property
    def distance(self) -> float:
        """R = ‖x₀ − x*‖, the Euclidean distance from start to minimiser."""
        return float(torch.linalg.vector_norm(self.start - self.minimiser))

    @cached_property
    def gap(self) -> float:
        """Δ₀ = f(x₀) − f*."""
        return float(self.value(self.start)) - self.minimum
