"""Scalar functions for the step-dependent numbers of a formula.

Bias corrections, schedules and averaging weights are numbers, not tensors. In an ordinary step they are
Python floats; inside a user's ``torch.compile`` of the whole step they are 0-d tensors, so that a new
learning rate never recompiles. Formulas for numbers are written with these functions and serve both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = Any
"""A Python float, or a 0-d float64 tensor while a step is being traced."""


class Names:
    """Values by name, as attributes: ``h.beta1``. (``types.SimpleNamespace`` cannot be traced by ``torch.compile``.)

    Example:
        >>> Names(beta1=0.9).beta1
        0.9
    """

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


def log(x: Number) -> Number:
    """Natural logarithm."""
    return torch.log(x) if isinstance(x, Tensor) else math.log(x)


def cos(x: Number) -> Number:
    """Cosine, in radians."""
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def sqrt(x: Number) -> Number:
    """Square root."""
    return torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)


def where(condition: Any, yes: Number, no: Number) -> Number:
    """``yes`` where the condition holds, otherwise ``no``; both are evaluated."""
    if isinstance(condition, Tensor):
        return torch.where(condition, _like(yes, condition), _like(no, condition))
    return yes if condition else no


def maximum(a: Number, b: Number) -> Number:
    """The larger of two numbers."""
    return where(a > b, a, b)


def minimum(a: Number, b: Number) -> Number:
    """The smaller of two numbers."""
    return where(a < b, a, b)


def _like(x: Number, reference: Tensor) -> Tensor:
    if isinstance(x, Tensor):
        return x
    return torch.full((), x, dtype=torch.float64, device=reference.device)
