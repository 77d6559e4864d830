"""Randomized-subspace descent and its acceleration: the iterates of directions G = P Pᵀ∇f.

Constants, schedules and proofs are our own derivation for the method announced in Omiya, Poirion & Takeda (2026,
arXiv:2605.00740), of which only the abstract was at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from hasten.iterates.three_sequences import ThreeSequences
from hasten.numbers import Names, Number, maximum, sqrt, where
from hasten.words import FRACTION, NONNEGATIVE, POSITIVE, Buffer, Entry, Iterate, Value, hyper

_LIMIT = 1e8
"""μA from which schedule U is, to 6e-8 relative, its limit, schedule S."""


class Coefficients(NamedTuple):
    """θ, γ, β of one step of the three sequences, and the next A."""

    A: Number
    theta: Number
    gamma: Number
    beta: Number


def unified(A: Number, C: Number, mu: Number) -> Coefficients:
    """Schedule U, for any μ ≥ 0: the root of C a² = (A+a)(B+μa) with B = 1 + μA.

    Example:
        >>> unified(0.0, 4.0, 0.0)
        Coefficients(A=0.25, theta=1.0, gamma=0.25, beta=0.0)
    """
    C = where(C - mu < 1e-9 * C, mu * (1 + 1e-9), C)  # r = d and L = μI
    limit = mu * A > _LIMIT
    finite = where(limit, 0.0, A)  # the branch that is not taken must not overflow
    B = 1 + mu * finite
    b = B + mu * finite
    a = (b + sqrt(b * b + 4 * (C - mu) * finite * B)) / (2 * (C - mu))
    A1, B1 = finite + a, B + mu * a
    steady = strongly_convex(C, where(limit, mu, C))
    return Coefficients(
        where(limit, A, A1),
        where(limit, steady.theta, a * B / (a * B + finite * B1)),
        where(limit, steady.gamma, a / B1),
        where(limit, steady.beta, mu * a / B1),
    )


def strongly_convex(C: Number, mu: Number) -> Coefficients:
    """Schedule S, constant: α = √(μ/C), θ = α/(1+α), γ = α/μ, β = α.

    Example:
        >>> strongly_convex(4.0, 1.0).beta
        0.5
    """
    alpha = sqrt(mu / C)
    return Coefficients(0.0, alpha / (1 + alpha), alpha / mu, alpha)


def convex(k: Number, C: Number) -> Coefficients:
    """Schedule C at step `k` = 1, 2, …: θ = 2/(k+1), γ = 1/(θC), β = 0.

    Example:
        >>> convex(1, 4.0).gamma
        0.25
    """
    return Coefficients(0.0, 2 / (k + 1), (k + 1) / (2 * C), 0.0)


_TINY = 1e-30
"""Keeps a vanishing gradient from dividing by zero."""


@dataclass(frozen=True)
class SubspaceStep(Iterate):
    """What both iterates share: the expected smoothness ℓ, known or estimated, and the length of the descent step.

    With `estimate`, ℓ is the ratio of running sums of q = Gᵀ∇²f(y)G and ‖s‖² over a window of T = max(20, 100/r)
    steps; during the first T/2 steps at least twice the largest ratio seen. A heuristic without proof, but close to
    what the theory needs: E[GᵀLG]/‖∇f‖². An importance-sampling sketch sets the length of its descent step itself.
    """

    lr: Value = hyper(1.0, NONNEGATIVE, "factor on the step 1/ℓ; 1 is the theory's")
    smoothness: Value = hyper(1.0, POSITIVE, "ℓ = λ_max(E[W L W]) with W = PPᵀ, the expected smoothness")
    inflation: Value = hyper(1.0, POSITIVE, "ν, the inflation of the second moment, in C = νℓ")
    second_moment: Value = hyper(1.0, POSITIVE, "λ_max(E[W²]) of the sketch, by which weight decay enters ℓ")
    weight_decay: Value = hyper(0.0, NONNEGATIVE, "λ, of a term (λ/2)‖x‖² of the objective")
    estimate: bool = False
    measures: ClassVar[Literal["", "tensor", "all"]] = "all"

    @property
    def needs(self) -> tuple[str, ...]:
        """What a subspace oracle delivers with every draw."""
        return (
            "directional_derivatives",
            "squared_norm",
            "short_step",
            *(("curvature",) if self.estimate else ()),
        )

    def counters(self) -> dict[str, float]:
        """How often a sketch was drawn, how many directional derivatives were taken, and the estimate's running sums.

        Parameters that join late take part in the method where it stands, so no part of it counts their own steps.
        """
        sums = dict.fromkeys(("curvature", "square", "largest"), 0.0) if self.estimate else {}
        return {"draws": 0.0, "oracle_calls": 0.0, **sums}

    def expected_smoothness(self, h: Names, c: Names, sums: Names) -> Number:
        """ℓ of the coming draw: from earlier draws only, except for the first, pessimistic guess."""
        if not self.estimate:
            return (h.smoothness + h.second_moment * h.weight_decay) / maximum(h.lr, _TINY)
        known = c.square > 0
        mean = c.curvature / where(known, c.square, 1.0)
        early = c.draws < _window(c) / 2
        first = 2 * abs(sums.curvature) / maximum(sums.squared_norm, _TINY)
        ratio = where(known, where(early, maximum(mean, 2 * c.largest), mean), first)
        return maximum(ratio, _TINY) / maximum(h.lr, _TINY)

    def learn(self, c: Names, sums: Names) -> None:
        """Count the oracle's numbers, and add its curvature to the running sums."""
        if self.estimate:
            keep = 1 - 1 / _window(c)
            bend = abs(sums.curvature)  # away from convexity a bound on it, not its sign, limits the step
            c.curvature = keep * c.curvature + bend
            c.square = keep * c.square + sums.squared_norm
            c.largest = maximum(c.largest, bend / maximum(sums.squared_norm, _TINY))
        c.draws = c.draws + 1
        c.oracle_calls = c.oracle_calls + sums.directional_derivatives

    def length(self, h: Names, smoothness: Number, sums: Names) -> Number:
        """The length of the descent step: 1/ℓ, or the sketch's own, which knows nothing of weight decay."""
        own = sums.short_step == sums.short_step  # NaN stands for none
        flatter = sums.short_step / (1 + sums.short_step * h.second_moment * h.weight_decay)
        return where(own, h.lr * flatter, 1 / smoothness)


def _window(c: Names) -> Number:
    """T = max(20, 100/r), from the mean number r of directional derivatives in the draws so far."""
    return maximum(20.0, 100 * c.draws / maximum(c.oracle_calls, 1.0))


@dataclass(frozen=True)
class SubspaceDescent(SubspaceStep):
    """x ← x − G/ℓ (cf. Kozak, Becker, Doostan & Tenorio 2021, Stochastic Subspace Descent)."""

    formula: ClassVar[str] = "x ← x − G/ℓ"

    def measured(self, h: Names, k: Number, c: Names, sums: Names) -> dict[str, Number]:
        """The length of the step."""
        smoothness = self.expected_smoothness(h, c, sums)
        self.learn(c, sums)
        return {"delta": self.length(h, smoothness, sums)}

    def move(self, d: Entry, s: Any, n: Any) -> Entry:
        """The new point."""
        return s.param - n.delta * d


@dataclass(frozen=True)
class RandomizedSubspace(SubspaceStep, ThreeSequences):
    """Randomized-subspace Nesterov acceleration: x takes the descent step, z a ν times shorter mirror step, same P.

    The guarantee is for x. From x₀ = z₀: E f(x_k) − f* ≤ 2CR²/(k+1)², and ≤ (CR²/2)(1−√(μ/C))^(k−1) with μ > 0, where
    C = νℓ. Feeding G into a two-sequence Nesterov method amounts to ν = 1: it stalls or diverges. For W = I this is
    Nesterov's method.

    `restart`: forget the momentum every so many steps; with `by_value`, only where the objective at y has grown since
    it was last compared, that many steps ago (comparing at every step is triggered by the noise of the draws).
    `mirror`: a buffer holds the diagonal of the metric M of the mirror step, z ← … − γ M⁻¹ G.
    """

    strong_convexity: Value = hyper(0.0, NONNEGATIVE, "μ, the smallest curvature")
    warm_start: Value = hyper(0.0, FRACTION, "A₀ in units of ν/ℓ; 1 is faster early and may be slower late")
    schedule: Literal["unified", "convex", "strongly convex"] = "unified"
    restart: int | None = None
    by_value: bool = False
    mirror: bool = False
    formula: ClassVar[str] = (
        "a > 0: C a² = (A+a)(B+μa) with C = νℓ, B = 1+μA;  A' = A+a, θ = aB/(aB+AB'), γ = a/B', β = μγ:  "
        "y = (1−θ)x + θz;  x ← y − G/ℓ;  z ← (1−β)z + βy − γG;  evaluate at x"
    )

    @property
    def needs(self) -> tuple[str, ...]:
        """What a subspace oracle delivers, and the loss to restart by."""
        return (*super().needs, *(("loss",) if self.by_value else ()))

    def buffers(self) -> dict[str, Buffer]:
        """D = z − x, and the diagonal of the mirror metric."""
        return {
            **ThreeSequences.buffers(self),
            **({"metric": Buffer(1.0, exact=True)} if self.mirror else {}),
        }

    def counters(self) -> dict[str, float]:
        """A, the steps since the last restart, and the value compared with."""
        value = {"compared": math.inf} if self.by_value else {}
        return {**super().counters(), **ThreeSequences.counters(self), "A": 0.0, "age": 0.0, **value}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """None before the oracle's numbers are known."""
        return {}

    def measured(self, h: Names, k: Number, c: Names, sums: Names) -> dict[str, Number]:
        """The coefficients of the two-buffer form."""
        smoothness = self.expected_smoothness(h, c, sums)
        delta = self.length(h, smoothness, sums)
        A = where(c.draws == 0, h.warm_start * h.inflation / smoothness, c.A)
        now = self.coefficients(h, A, c.age + 1, smoothness)
        self.learn(c, sums)
        c.A, c.age = now.A, c.age + 1
        keep = where(self._forgets(c, sums), 0.0, 1.0)
        c.A, c.age = keep * c.A, keep * c.age
        c.output = self.coefficients(h, c.A, c.age + 1, self.expected_smoothness(h, c, sums)).theta
        return {
            "R": keep * (1 - now.theta) * (1 - now.beta),
            "S": keep * (now.gamma if self.mirror else now.gamma - delta),
            "F": keep * delta,
            "K": 0.0,
            "U": delta,
            "a": c.output,
        }

    def coefficients(self, h: Names, A: Number, age: Number, smoothness: Number) -> Coefficients:
        """θ, γ, β of the chosen schedule."""
        C, mu = h.inflation * smoothness, h.strong_convexity + h.weight_decay
        if self.schedule == "convex":
            return convex(age, C)
        return unified(A, C, mu) if self.schedule == "unified" else strongly_convex(C, mu)

    def _forgets(self, c: Names, sums: Names) -> Any:
        """Whether the momentum is forgotten after this step."""
        if self.restart is None:
            return False
        due = c.draws % self.restart == 0
        if not self.by_value:
            return due
        grown = due & (sums.loss > c.compared)
        c.compared = where(due, sums.loss, c.compared)
        return grown

    def move(self, d: Entry, s: Any, n: Any) -> Entry:
        """The new query point y."""
        if not self.mirror:
            return super().move(d, s, n)
        s.difference = n.R * s.difference - (n.S / s.metric - n.F) * d
        return s.param + n.a * s.difference - n.U * d
