"""Gradient descent and its proximal form, with a known or a measured smoothness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hasten.numbers import Number, maximum, where
from hasten.solvers.method import Method, State, register
from hasten.solvers.objective import Objective
from hasten.solvers.options import option
from hasten.solvers.space import Mask, divide, isfinite
from hasten.words import POSITIVE, Interval


@dataclass(frozen=True)
class StepLength:
    """The length s of a gradient step: 1/L where the smoothness L is known, otherwise found by backtracking.

    A step from y to x is long enough to be safe, and accepted, while ``f(x) ≤ f(y) + ⟨∇f(y), x−y⟩ + ‖x−y‖²/(2s)``.
    A refused length is multiplied by `shrink`, an accepted one by `grow`.
    """

    smoothness: float | None
    shrink: float
    grow: float

    def first(self, objective: Objective, x: Tensor, g: Tensor) -> Number:
        """1/L, or the inverse of the curvature ‖∇f(x − εg) − ∇f(x)‖/‖εg‖ along the gradient (one evaluation)."""
        space = objective.space
        if self.smoothness is not None:
            return space.number(1 / self.smoothness)
        length = space.epsilon ** (1 / 3) * maximum(space.norm(x), space.number(1.0))
        epsilon = divide(length, space.norm(g))
        probe = space.add(x, -epsilon, g)
        if objective.term is not None:
            probe = objective.term.prox(probe, epsilon, space)
        _, there = objective.value_and_gradient(probe)
        inverse = divide(space.norm(probe - x), space.norm(there - g))
        return where(isfinite(inverse) & (inverse > 0), inverse, space.number(1.0))

    def accepts(self, rise: Number, slope: Number, square: Number, s: Number) -> Mask:
        """Whether ``rise = f(x) − f(y)`` obeys the test, with `slope` ⟨∇f(y), x−y⟩ and `square` ‖x−y‖²."""
        if self.smoothness is not None:
            return s == s
        return rise <= slope + divide(square, 2 * s)

    def next(self, accepted: Mask, s: Number) -> Number:
        """The next length."""
        return s if self.smoothness is not None else s * where(accepted, self.grow, self.shrink)


def gradient_step(objective: Objective, y: Tensor, g: Tensor, s: Number) -> tuple[Tensor, Number]:
    """``x = prox_h(y − s g, s)`` and ``‖(y − x)/s‖∞``, which is ‖g‖∞ where there is no h."""
    space = objective.space
    x = space.add(y, -s, g)
    if objective.term is None:
        return x, space.largest(g)
    x = objective.term.prox(x, s, space)
    return x, divide(space.largest(y - x), s)


@dataclass
class Descending(State):
    """x, the step length s, and the point it leads to."""

    smooth: Number
    s: Number
    trial: Tensor


@register
@dataclass(frozen=True)
class GradientDescent(Method):
    """Gradient descent; with prox or bounds, the proximal (projected) gradient method."""

    name: ClassVar[str] = "gradient-descent"
    takes_prox: ClassVar[bool] = True
    takes_bounds: ClassVar[bool] = True
    source: ClassVar[str] = "Beck & Teboulle (2009), doi:10.1137/080716542"

    smoothness: float | None = option(None, POSITIVE, "L, the largest curvature; None: found by backtracking")
    shrink: float = option(0.5, Interval(0, 1, "neither"), "factor on a step length that was refused")
    grow: float = option(1.1, Interval(1), "factor on a step length that was accepted")

    @property
    def _rule(self) -> StepLength:
        return StepLength(self.smoothness, self.shrink, self.grow)

    def start(self, objective: Objective, x0: Tensor) -> Descending:
        """Evaluate at x0, and measure the curvature if L is not known."""
        f, g = objective.value_and_gradient(x0)
        s = self._rule.first(objective, x0, g)
        trial, residual = gradient_step(objective, x0, g, s)
        none = objective.space.number(0.0)
        return Descending(x0, objective.whole(f, x0), g, residual, none, none > 0, none > 0, f, s, trial)

    def step(self, objective: Objective, state: Descending) -> Descending:
        """``x⁺ = prox_h(x − s ∇f(x), s)``: one evaluation there."""
        space, rule, x = objective.space, self._rule, state.trial
        assert state.g is not None
        f, g = objective.value_and_gradient(x)
        move = x - state.x
        slope, square = space.dot(state.g, move), space.dot(move, move)
        rise = f - state.smooth
        # Where half of the digits of f have cancelled, the trapezoidal rule along the step states its change.
        rise = where(abs(rise) <= space.epsilon**0.5 * abs(f), 0.5 * (slope + space.dot(g, move)), rise)
        accepted = rule.accepts(rise, slope, square, state.s)
        s = rule.next(accepted, state.s)
        if space.any(accepted):
            state.x = space.select(accepted, x, state.x)
            state.g = space.select(accepted, g, state.g)
            state.smooth = where(accepted, f, state.smooth)
            state.f = where(accepted, objective.whole(f, x), state.f)
        state.trial, state.residual = gradient_step(objective, state.x, state.g, s)
        state.s, state.stepped, state.iterations = s, accepted, state.iterations + where(accepted, 1, 0)
        # A step length that vanishes finds no better point.
        state.failed = s < 1e-300
        return state
