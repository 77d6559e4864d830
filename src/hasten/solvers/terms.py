"""Terms h of a composite objective f + h, known by their proximal operators.

``prox_h(v, s) = argmin_u h(u) + ‖u − v‖²/(2s)``; for the indicator of a set it is the projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hasten.numbers import Number
from hasten.solvers.space import Space
from hasten.solvers.structure import Structure

__all__ = ["L1", "Box"]


class Term(Protocol):
    """A term over flat vectors."""

    def prox(self, v: Tensor, step: Number, space: Space) -> Tensor:
        """``argmin_u h(u) + ‖u − v‖²/(2 step)``."""

    def value(self, x: Tensor, space: Space) -> Number:
        """h(x)."""


class Separable:
    """A term that is a sum over entries, and so holds for tensors of any shape."""

    def __call__(self, v: Tensor, step: float | Tensor) -> Tensor:
        """The proximal operator."""
        raise NotImplementedError

    def entries(self, x: Tensor) -> Tensor:
        """The summands."""
        raise NotImplementedError

    def value(self, x: Tensor) -> Tensor:
        """h(x), a scalar."""
        return self.entries(x).sum()


@dataclass(frozen=True)
class L1(Separable):
    """``h(x) = weight · ‖x‖₁``; its prox is soft thresholding. For ``minimize(..., prox=L1(0.1))``.

    Example:
        >>> L1(1.0)(torch.tensor([3.0, -0.5]), 1.0)
        tensor([2., -0.])
    """

    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"L1: weight = {self.weight!r} is not allowed; it must be in [0, inf)")

    def __call__(self, v: Tensor, step: float | Tensor) -> Tensor:
        """Each entry moved towards zero by ``weight · step``."""
        return v.sign() * (v.abs() - self.weight * step).clamp_(min=0)

    def entries(self, x: Tensor) -> Tensor:
        """``weight · |x|``."""
        return self.weight * x.abs()


@dataclass(frozen=True)
class Box(Separable):
    """The indicator of ``low ≤ x ≤ high``; its prox clips. Bounds passed to `minimize` become one.

    Example:
        >>> Box(torch.zeros(2), torch.ones(2))(torch.tensor([3.0, 0.5]), 1.0)
        tensor([1.0000, 0.5000])
    """

    low: Tensor
    high: Tensor

    def __call__(self, v: Tensor, step: float | Tensor) -> Tensor:
        """The nearest point of the box."""
        return torch.minimum(torch.maximum(v, self.low), self.high)

    def entries(self, x: Tensor) -> Tensor:
        """0: the methods only report points of the box."""
        return torch.zeros_like(x)


@dataclass(frozen=True)
class FlatTerm:
    """A prox over the user's structure, called with one step (batched: with a step for each problem)."""

    call: Callable[[Any, Any], Any]
    structure: Structure

    def prox(self, v: Tensor, step: Number, space: Space) -> Tensor:
        """The user's prox."""
        leaves = self.structure.leaves(v)
        if isinstance(self.call, Separable):
            return self.structure.flatten([self.call(leaf, _shaped(step, leaf)) for leaf in leaves])
        steps = _shaped(step, leaves[0]) if len(leaves) == 1 else step
        moved = self.call(self.structure.restore(leaves), steps)
        return self.structure.read(moved, "the result of prox").to(v)

    def value(self, x: Tensor, space: Space) -> Number:
        """The user's h, from the attribute `value` of prox where it has one; otherwise 0."""
        leaves = self.structure.leaves(x)
        if isinstance(self.call, Separable):
            return space.sum(self.structure.flatten([self.call.entries(leaf) for leaf in leaves]))
        value = getattr(self.call, "value", None)
        if value is None:
            return space.number(0.0)
        found = torch.as_tensor(value(self.structure.restore(leaves)), dtype=torch.float64)
        return found if space.batched else found.item()


@dataclass(frozen=True)
class FlatBox:
    """Bounds over flat vectors."""

    box: Box

    def prox(self, v: Tensor, step: Number, space: Space) -> Tensor:
        """The nearest point of the box."""
        return self.box(v, 1.0)

    def value(self, x: Tensor, space: Space) -> Number:
        """0."""
        return space.number(0.0)


def _shaped(step: Number, like: Tensor) -> Any:
    """A step that multiplies a tensor whose first dimension, if the step is a tensor, counts the problems."""
    if not isinstance(step, Tensor):
        return step
    return step.to(like.dtype).reshape(-1, *(1 for _ in like.shape[1:]))
