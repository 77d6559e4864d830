"""The gradient as backpropagation left it in ``p.grad``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hasten.words import Oracle


@dataclass(frozen=True)
class Backpropagation(Oracle):
    """The gradient in ``p.grad``, or the one that a closure computes there.

    With `loss`, the value of the objective is needed as well: ``step`` then insists on a closure that returns it.
    """

    loss: bool = False
    formula: ClassVar[str] = "g = ∇f(y)"

    @property
    def delivers_loss(self) -> bool:
        """Whether the loss is handed to the parts that measure."""
        return self.loss

    def observe(
        self, optimizer: Any, closure: Callable[[], Any] | None
    ) -> tuple[Any, dict[str, dict[Tensor, Tensor]]]:
        """Evaluate the closure."""
        if self.loss and closure is None:
            raise TypeError(
                "step() needs a closure that computes the gradient and returns the loss, which is estimated from"
            )
        return super().observe(optimizer, closure)
