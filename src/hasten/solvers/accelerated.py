"""Nesterov's accelerated gradient method and FISTA, with known or measured smoothness and adaptive restart.

Three sequences, with the coefficients of :func:`hasten.iterates.subspace.unified` (the same schedule, for a sketch
that is the identity): from A and the step length s = 1/L, the numbers θ, γ, β and the next A. With c = (1−β)z + βy,

    y = (1−θ) x + θ z
    Nesterov:  z⁺ = prox_h(c − γ ∇f(y), γ),  x⁺ = y + (s/γ)(z⁺ − c)
    FISTA:     x⁺ = prox_h(y − s ∇f(y), s),  z⁺ = c − (γ/s)(y − x⁺)

Without h both are x⁺ = y − s ∇f(y), z⁺ = c − γ ∇f(y), and with μ = 0 the familiar sequence t⁺ = (1+√(1+4t²))/2.
With h they differ: all of Nesterov's points are means of points of h's domain, so bounds are never left; all of
FISTA's x are results of a prox, so zeros are exact. The potential A(F(x) − F*) + (1+μA)/2 ‖z − x*‖² never grows, also
when s changes from step to step, as long as ``f(x⁺) ≤ f(y) + ⟨∇f(y), x⁺−y⟩ + ‖x⁺−y‖²/(2s)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hasten.iterates.subspace import Coefficients, strongly_convex, unified
from hasten.numbers import Number, minimum, where
from hasten.solvers.gradient_descent import StepLength, gradient_step
from hasten.solvers.method import Method, State, register
from hasten.solvers.objective import Objective
from hasten.solvers.options import option
from hasten.solvers.space import Mask, divide
from hasten.words import NONNEGATIVE, POSITIVE, Interval


@dataclass
class Accelerating(State):
    """The three sequences, f and its gradient at y, and the numbers of the next step."""

    y: Tensor
    smooth: Number
    slope: Tensor
    iterate: Tensor
    value: Number
    z: Tensor
    A: Number
    s: Number
    next: Coefficients


@dataclass(frozen=True)
class AcceleratedMethod(Method):
    """What Nesterov's method and FISTA share. Restarts: O'Donoghue & Candès (2015, doi:10.1007/s10208-013-9150-3)."""

    takes_prox: ClassVar[bool] = True
    takes_bounds: ClassVar[bool] = True

    smoothness: float | None = option(None, POSITIVE, "L, the largest curvature; None: found by backtracking")
    strong_convexity: float = option(0.0, NONNEGATIVE, "μ, the smallest curvature")
    schedule: Literal["unified", "strongly convex"] = option(
        "unified", ("unified", "strongly convex"), "of the momentum; the second is constant and needs μ > 0"
    )
    restart: Literal["gradient", "function", "none"] = option(
        "gradient", ("gradient", "function", "none"), "what makes the method forget its momentum"
    )
    shrink: float = option(0.5, Interval(0, 1, "neither"), "factor on a step length that was refused")
    grow: float = option(1.1, Interval(1), "factor on a step length that was accepted")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "strongly convex" and self.strong_convexity == 0:
            raise ValueError(
                f"minimize(method={self.name!r}): schedule = 'strongly convex' needs strong_convexity > 0"
            )
        if self.smoothness is not None and self.strong_convexity > self.smoothness:
            raise ValueError(
                f"minimize(method={self.name!r}): strong_convexity = {self.strong_convexity!r} is not allowed; "
                f"it must be at most the smoothness {self.smoothness!r}"
            )

    @property
    def _rule(self) -> StepLength:
        return StepLength(self.smoothness, self.shrink, self.grow)

    @property
    def _compares(self) -> bool:
        """Whether f is needed at x⁺."""
        return self.smoothness is None or self.restart == "function"

    def move(
        self, objective: Objective, state: Accelerating, centre: Tensor, ratio: Number
    ) -> tuple[Tensor, Tensor]:
        """x⁺ and z⁺; `ratio` is s/γ."""
        raise NotImplementedError

    def show(self, objective: Objective, state: Accelerating, length: Number, accepted: Mask) -> None:
        """Name the point to judge; `length` is ‖y − x⁺‖∞/s of the last step."""
        raise NotImplementedError

    def start(self, objective: Objective, x0: Tensor) -> Accelerating:
        """Evaluate at x0 = y = z, and measure the curvature if L is not known."""
        space = objective.space
        f, g = objective.value_and_gradient(x0)
        s = self._limited(self._rule.first(objective, x0, g))
        zero = space.number(0.0)
        _, residual = gradient_step(objective, x0, g, s)
        whole = objective.whole(f, x0)
        return Accelerating(
            x0, whole, g, residual, zero, zero > 0, zero > 0,
            x0, f, g, x0, whole, x0, zero, s, self._coefficients(zero, s),
        )  # fmt: skip

    def step(self, objective: Objective, state: Accelerating) -> Accelerating:
        """Both steps from y; where the length is accepted, the next y. One gradient, and f at x⁺ if compared."""
        space, rule, n, s = objective.space, self._rule, state.next, state.s
        centre = space.add(state.z, n.beta, state.y - state.z)
        x, z = self.move(objective, state, centre, divide(s, n.gamma))
        gap = x - state.y
        value = objective.value(x) if self._compares else state.smooth
        slope, square = space.dot(state.slope, gap), space.dot(gap, gap)
        # What round-off of f decides is let pass: a length that has grown too long shows when f rises by more.
        rise = value - state.smooth - 10 * space.epsilon * abs(state.smooth)
        accepted = rule.accepts(rise, slope, square, s)
        length = divide(space.largest(gap), s)
        restart = accepted & self._restarts(objective, state, x, gap, value)
        state.value = where(accepted, objective.whole(value, x), state.value)
        state.z = space.select(restart, x, space.select(accepted, z, state.z))
        state.iterate = space.select(accepted, x, state.iterate)
        state.A = where(restart, 0.0, where(accepted, n.A, state.A))
        state.s = self._limited(rule.next(accepted, s))
        state.next = n = self._coefficients(state.A, state.s)
        state.y = space.add(state.iterate, n.theta, state.z - state.iterate)
        state.smooth, state.slope = objective.value_and_gradient(state.y)
        state.stepped, state.iterations = accepted, state.iterations + where(accepted, 1, 0)
        state.failed = state.s < 1e-300
        self.show(objective, state, length, accepted)
        return state

    def _restarts(
        self, objective: Objective, state: Accelerating, x: Tensor, gap: Tensor, value: Number
    ) -> Mask:
        """Whether the step went uphill: by the gradient mapping at y, or by F."""
        if self.restart == "function":
            return objective.whole(value, x) > state.value
        if self.restart == "gradient":
            return objective.space.dot(gap, x - state.iterate) < 0
        return state.A < 0

    def _coefficients(self, A: Number, s: Number) -> Coefficients:
        mu = self.strong_convexity
        if self.schedule == "strongly convex":
            return strongly_convex(divide(1.0, s), mu)
        return unified(A, divide(1.0, s), mu)

    def _limited(self, s: Number) -> Number:
        """s ≤ 1/μ: no function has less curvature in one place than everywhere."""
        return s if self.strong_convexity == 0 else minimum(s, 1 / self.strong_convexity + 0.0 * s)


@register
@dataclass(frozen=True)
class Nesterov(AcceleratedMethod):
    """Nesterov's accelerated gradient; with prox or bounds, a form that never leaves the domain (Tseng, 2008).

    With h its x is a mean of earlier points, along which F rarely rises: restart by ``"gradient"`` there.
    """

    name: ClassVar[str] = "nesterov"
    source: ClassVar[str] = "Nesterov (1983; 2018, section 2.2), Tseng (2008), Auslender & Teboulle (2006)"

    def move(
        self, objective: Objective, state: Accelerating, centre: Tensor, ratio: Number
    ) -> tuple[Tensor, Tensor]:
        """The step is taken by z, and x⁺ follows."""
        space, gamma = objective.space, state.next.gamma
        z = space.add(centre, -gamma, state.slope)
        if objective.term is not None:
            z = objective.term.prox(z, gamma, space)
        return space.add(state.y, ratio, z - centre), z

    def show(self, objective: Objective, state: Accelerating, length: Number, accepted: Mask) -> None:
        """y, where the gradient is known."""
        state.x, state.g = state.y, state.slope
        state.f = objective.whole(state.smooth, state.y)
        _, state.residual = gradient_step(objective, state.y, state.slope, state.s)

    def output(self, state: Accelerating) -> Tensor:
        """x, for which the rate is proven."""
        return state.iterate


@register
@dataclass(frozen=True)
class Fista(AcceleratedMethod):
    """FISTA: accelerated proximal gradient, whose points are results of the prox (so its zeros are exact)."""

    name: ClassVar[str] = "fista"
    source: ClassVar[str] = "Beck & Teboulle (2009), doi:10.1137/080716542"

    @property
    def _compares(self) -> bool:
        return True

    def move(
        self, objective: Objective, state: Accelerating, centre: Tensor, ratio: Number
    ) -> tuple[Tensor, Tensor]:
        """The step is taken by x, and z follows."""
        space = objective.space
        x, _ = gradient_step(objective, state.y, state.slope, state.s)
        return x, space.add(centre, divide(1.0, ratio), x - state.y)

    def show(self, objective: Objective, state: Accelerating, length: Number, accepted: Mask) -> None:
        """x, where f is known; the gradient there is not."""
        state.x, state.g, state.f, state.residual = state.iterate, None, state.value, length
