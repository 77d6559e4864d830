"""Three sequences x, y, z: the linear system of which every accelerated gradient method is a point.

    y_t     = (1−a_t) x_t + a_t z_t                                   query point
    z_{t+1} = (1−b_t) z_t + b_t y_t − γ_t d_t                         long step
    x_{t+1} = p_t x_t + q_t z_{t+1} + (1−p_t−q_t) y_t − δ_t d_t       short step and average

The parameter holds y; one buffer holds D = z − x, from which both other sequences follow without a division.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.numbers import Names, Number, sqrt
from hasten.words import NONNEGATIVE, POSITIVE, Buffer, Entry, Interval, Iterate, Value, hyper


@dataclass(frozen=True)
class Coupling:
    """The coefficients of one step of the three sequences."""

    a: Number
    b: Number
    gamma: Number
    delta: Number
    p: Number = 0.0
    q: Number = 0.0


@dataclass(frozen=True)
class ThreeSequences(Iterate):
    """The general iterate. A method is a subclass that states its `coupling`.

    ``D' = R D − S d;  y' = y + K D + a' D' − U d`` with ``R = (1−q)(1−a)(1−b) + p a``, ``S = (1−q)γ − δ``,
    ``K = q(1−a)(1−b) − p a``, ``U = qγ + δ``; the point to evaluate is ``x = y − a' D'``.
    """

    two_points: ClassVar[bool] = True
    formula: ClassVar[str] = (
        "y = (1−a)x + a z;  z ← (1−b)z + b y − γ d;  x ← p x + q z + (1−p−q) y − δ d;  evaluate at x"
    )

    def coupling(self, h: Names, k: Number, c: Names) -> tuple[Coupling, Number]:
        """The coefficients of step `k` = 1, 2, … and the next step's `a`; may advance counters."""
        raise NotImplementedError

    def buffers(self) -> dict[str, Buffer]:
        """D = z − x."""
        return {"difference": Buffer()}

    def counters(self) -> dict[str, float]:
        """How much of D separates the training point from the one to evaluate."""
        return {"output": 0.0}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The coefficients of the two-buffer form."""
        g, ahead = self.coupling(h, k, c)
        c.output = self.output(h, ahead)
        return {
            "R": (1 - g.q) * (1 - g.a) * (1 - g.b) + g.p * g.a,
            "S": (1 - g.q) * g.gamma - g.delta,
            "K": g.q * (1 - g.a) * (1 - g.b) - g.p * g.a,
            "U": g.q * g.gamma + g.delta,
            "a": ahead,
        }

    def output(self, h: Names, ahead: Number) -> Number:
        """The multiple of D to subtract from y to get the point to evaluate."""
        return ahead

    def move(self, d: Entry, s: Any, n: Any) -> Entry:
        """The new query point y."""
        before = s.difference
        s.difference = n.R * before - n.S * d
        return s.param + n.K * before + n.a * s.difference - n.U * d

    def switch(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The multiple of D between both points."""
        return {"output": c.output}

    def evaluation(self, s: Any, n: Any) -> Entry:
        """x = y − a D."""
        return s.param - n.output * s.difference

    def training(self, s: Any, n: Any) -> Entry:
        """y = x + a D."""
        return s.param + n.output * s.difference


@dataclass(frozen=True)
class Kidambi(ThreeSequences):
    """Accelerated SGD in the parameters of Kidambi et al. (2018, arXiv:1803.05591); evaluated at y, as their code."""

    lr: Value = hyper(0.1, NONNEGATIVE, "short step")
    kappa: Value = hyper(1000.0, POSITIVE, "ratio of long to short step; larger for deeper, harder problems")
    xi: Value = hyper(10.0, POSITIVE, "statistical advantage, 1 ≤ ξ ≤ √κ; larger for larger batches")
    small_const: Value = hyper(0.7, Interval(0, 1, "right"), "the constant of the analysis, √5/3 rounded")
    two_points: ClassVar[bool] = False
    formula: ClassVar[str] = "three sequences with b = c²ξ/κ, a = b/(c+b), γ = cξ lr, δ = lr; evaluate at y"

    def coupling(self, h: Names, k: Number, c: Names) -> tuple[Coupling, Number]:
        """Constant coefficients."""
        b = h.small_const**2 * h.xi / h.kappa
        a = b / (h.small_const + b)
        return Coupling(a, b, gamma=h.small_const * h.xi * h.lr, delta=h.lr), a


@dataclass(frozen=True)
class Jain(ThreeSequences):
    """Accelerated SGD for least squares with proven constants (Jain et al., 2018, arXiv:1704.08227).

    The constants are safe but waste most of the gain. Their result is the average of x over the last half.
    """

    lr: Value = hyper(1.0, NONNEGATIVE, "factor on both steps; 1 is the theory's")
    smoothness: Value = hyper(1.0, POSITIVE, "R², with E‖a‖²aaᵀ ⪯ R² H")
    condition: Value = hyper(1000.0, Interval(1), "κ = R²/μ")
    statistical_condition: Value = hyper(30.0, Interval(1), "κ̃, with E‖a‖²_{H⁻¹}aaᵀ ⪯ κ̃ H")
    formula: ClassVar[str] = (
        "three sequences with α = s/(1+s), s = 3√(5κκ̃): a = 1−α, b = 1/(9√(κκ̃)), γ = κ/(3√5 R²√(κκ̃)), δ = 1/(5R²)"
    )

    def coupling(self, h: Names, k: Number, c: Names) -> tuple[Coupling, Number]:
        """Constant coefficients."""
        root = sqrt(h.condition * h.statistical_condition)
        a = 1 / (1 + 3 * 5**0.5 * root)
        gamma = h.condition / (3 * 5**0.5 * h.smoothness * root)
        return Coupling(a, 1 / (9 * root), h.lr * gamma, h.lr / (5 * h.smoothness)), a


@dataclass(frozen=True)
class Canonical(ThreeSequences):
    """The canonical accelerated triple under strong growth E‖g‖² ≤ ρ‖∇f‖².

    AGNES, Vaswani et al. (strongly convex) and MaSS are this one method; ρ = 1 is Nesterov's. When the batch shrinks
    j times in the noise-dominated regime, multiply `noise` by j: the steps divide by j, the window grows j times.
    """

    lr: Value = hyper(1.0, NONNEGATIVE, "factor on both steps; 1 is the theory's")
    smoothness: Value = hyper(1.0, POSITIVE, "L, the largest curvature")
    strong_convexity: Value = hyper(1e-2, POSITIVE, "μ, the smallest curvature")
    noise: Value = hyper(1.0, Interval(1), "ρ, the growth constant of the noise")
    formula: ClassVar[str] = (
        "q = √(μ/L);  β = (1−q/ρ)/(1+q/ρ), B = 1/(ρL), A = B(1−q)/(ρ+q):  m ← β m + d;  y ← y − A m − B d;  "
        "evaluate at x = y + A m"
    )

    def coupling(self, h: Names, k: Number, c: Names) -> tuple[Coupling, Number]:
        """Constant coefficients, with b = 0."""
        q = sqrt(h.strong_convexity / h.smoothness)
        short = h.lr / (h.noise * h.smoothness)
        a = 2 * q / (h.noise + q)
        # A = a (γ − δ) = B (1−q)/(ρ+q)
        return Coupling(a, 0.0, gamma=short * (1 + (1 - q) / (2 * q)), delta=short), a


@dataclass(frozen=True)
class VaswaniConvex(ThreeSequences):
    """Acceleration under strong growth without strong convexity (Vaswani, Bach & Schmidt, 2019, arXiv:1810.07288)."""

    lr: Value = hyper(1.0, NONNEGATIVE, "factor on both steps; 1 is the theory's")
    smoothness: Value = hyper(1.0, POSITIVE, "L, the largest curvature")
    noise: Value = hyper(1.0, Interval(1), "ρ, the growth constant of the noise")
    formula: ClassVar[str] = (
        "η = 1/(ρL);  γ_t = (1/ρ + √(1/ρ² + 4γ²_{t−1}))/2;  α_t = γ_t η/(γ_t η + a_t²), a_{t+1} = γ_t √(ηρ):  "
        "three sequences with a = α_t, b = 0, γ = γ_t η, δ = η"
    )

    def counters(self) -> dict[str, float]:
        """γ and a of the last step."""
        return {**super().counters(), "gamma": 0.0, "a": 0.0}

    def coupling(self, h: Names, k: Number, c: Names) -> tuple[Coupling, Number]:
        """Growing long steps."""
        short = 1 / (h.noise * h.smoothness)
        gamma = _next_gamma(c.gamma, h.noise)
        alpha = gamma * short / (gamma * short + c.a**2)
        c.gamma, c.a = gamma, gamma * sqrt(short * h.noise)
        ahead = _next_gamma(c.gamma, h.noise) * short
        return (
            Coupling(alpha, 0.0, gamma=h.lr * gamma * short, delta=h.lr * short),
            ahead / (ahead + c.a**2),
        )


def _next_gamma(gamma: Number, noise: Number) -> Number:
    return (1 / noise + sqrt(1 / noise**2 + 4 * gamma**2)) / 2


@dataclass(frozen=True)
class StrongGrowth(ThreeSequences):
    """SAGD under interpolation (Mishkin, Pilanci & Schmidt, 2024, arXiv:2404.02378), with η = 1/(ρL).

    With `gamma0` = μ it is Nesterov's method with the step 1/(ρL): the noise enters only through the step. It is
    mean-square unstable for coordinate-type noise already at ρ = 2, although such noise satisfies strong growth
    exactly; use :class:`Canonical` for noisy oracles.
    """

    lr: Value = hyper(1.0, NONNEGATIVE, "factor on both steps; 1 is the theory's")
    smoothness: Value = hyper(1.0, POSITIVE, "L, the largest curvature")
    strong_convexity: Value = hyper(1e-2, POSITIVE, "μ, the smallest curvature")
    growth: Value = hyper(1.0, Interval(1), "ρ, with E‖g‖² ≤ ρ‖∇f‖²")
    gamma0: float | None = None
    formula: ClassVar[str] = (
        "η = 1/(ρL);  α > 0: α² = η(1−α)G + ηαμ;  G' = (1−α)G + αμ:  three sequences with a = αG/(G+αμ), b = αμ/G', "
        "γ = α/G', δ = η"
    )

    def counters(self) -> dict[str, float]:
        """G; 0 stands for its initial value."""
        return {**super().counters(), "growth_state": self.gamma0 or 0.0}

    def coupling(self, h: Names, k: Number, c: Names) -> tuple[Coupling, Number]:
        """Coefficients from the recursion of G."""
        mu, eta = h.strong_convexity, 1 / (h.growth * h.smoothness)
        state = c.growth_state if self.gamma0 is not None else mu
        alpha = _positive_root(eta, state, mu)
        after = (1 - alpha) * state + alpha * mu
        c.growth_state = after
        alpha_ahead = _positive_root(eta, after, mu)
        return (
            Coupling(
                alpha * state / (state + alpha * mu),
                alpha * mu / after,
                gamma=h.lr * alpha / after,
                delta=h.lr * eta,
            ),
            alpha_ahead * after / (after + alpha_ahead * mu),
        )


def _positive_root(eta: Number, state: Number, mu: Number) -> Number:
    """α > 0 with α² = η(1−α)G + ηαμ."""
    half = eta * (state - mu) / 2
    return sqrt(half**2 + eta * state) - half


@dataclass(frozen=True)
class Mass(ThreeSequences):
    """MaSS (Liu & Belkin, 2020, arXiv:1810.13395)."""

    lr: Value = hyper(0.1, NONNEGATIVE, "η, the short step")
    alpha: Value = hyper(0.05, Interval(0, 1, "right"), "inverse of the momentum window")
    kappa_t: Value = hyper(12.0, Interval(1), "κ̃, the effective growth of the noise")
    formula: ClassVar[str] = (
        "w' = u − η g;  v' = (1−α)v + αu − η/(α κ̃) g;  u' = (αv' + w')/(1+α);  evaluate at w"
    )

    def coupling(self, h: Names, k: Number, c: Names) -> tuple[Coupling, Number]:
        """Constant coefficients."""
        a = h.alpha / (1 + h.alpha)
        return Coupling(a, h.alpha, gamma=h.lr / (h.alpha * h.kappa_t), delta=h.lr), a


@dataclass(frozen=True)
class TripleMomentum(ThreeSequences):
    """The triple momentum method (Van Scoy, Freeman & Lynch, 2018): the fastest rate known for smooth strongly
    convex functions, 1 − √(μ/L) a step in distance."""

    lr: Value = hyper(1.0, NONNEGATIVE, "factor on both steps; 1 is the theory's")
    smoothness: Value = hyper(1.0, POSITIVE, "L, the largest curvature")
    strong_convexity: Value = hyper(1e-2, POSITIVE, "μ, the smallest curvature")
    formula: ClassVar[str] = (
        "r = 1−√(μ/L), α = (1+r)/L, β = r²/(2−r), γ = r²/((1+r)(2−r)), δ = r²/(1−r²):  ξ' = (1+β)ξ − βξ_prev − α d;  "
        "y = (1+γ)ξ − γξ_prev;  evaluate at (1+δ)ξ − δξ_prev"
    )

    def coupling(self, h: Names, k: Number, c: Names) -> tuple[Coupling, Number]:
        """Constant coefficients, with b = 0."""
        r, beta, gamma = self._constants(h)
        step = h.lr * (1 + r) / h.smoothness
        short = step * gamma / beta
        long = step * (1 + gamma - gamma / beta)
        return Coupling(1 - beta, 0.0, gamma=short + long / (1 - beta), delta=short), 1 - beta

    def output(self, h: Names, ahead: Number) -> Number:
        """(δ−γ)α m in units of D, where D = −(A/(1−β)) m."""
        r, beta, gamma = self._constants(h)
        return -(r**2 / (1 - r**2) - gamma) * (1 - beta) / (1 + gamma - gamma / beta)

    @staticmethod
    def _constants(h: Names) -> tuple[Number, Number, Number]:
        r = 1 - sqrt(h.strong_convexity / h.smoothness)
        return r, r**2 / (2 - r), r**2 / ((1 + r) * (2 - r))


@dataclass(frozen=True)
class LinearCoupling(ThreeSequences):
    """Linear coupling of gradient and mirror steps (Allen-Zhu & Orecchia, 2017), for smooth convex functions."""

    lr: Value = hyper(1.0, NONNEGATIVE, "factor on both steps; 1 is the theory's")
    smoothness: Value = hyper(1.0, POSITIVE, "L, the largest curvature")
    formula: ClassVar[str] = (
        "α_{t+1} = (t+2)/(2L), τ_t = 1/(α_{t+1}L):  three sequences with a = τ_t, b = 0, γ = α_{t+1}, δ = 1/L"
    )

    def coupling(self, h: Names, k: Number, c: Names) -> tuple[Coupling, Number]:
        """Growing long steps; t = k − 1."""
        long = (k + 1) / (2 * h.smoothness)
        return Coupling(2 / (k + 1), 0.0, gamma=h.lr * long, delta=h.lr / h.smoothness), 2 / (k + 2)
