"""One problem or a stack of them: the few operations on vectors and numbers in which every method is written.

A *vector* is a flat tensor, ``(d,)`` for one problem and ``(B, d)`` for a stack of B. A *number* (a function value,
an inner product, a step size) is a Python float for one problem and a float64 tensor ``(B,)`` for a stack; a *mask*
is a bool or a bool tensor ``(B,)``. Methods use these operations and the functions of :mod:`hasten.numbers`, so that
a formula is stated once: one problem pays for no masks, a stack runs without a loop over its problems.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hasten.numbers import Number, where

Mask: TypeAlias = Any
"""A bool, or a bool tensor of shape ``(B,)``."""


def divide(a: Number, b: Number) -> Number:
    """``a / b``, and nan where b = 0, in place of Python's exception.

    Example:
        >>> divide(1.0, 4.0), divide(1.0, 0.0)
        (0.25, nan)
    """
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return where(b == 0, math.nan, a / b)
    return a / b if b else math.nan


def isfinite(a: Number) -> Mask:
    """Whether a number is neither infinite nor nan."""
    return torch.isfinite(a) if isinstance(a, Tensor) else math.isfinite(a)


def invert(mask: Mask) -> Mask:
    """The mask that is true where this one is false."""
    return ~mask if isinstance(mask, Tensor) else not mask


class Single:
    """Operations for one problem: numbers are Python floats.

    Example:
        >>> space = Single(torch.zeros(2))
        >>> space.dot(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        11.0
    """

    batched = False

    def __init__(self, like: Tensor) -> None:
        self.epsilon: float = torch.finfo(like.dtype).eps

    def number(self, value: float) -> Number:
        """The number `value`, for every problem."""
        return value

    def dot(self, a: Tensor, b: Tensor) -> Number:
        """⟨a, b⟩."""
        return torch.dot(a, b).item()

    def norm(self, a: Tensor) -> Number:
        """‖a‖₂."""
        return math.sqrt(torch.dot(a, a).item())

    def largest(self, a: Tensor) -> Number:
        """‖a‖∞."""
        low, high = torch.aminmax(a)  # one pass, and nan if an entry is
        return max(-low.item(), high.item())

    def sum(self, a: Tensor) -> Number:
        """Σ aᵢ."""
        return a.sum().item()

    def times(self, number: Number, a: Tensor) -> Tensor:
        """number · a."""
        return torch.mul(a, number)

    def apply(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """matrix · vector."""
        return torch.mv(matrix, vector)

    def add_product(self, a: Tensor, matrix: Tensor, vector: Tensor) -> Tensor:
        """a + matrix · vector."""
        return torch.addmv(a, matrix, vector)

    def add(self, a: Tensor, number: Number, b: Tensor) -> Tensor:
        """a + number · b."""
        return torch.add(a, b, alpha=number)

    def select(self, mask: Mask, a: Tensor, b: Tensor) -> Tensor:
        """a where the mask holds, otherwise b, problem by problem."""
        return a if mask else b

    def any(self, mask: Mask) -> bool:
        """Whether the mask holds for some problem."""
        return bool(mask)

    def rows(self, mask: Mask, a: Any) -> Any:
        """The numbers or vectors of the problems in the mask (which holds for some)."""
        return a

    def at(self, mask: Mask, place: Number) -> tuple[Any, ...]:
        """The index of `place` in a tensor, for the problems in the mask (which holds for some)."""
        return (int(place),)

    def spread(self, mask: Mask, rows: Tensor) -> Number:
        """The inverse of `rows` for numbers; 1 for the problems outside the mask."""
        return rows.item()


class Stack:
    """Operations for B independent problems: numbers are float64 tensors ``(B,)``.

    Example:
        >>> space = Stack(torch.zeros(3, 2))
        >>> space.dot(torch.ones(3, 2), torch.ones(3, 2)).tolist()
        [2.0, 2.0, 2.0]
    """

    batched = True

    def __init__(self, like: Tensor) -> None:
        self.epsilon: float = torch.finfo(like.dtype).eps
        self.size = like.shape[0]
        self.device = like.device

    def number(self, value: float) -> Number:
        """The number `value`, for every problem."""
        return torch.full((self.size,), value, dtype=torch.float64, device=self.device)

    def dot(self, a: Tensor, b: Tensor) -> Number:
        """⟨a, b⟩ for every problem."""
        return torch.linalg.vecdot(a, b).double()

    def norm(self, a: Tensor) -> Number:
        """‖a‖₂ for every problem."""
        return torch.linalg.vecdot(a, a).double().sqrt()

    def largest(self, a: Tensor) -> Number:
        """‖a‖∞ for every problem."""
        low, high = torch.aminmax(a, dim=-1)
        return torch.maximum(-low, high).double()

    def sum(self, a: Tensor) -> Number:
        """Σ aᵢ for every problem."""
        return a.sum(-1).double()

    def times(self, number: Number, a: Tensor) -> Tensor:
        """number · a."""
        return torch.mul(a, self._column(number, a))

    def apply(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """matrix · vector for every problem."""
        return torch.matmul(matrix, vector.unsqueeze(-1)).squeeze(-1)

    def add_product(self, a: Tensor, matrix: Tensor, vector: Tensor) -> Tensor:
        """a + matrix · vector for every problem."""
        return torch.baddbmm(a.unsqueeze(-1), matrix, vector.unsqueeze(-1)).squeeze(-1)

    def add(self, a: Tensor, number: Number, b: Tensor) -> Tensor:
        """a + number · b."""
        return torch.addcmul(a, b, self._column(number, b))

    def select(self, mask: Mask, a: Tensor, b: Tensor) -> Tensor:
        """a where the mask holds, otherwise b, problem by problem."""
        if not isinstance(mask, Tensor):
            return a if mask else b
        return torch.where(mask.view(-1, *(1 for _ in a.shape[1:])), a, b)

    def any(self, mask: Mask) -> bool:
        """Whether the mask holds for some problem."""
        return bool(mask.any()) if isinstance(mask, Tensor) else bool(mask)

    def rows(self, mask: Mask, a: Any) -> Any:
        """The numbers or vectors of the problems in the mask (which holds for some)."""
        return a[mask]

    def at(self, mask: Mask, place: Number) -> tuple[Any, ...]:
        """The index of `place` in a tensor, for the problems in the mask (which holds for some)."""
        return mask.nonzero().squeeze(-1), place[mask].long()

    def spread(self, mask: Mask, rows: Tensor) -> Number:
        """The inverse of `rows` for numbers; 1 for the problems outside the mask."""
        return self.number(1.0).masked_scatter_(mask, rows)

    @staticmethod
    def _column(number: Number, like: Tensor) -> Tensor:
        if isinstance(number, Tensor):
            return number.to(like.dtype).unsqueeze(-1)
        return torch.full((), number, dtype=like.dtype, device=like.device)


Space: TypeAlias = Single | Stack
