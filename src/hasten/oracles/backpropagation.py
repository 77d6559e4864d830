"""The gradient as backpropagation left it in ``p.grad``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hasten.words import Oracle


@dataclass(frozen=True)
class Backpropagation(Oracle):
    """The gradient in ``p.grad``, or the one that a closure computes there."""

    formula: ClassVar[str] = "g = ∇f(y)"
