"""Nonlinear conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hasten.numbers import Number, maximum, minimum, where
from hasten.solvers.descent import Descending, DescentMethod
from hasten.solvers.line_search import StrongWolfe
from hasten.solvers.method import register
from hasten.solvers.objective import Objective
from hasten.solvers.options import option
from hasten.solvers.space import Mask, divide
from hasten.words import Interval


@register
@dataclass(frozen=True)
class ConjugateGradient(DescentMethod):
    """Nonlinear conjugate gradients: four vectors of memory, ``d ← −g⁺ + β d``. With ``y = g⁺ − g``:

    | `beta` | β | source |
    |---|---|---|
    | ``"fr"`` | ⟨g⁺,g⁺⟩ / ⟨g,g⟩; −g⁺ where abs⟨g⁺,g⟩ ≥ 0.2 ⟨g⁺,g⁺⟩ | Fletcher & Reeves (1964), Powell (1977) |
    | ``"pr+"`` | max(0, ⟨g⁺,y⟩ / ⟨g,g⟩) | Polak & Ribière (1969), Gilbert & Nocedal (1992) |
    | ``"hs"`` | ⟨g⁺,y⟩ / ⟨d,y⟩ | Hestenes & Stiefel (1952) |
    | ``"hs+"`` | max(0, ⟨g⁺,y⟩ / ⟨d,y⟩), the default | as before |
    | ``"dy"`` | ⟨g⁺,g⁺⟩ / ⟨d,y⟩ | Dai & Yuan (1999) |
    | ``"hz"`` | ⟨y − 2d ⟨y,y⟩/⟨d,y⟩, g⁺⟩ / ⟨d,y⟩, at least −1/(‖d‖ min(0.01, ‖g‖)) | Hager & Zhang (2005) |
    """

    name: ClassVar[str] = "ncg"
    stopping: ClassVar[dict[str, Any]] = {"max_evaluations": 15000}
    source: ClassVar[str] = "Hager & Zhang (2006), A survey of nonlinear conjugate gradient methods"

    beta: str = option("hs+", ("fr", "pr+", "hs", "hs+", "dy", "hz"), "the formula for β")
    c1: float = option(
        1e-4, Interval(0, 0.5, "neither"), "the least decrease, relative to the slope's promise"
    )
    c2: float = option(
        0.1, Interval(0, 1, "neither"), "the slope at an accepted point, relative to the first"
    )
    trials: int = option(30, Interval(2), "most evaluations in a line search", integer=True, also=("maxls",))

    @property
    def rule(self) -> StrongWolfe:
        """The line search; it settles late, since conjugacy lives on its precision."""
        return StrongWolfe(self.c1, self.c2, 1e-6, self.trials)

    def direction(
        self, objective: Objective, state: Descending, accepted: Mask, x: Tensor, g: Tensor, slope: Number
    ) -> Tensor:
        """−g⁺ + β d, or −g⁺ where that does not descend."""
        space, d = objective.space, state.d
        assert state.g is not None
        beta = self._beta(objective, state, g, slope)
        new = space.add(-g, beta, d)
        size = space.norm(g)
        descends = beta * slope - size * size < -1e-12 * size * space.norm(new)
        return space.select(descends, new, -g)

    def _beta(self, objective: Objective, state: Descending, g: Tensor, slope: Number) -> Number:
        space, before, d = objective.space, state.g, state.d
        assert before is not None
        dy = slope - state.search.slope0
        if self.beta == "dy":
            return divide(space.dot(g, g), dy)
        if self.beta == "fr":
            square = space.dot(g, g)
            far = abs(space.dot(g, before)) >= 0.2 * square
            return where(far, 0.0, divide(square, space.dot(before, before)))
        y = g - before
        gy = space.dot(g, y)
        if self.beta == "pr+":
            beta = divide(gy, space.dot(before, before))
        elif self.beta == "hz":
            beta = divide(gy - 2 * slope * divide(space.dot(y, y), dy), dy)
            floor = divide(-1.0, space.norm(d) * minimum(space.norm(before), 0.01 + 0.0 * dy))
            return maximum(beta, floor)
        else:
            beta = divide(gy, dy)
        return beta if self.beta == "hs" else maximum(beta, 0.0 * beta)

    def first_step(self, objective: Objective, state: Descending, slope: Number) -> Number:
        """The last step, scaled so that the first-order change of f is the last one again."""
        return state.search.step * divide(state.search.slope0, slope)

    def cautious_step(self, size: Number) -> Number:
        """A step of length 1."""
        return divide(1.0, size)
