"""Descent along a direction, by a strong-Wolfe line search: what L-BFGS and conjugate gradients share.

A round is one evaluation at the trial point x + α d. Where the line search accepts it, the method's memory learns the
step and names the next direction; where it fails, the memory is forgotten and −g tried once before giving up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hasten.numbers import Number, minimum, where
from hasten.solvers.line_search import Search, StrongWolfe
from hasten.solvers.method import Method, State
from hasten.solvers.objective import Objective
from hasten.solvers.space import Mask, divide, invert

PATIENCE = 5
"""Iterations without progress after which round-off is taken to decide."""


@dataclass
class Descending(State):
    """x with its direction d, the search along it, and the method's memory of earlier steps."""

    d: Tensor
    search: Search
    memory: Any
    fresh: Mask
    """Whether d is −g, with nothing remembered."""
    lowest: Number
    smallest: Number
    idle: Number
    """Iterations since f fell below `lowest`, or ‖g‖∞ to half of `smallest`."""


@dataclass(frozen=True)
class DescentMethod(Method):
    """A direction with a strong-Wolfe line search. Subclasses state the direction."""

    @property
    def rule(self) -> StrongWolfe:
        """The line search."""
        raise NotImplementedError

    def remember(self, objective: Objective, x0: Tensor) -> Any:
        """An empty memory of earlier steps."""
        return None

    def forget(self, state: Descending, mask: Mask) -> None:
        """Empty the memory of the problems in the mask."""

    def direction(
        self, objective: Objective, state: Descending, accepted: Mask, x: Tensor, g: Tensor, slope: Number
    ) -> Tensor:
        """The next direction, from the step of the state's search to x, where the gradient is g and φ' is `slope`."""
        raise NotImplementedError

    def first_step(self, objective: Objective, state: Descending, slope: Number) -> Number:
        """The first trial step along a new direction with the derivative `slope`."""
        raise NotImplementedError

    def cautious_step(self, size: Number) -> Number:
        """The first trial step along −g with ‖g‖ = `size`, when nothing else is known: a length of at most 1."""
        return minimum(divide(1.0, size), 1.0 + 0.0 * size)

    def start(self, objective: Objective, x0: Tensor) -> Descending:
        """Evaluate at x0; d = −g."""
        space = objective.space
        f, g = objective.value_and_gradient(x0)
        size, zero = space.norm(g), space.number(0.0)
        search = self.rule.begin(f, -size * size, self.cautious_step(size), space.epsilon)
        none, every = zero > 0, zero == 0
        memory = self.remember(objective, x0)
        largest = space.largest(g)
        return Descending(x0, f, g, largest, zero, none, none, -g, search, memory, every, f, largest, zero)

    def step(self, objective: Objective, state: Descending) -> Descending:
        """Evaluate at the trial point; where it is accepted, take the next direction."""
        space, g_before = objective.space, state.g
        assert g_before is not None
        x = space.add(state.x, state.search.step, state.d)
        f, g = objective.value_and_gradient(x)
        slope = space.dot(g, state.d)
        accepted, stuck = self.rule.learn(state.search, f - state.f, slope)
        state.stepped, state.failed = accepted, stuck & state.fresh
        if not space.any(accepted | stuck):
            return state
        again = stuck & invert(state.fresh)
        d = state.d
        if space.any(accepted):
            d = space.select(accepted, self.direction(objective, state, accepted, x, g, slope), d)
            state.x = space.select(accepted, x, state.x)
            state.g = g = space.select(accepted, g, g_before)
            state.f = where(accepted, f, state.f)
            state.residual = where(accepted, space.largest(g), state.residual)
            state.iterations = state.iterations + where(accepted, 1, 0)
            state.fresh = state.fresh & invert(accepted)
            self._notice(state, accepted)
        else:
            g = g_before
        self._begin(objective, state, g, d, accepted, again)
        return state

    @staticmethod
    def _notice(state: Descending, accepted: Mask) -> None:
        """Give up after `PATIENCE` iterations without progress: precision is exhausted."""
        progress = accepted & ((state.f < state.lowest) | (state.residual <= 0.5 * state.smallest))
        state.lowest = where(progress, minimum(state.f, state.lowest), state.lowest)
        state.smallest = where(progress, minimum(state.residual, state.smallest), state.smallest)
        state.idle = where(progress, 0.0, state.idle + where(accepted, 1.0, 0.0))
        state.failed = state.failed | (state.idle >= PATIENCE)

    def _begin(
        self, objective: Objective, state: Descending, g: Tensor, d: Tensor, accepted: Mask, again: Mask
    ) -> None:
        """Start new searches along d, or along −g where d does not descend or the last search failed."""
        space = objective.space
        slope = space.dot(g, d)
        reset = again | (accepted & invert(slope < 0))
        step = self.first_step(objective, state, slope)
        if space.any(reset):
            size = space.norm(g)
            self.forget(state, reset)
            d = space.select(reset, -g, d)
            slope = where(reset, -size * size, slope)
            step = where(reset, self.cautious_step(size), step)
            state.fresh = state.fresh | reset
        state.d = d
        new = self.rule.begin(state.f, slope, step, space.epsilon)
        state.search = new.where(accepted | again, state.search)
