"""L-BFGS in its compact form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.numbers import Number, where
from hasten.solvers.descent import Descending, DescentMethod
from hasten.solvers.line_search import StrongWolfe
from hasten.solvers.method import register
from hasten.solvers.objective import Objective
from hasten.solvers.options import option
from hasten.solvers.space import Mask, Space, divide
from hasten.words import Interval


class Pairs:
    """The last m steps s and gradient changes y, and the product of the inverse Hessian they imply with a vector.

    The compact form (Byrd, Nocedal & Schnabel, 1994, doi:10.1007/BF01582063), with γ = sᵀy/yᵀy of the newest pair:

        H g = γ g + S c − γ Y u,   u = R⁻¹ Sᵀg,   c = R⁻ᵀ (D u + γ (YᵀY u − Yᵀg)),

    where R is the upper triangle of SᵀY (older pairs first) and D its diagonal. Two passes over the pairs do it, one
    for all inner products with g and the newest y, one for the combination; the two-loop recursion takes as many
    passes and twice as many over the vector it updates, in 4m operations. R⁻¹ is kept itself: to drop the oldest pair
    drops its row and column, to add a pair adds a column. So pairs stay in their slots, in any order.
    """

    def __init__(self, space: Space, like: Tensor, m: int) -> None:
        batch, d = like.shape[:-1], like.shape[-1]
        self.space = space
        self.memory = m
        self.steps = torch.zeros(*batch, m, d, dtype=like.dtype, device=like.device)
        self.changes = torch.zeros_like(self.steps)
        small: dict[str, Any] = {"dtype": torch.float64, "device": like.device}
        self.inverse = torch.zeros(*batch, m, m, **small)
        self.gram = torch.zeros(*batch, m, m, **small)
        self.diagonal = torch.zeros(*batch, m, **small)
        self.gamma: Number = space.number(1.0)
        self.added: Number = space.number(0)
        self.used = 0

    def forget(self, mask: Mask) -> None:
        """Drop all pairs of the problems in the mask: with R⁻¹ = 0 they take no part."""
        self.inverse = self.space.select(mask, torch.zeros_like(self.inverse), self.inverse)
        self.gamma = where(mask, 1.0, self.gamma)

    def advance(self, mask: Mask, s: Tensor, y: Tensor, rho: Number, g: Tensor) -> Tensor:
        """−H g, after the pair s, y with ``rho = sᵀy`` > 0 has replaced the oldest one where the mask holds."""
        space, some = self.space, self.space.any(mask)
        at: tuple[Any, ...] = ()
        if some:
            at = space.at(mask, self.added % self.memory)
            self.steps[at], self.changes[at] = space.rows(mask, s), space.rows(mask, y)
            self.added = self.added + where(mask, 1, 0)
            self.used = min(self.used + 1, self.memory)
        if self.used == 0:
            return -g
        steps, changes, inverse, gram, diagonal = self._kept()
        both = torch.stack((g, y), -2)
        sg, sy = (both @ steps.mT).double().unbind(-2)
        yg, yy = (both @ changes.mT).double().unbind(-2)
        if some:
            # The oldest pair's column of R⁻¹ is zero but for the diagonal, so its row is all there is to drop; the new
            # column is −R⁻¹ (Sᵀy)/ρ over the older pairs, then 1/ρ.
            inverse[at] = 0
            column = space.times(divide(-1.0, rho), space.apply(inverse, sy))
            column[at] = divide(1.0, space.rows(mask, rho))
            inverse.mT[at] = space.rows(mask, column)
            gram[at] = new = space.rows(mask, yy)
            gram.mT[at] = new
            diagonal[at] = space.rows(mask, rho)
            self.gamma = where(mask, divide(rho, space.spread(mask, yy[at])), self.gamma)
        u = space.apply(inverse, sg)
        scaled = space.times(self.gamma, space.apply(gram, u) - yg)
        c = space.apply(inverse.mT, torch.addcmul(scaled, diagonal, u))
        direction = space.add_product(
            space.times(-self.gamma, g), changes.mT, space.times(self.gamma, u).to(g.dtype)
        )
        return space.add_product(direction, steps.mT, -c.to(g.dtype))

    def _kept(self) -> tuple[Tensor, ...]:
        """S, Y, R⁻¹, YᵀY and D, without slots that were never filled."""
        k = self.used
        if k == self.memory:
            return self.steps, self.changes, self.inverse, self.gram, self.diagonal
        return (
            self.steps[..., :k, :],
            self.changes[..., :k, :],
            self.inverse[..., :k, :k],
            self.gram[..., :k, :k],
            self.diagonal[..., :k],
        )


@register
@dataclass(frozen=True)
class LBFGS(DescentMethod):
    """Limited-memory BFGS: curvature from the last few steps, and a strong-Wolfe line search. The default."""

    name: ClassVar[str] = "l-bfgs"
    stopping: ClassVar[dict[str, Any]] = {"max_evaluations": 15000}
    source: ClassVar[str] = "Liu & Nocedal (1989), doi:10.1007/BF01589116"

    memory: int = option(10, Interval(1), "steps remembered", integer=True, also=("maxcor", "m"))
    c1: float = option(
        1e-4, Interval(0, 0.5, "neither"), "the least decrease, relative to the slope's promise"
    )
    c2: float = option(
        0.9, Interval(0, 1, "neither"), "the slope at an accepted point, relative to the first"
    )
    trials: int = option(20, Interval(2), "most evaluations in a line search", integer=True, also=("maxls",))

    @property
    def rule(self) -> StrongWolfe:
        """The line search; its interval need not be narrow, since the next pair corrects the length."""
        return StrongWolfe(self.c1, self.c2, 0.1, self.trials)

    def remember(self, objective: Objective, x0: Tensor) -> Pairs:
        """No pairs."""
        return Pairs(objective.space, x0, self.memory)

    def forget(self, state: Descending, mask: Mask) -> None:
        """Drop the pairs."""
        state.memory.forget(mask)

    def direction(
        self, objective: Objective, state: Descending, accepted: Mask, x: Tensor, g: Tensor, slope: Number
    ) -> Tensor:
        """−H g; a pair without measurable curvature sᵀy = α (φ'(α) − φ'(0)) is left out."""
        search, space = state.search, objective.space
        assert state.g is not None
        s, y = space.times(search.step, state.d), g - state.g
        rho = search.step * (slope - search.slope0)
        curved = accepted & (rho > -space.epsilon * search.step * search.slope0)
        direction: Tensor = state.memory.advance(curved, s, y, rho, g)
        return direction

    def first_step(self, objective: Objective, state: Descending, slope: Number) -> Number:
        """1: the model's own length."""
        return objective.space.number(1.0)
