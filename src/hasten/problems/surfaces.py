"""Functions of two variables with known minima: the classic test landscapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surface:
    """A function of the plane, where to start on it, and what to find.

    Attributes:
        name: how it is asked for.
        function: maps ``(..., 2)`` to ``(...)``.
        start: a customary place to start.
        minima: the global minima.
        bounds: ``(left, right, bottom, top)`` of the part worth looking at.
        minimum: the value at the minima.

    Example:
        >>> surface = SURFACES["rosenbrock"]
        >>> float(surface(torch.tensor([1.0, 1.0])))
        0.0
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    minima: tuple[tuple[float, float], ...]
    bounds: tuple[float, float, float, float]
    minimum: float = 0.0

    def __call__(self, points: Tensor) -> Tensor:
        """Value at points of shape ``(..., 2)``."""
        x, y = points.unbind(-1)
        return self.function(x, y)


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    """``(1 - x)^2 + 100 (y - x^2)^2``: a curved valley, steep across and flat along.

    Example:
        >>> float(rosenbrock(torch.tensor(-1.0), torch.tensor(1.0)))
        4.0
    """
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def beale(x: Tensor, y: Tensor) -> Tensor:
    """Sum of ``(c_i - x + x y^i)^2``, ``i = 1..3``: flat plains, sharp corners.

    Example:
        >>> float(beale(torch.tensor(3.0), torch.tensor(0.5)))
        0.0
    """
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def himmelblau(x: Tensor, y: Tensor) -> Tensor:
    """``(x^2 + y - 11)^2 + (x + y^2 - 7)^2``: four equal minima.

    Example:
        >>> float(himmelblau(torch.tensor(3.0), torch.tensor(2.0)))
        0.0
    """
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def valley(x: Tensor, y: Tensor) -> Tensor:
    """``(x^2 + 100 y^2) / 2``: a quadratic of condition number 100.

    Example:
        >>> float(valley(torch.tensor(2.0), torch.tensor(0.0)))
        2.0
    """
    return (x**2 + 100 * y**2) / 2


def styblinski_tang(x: Tensor, y: Tensor) -> Tensor:
    """``sum (z^4 - 16 z^2 + 5 z) / 2``, lifted so that its minimum is 0: four basins, one best.

    Example:
        >>> abs(float(styblinski_tang(torch.tensor(-2.903534), torch.tensor(-2.903534)))) < 1e-4
        True
    """
    return sum(((z**4 - 16 * z**2 + 5 * z) / 2 for z in (x, y)), torch.zeros(())) + 78.33233140754282


def ackley(x: Tensor, y: Tensor) -> Tensor:
    """A wide funnel covered with ripples.

    Example:
        >>> abs(float(ackley(torch.tensor(0.0), torch.tensor(0.0)))) < 1e-6
        True
    """
    radius = ((x**2 + y**2) / 2).sqrt()
    ripple = (torch.cos(2 * math.pi * x) + torch.cos(2 * math.pi * y)) / 2
    return -20 * torch.exp(-0.2 * radius) - torch.exp(ripple) + math.e + 20


SURFACES: dict[str, Surface] = {
    surface.name: surface
    for surface in (
        Surface("rosenbrock", rosenbrock, (-1.5, 2.0), ((1.0, 1.0),), (-2.0, 2.0, -1.0, 3.0)),
        Surface("beale", beale, (1.0, 1.5), ((3.0, 0.5),), (-1.0, 4.5, -1.5, 2.0)),
        Surface(
            "himmelblau",
            himmelblau,
            (0.0, -1.0),
            ((3.0, 2.0), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)),
            (-5.5, 5.5, -5.5, 5.5),
        ),
        Surface("valley", valley, (-9.0, 1.0), ((0.0, 0.0),), (-10.0, 3.0, -1.6, 1.6)),
        Surface(
            "styblinski-tang",
            styblinski_tang,
            (0.0, 3.5),
            ((-2.903534, -2.903534),),
            (-5.0, 5.0, -5.0, 5.0),
        ),
        Surface("ackley", ackley, (2.5, 1.6), ((0.0, 0.0),), (-3.5, 3.5, -3.5, 3.5)),
    )
}
"""Surfaces by name."""
