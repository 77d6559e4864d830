"""Where a formula stands between two of its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Later:
    """A value that is made when it is first asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class Flow:
    """Where a formula stands between two parts.

    Args:
        direction: what the parts so far have made of the gradient.
        grad: the gradient as the parts to come see it, or what makes it.
        decay: the weight decay that the iterate shall apply.
        writes: new values by name.
        terms: to be summed, by name.
    """

    def __init__(
        self,
        direction: Any,
        grad: Any,
        decay: Any = None,
        writes: dict[str, Any] | None = None,
        terms: dict[str, Any] | None = None,
    ) -> None:
        self.direction, self._grad, self.decay = direction, grad, decay
        self.writes = {} if writes is None else writes
        self.terms = {} if terms is None else terms
        self.asked: set[str] = set()
        """Which of ``"param"`` and ``"grad"`` a part has read."""

    @property
    def grad(self) -> Any:
        """The gradient as the parts to come see it."""
        if isinstance(self._grad, Later):
            self._grad = self._grad.make()
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        self._grad = value

    @property
    def apart(self) -> bool:
        """Whether the gradient is not the direction."""
        return self._grad is not self.direction
