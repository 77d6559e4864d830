"""What a problem of the collection is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The eighteen that the paper lists for unconstrained minimisation; the others are listed for
# nonlinear equations and least squares, and are used for minimisation all the same.
UNCONSTRAINED = frozenset({3, 4, 5, 7, 9, 11, 12, 14, 16, 18, 20, 21, 22, 23, 24, 25, 26, 35})


@dataclass(frozen=True, eq=False)
class LeastSquaresProblem:
    r"""Minimise :math:`f(x) = \sum_{i=1}^m f_i(x)^2` from a standard start.

    Attributes:
        number: place in the paper, 1 to 35.
        name: how it is asked for.
        residuals: maps ``x`` of shape ``(..., n)`` to ``(f_1, ..., f_m)`` of shape ``(..., m)``;
            differentiable, of any floating dtype, fit for `torch.vmap`.
        dimension: ``n``.
        start_at: the standard start for a dimension.
        minimum_at: the least value for a dimension, ``nan`` where none has been published.
        minimiser_at: a point where the minimum is attained, ``None`` where it is at infinity or
            not known.
        other_values: values, above the minimum, towards which a descent method may rightly end:
            local minima, limits at infinity, and the one saddle that the start cannot leave; in
            the usual dimension.
        least, most, multiple: the dimensions there are; ``least == most`` for a fixed one.

    Example:
        >>> from hasten.problems.more_garbow_hillstrom import MORE_GARBOW_HILLSTROM
        >>> problem = MORE_GARBOW_HILLSTROM["extended-rosenbrock"].with_dimension(4)
        >>> round(float(problem.value(problem.start)), 10)
        48.4
        >>> float(problem.value(problem.minimiser)), problem.minimum
        (0.0, 0.0)
    """

    number: int
    name: str
    residuals: Callable[[Tensor], Tensor]
    dimension: int
    start_at: Callable[[int], Sequence[float]]
    minimum_at: Callable[[int], float]
    minimiser_at: Callable[[int], Sequence[float] | None]
    other_values: tuple[float, ...] = ()
    least: int = 1
    most: float = math.inf
    multiple: int = 1

    def __repr__(self) -> str:
        return f"LeastSquaresProblem({self.number}, {self.name!r}, dimension={self.dimension})"

    def with_dimension(self, dimension: int) -> LeastSquaresProblem:
        """The same problem in another dimension.

        Raises:
            ValueError: the problem does not exist in that dimension.

        Example:
            >>> from hasten.problems.more_garbow_hillstrom import MORE_GARBOW_HILLSTROM
            >>> MORE_GARBOW_HILLSTROM["watson"].with_dimension(12).minimum
            4.7223811e-10
        """
        if not self.least <= dimension <= self.most or dimension % self.multiple:
            allowed = f"{self.least}" if self.least == self.most else f">= {self.least}"
            if self.least < self.most < math.inf:
                allowed += f" and <= {self.most}"
            if self.multiple > 1:
                allowed += f" and a multiple of {self.multiple}"
            raise ValueError(f"{self.name}: dimension must be {allowed}, got {dimension}")
        return dataclasses.replace(self, dimension=dimension)

    @property
    def start(self) -> Tensor:
        """The standard start, float64, shape ``(n,)``."""
        return torch.tensor(self.start_at(self.dimension), dtype=torch.float64)

    def start_scaled(self, factor: float) -> Tensor:
        """The start ``factor`` times as far out, as the paper's tests with 10 and 100 have it.

        Where the standard start is the origin, the point with every entry equal to ``factor``.

        Example:
            >>> from hasten.problems.more_garbow_hillstrom import MORE_GARBOW_HILLSTROM
            >>> MORE_GARBOW_HILLSTROM["rosenbrock"].start_scaled(10).tolist()
            [-12.0, 10.0]
            >>> MORE_GARBOW_HILLSTROM["watson"].start_scaled(10).tolist()[:2]
            [10.0, 10.0]
        """
        start = self.start
        return factor * (start if bool(start.any()) or factor == 1 else torch.ones_like(start))

    @property
    def terms(self) -> int:
        """``m``, the number of residuals."""
        return self.residuals(self.start).shape[-1]

    @property
    def minimum(self) -> float:
        """The least value, ``nan`` where none has been published for this dimension."""
        return self.minimum_at(self.dimension)

    @property
    def minimiser(self) -> Tensor | None:
        """A point with the least value, float64, or ``None`` (at infinity, or not known)."""
        point = self.minimiser_at(self.dimension)
        return None if point is None else torch.tensor(point, dtype=torch.float64)

    @property
    def unconstrained(self) -> bool:
        """Whether the paper lists the problem for unconstrained minimisation."""
        return self.number in UNCONSTRAINED

    def value(self, x: Tensor) -> Tensor:
        """``f(x)``: ``(..., n)`` to ``(...)``."""
        return self.residuals(x).square().sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of ``f`` at points of shape ``(..., n)``.

        Example:
            >>> from hasten.problems.more_garbow_hillstrom import MORE_GARBOW_HILLSTROM
            >>> MORE_GARBOW_HILLSTROM["rosenbrock"].gradient(torch.tensor([0.0, 0.0])).tolist()
            [-2.0, 0.0]
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.value(x).sum(), x)
        return gradient
