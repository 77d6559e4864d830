"""Momentum: transforms with memory along time.

Throughout, `d` is the incoming direction (the gradient, unless another transform came first) and `k` the step.
`average(old, new, weight)` is one step of an exponential moving average, ``old + weight·(new − old)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hasten.numbers import Names, Number, where
from hasten.words import FRACTION, NONNEGATIVE, UNIT, Buffer, Entry, Momentum, Value, hyper


def average(old: Entry, new: Entry, weight: Entry) -> Entry:
    """One step of an exponential moving average with decay ``1 − weight``."""
    return old + weight * (new - old)


@dataclass(frozen=True)
class EMA(Momentum):
    """Exponential moving average of the direction (Adam's first moment).

    With `debias` the average is divided by ``1 − β₁ᵏ``, the total weight it has collected so far.

    Example:
        >>> EMA(0.9)
        EMA(beta1=0.9, debias=True)
    """

    beta1: Value = hyper(0.9, UNIT, "decay of the average of directions")
    debias: bool = True
    formula: ClassVar[str] = "m ← β₁ m + (1−β₁) d;  u = m / (1−β₁ᵏ)"

    def buffers(self) -> dict[str, Buffer]:
        """The average."""
        return {"exp_avg": Buffer()}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weight of the new direction, and the bias correction."""
        return {"weight": 1 - h.beta1, "correction": 1 - h.beta1**k if self.debias else 1.0}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The average."""
        s.exp_avg = average(s.exp_avg, d, n.weight)
        return s.exp_avg / n.correction if self.debias else s.exp_avg

    def linear(self, h: Names, k: int) -> tuple[float, float, float]:
        """``m/(1−β) = Σ βʲ d``, so A = (1−β)/(1−βᵏ) and B = 0."""
        return h.beta1, (1 - h.beta1) / (1 - h.beta1**k if self.debias else 1.0), 0.0


@dataclass(frozen=True)
class HeavyBall(Momentum):
    """Polyak's heavy ball, or Nesterov's momentum, with an undamped buffer (as in torch's SGD).

    With dampening the first buffer is the gradient itself, undamped, as in torch: it is then not an average.
    """

    momentum: Value = hyper(0.9, UNIT, "weight of the previous buffer")
    dampening: Value = hyper(0.0, FRACTION, "reduction of the weight of the new gradient")
    nesterov: bool = False
    formula: ClassVar[str] = "m ← μ m + (1−τ) d  (first m = d);  u = m, or d + μ m (Nesterov)"

    def buffers(self) -> dict[str, Buffer]:
        """The sum."""
        return {"momentum_buffer": Buffer()}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights of the buffer and of the new direction."""
        return {"momentum": h.momentum, "weight": where(k == 1, 1.0, 1 - h.dampening)}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The buffer, or Nesterov's look-ahead along it."""
        s.momentum_buffer = n.momentum * s.momentum_buffer + n.weight * d
        return d + n.momentum * s.momentum_buffer if self.nesterov else s.momentum_buffer

    def linear(self, h: Names, k: int) -> tuple[float, float, float]:
        """A = 1, B = 0 for the heavy ball; A = μ, B = 1 for Nesterov."""
        weight = 1 - h.dampening
        return (h.momentum, h.momentum * weight, 1.0) if self.nesterov else (h.momentum, weight, 0.0)


@dataclass(frozen=True)
class NesterovEMA(Momentum):
    """Muon's momentum: an average, and Nesterov's look-ahead along it.

    It is (1−μ) times :class:`HeavyBall`'s direction: where the next part does not ask for lengths, they are the same.

    Example:
        >>> NesterovEMA(0.95, nesterov=False)
        NesterovEMA(momentum=0.95, nesterov=False)
    """

    momentum: Value = hyper(0.95, UNIT, "decay of the average of directions")
    nesterov: bool = True
    formula: ClassVar[str] = "m ← μ m + (1−μ) d;  u = m, or (1−μ) d + μ m (Nesterov)"

    def buffers(self) -> dict[str, Buffer]:
        """The average."""
        return {"momentum_buffer": Buffer()}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weight of the new direction."""
        return {"weight": 1 - h.momentum}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The average, or the look-ahead."""
        s.momentum_buffer = average(s.momentum_buffer, d, n.weight)
        return average(s.momentum_buffer, d, n.weight) if self.nesterov else s.momentum_buffer

    def linear(self, h: Names, k: int) -> tuple[float, float, float]:
        """A = 1−μ, B = 0, or A = μ (1−μ), B = 1−μ (Nesterov)."""
        a = 1 - h.momentum
        return (h.momentum, h.momentum * a, a) if self.nesterov else (h.momentum, a, 0.0)


@dataclass(frozen=True)
class QuasiHyperbolic(Momentum):
    """Quasi-hyperbolic momentum: a mixture of the average and the current direction (Ma & Yarats, 2019).

    Every constant-coefficient member of the accelerated-SGD family is a point (lr, ν, β) of this form.
    """

    momentum: Value = hyper(0.999, UNIT, "decay of the average of directions")
    nu: Value = hyper(0.7, FRACTION, "weight of the average against the current direction")
    debias: bool = False
    formula: ClassVar[str] = "e ← β e + (1−β) d;  u = ν ê + (1−ν) d"

    def buffers(self) -> dict[str, Buffer]:
        """The average."""
        return {"exp_avg": Buffer()}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights of the average and of the current direction."""
        correction = 1 - h.momentum**k if self.debias else 1.0
        return {"weight": 1 - h.momentum, "slow": h.nu / correction, "now": 1 - h.nu}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The mixture."""
        s.exp_avg = average(s.exp_avg, d, n.weight)
        return n.slow * s.exp_avg + n.now * d

    def linear(self, h: Names, k: int) -> tuple[float, float, float]:
        """A = ν(1−β), B = 1−ν."""
        correction = 1 - h.momentum**k if self.debias else 1.0
        return h.momentum, h.nu * (1 - h.momentum) / correction, 1 - h.nu


@dataclass(frozen=True)
class Interpolation(Momentum):
    """Lion's momentum: the step looks between the old average and the gradient, then the average moves.

    Equal to :class:`QuasiHyperbolic` with β = β₂ and ν = β₁/β₂. `debias` divides by ``1 − β₁ β₂ᵏ⁻¹``, the total weight
    of the directions so far (Shampoo's filtered gradient).
    """

    beta1: Value = hyper(0.9, UNIT, "weight of the average in the step")
    beta2: Value = hyper(0.99, UNIT, "decay of the average of directions")
    debias: bool = False
    formula: ClassVar[str] = "u = β₁ m + (1−β₁) d;  m ← β₂ m + (1−β₂) d"

    def buffers(self) -> dict[str, Buffer]:
        """The average."""
        return {"exp_avg": Buffer()}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights of the current direction in the step and in the average, and the bias correction."""
        correction = 1 - h.beta1 * h.beta2 ** (k - 1) if self.debias else 1.0
        return {"now": 1 - h.beta1, "weight": 1 - h.beta2, "correction": correction}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The interpolation, from the average before it moves."""
        u = average(s.exp_avg, d, n.now)
        s.exp_avg = average(s.exp_avg, d, n.weight)
        return u / n.correction if self.debias else u

    def linear(self, h: Names, k: int) -> tuple[float, float, float]:
        """ν = β₁/β₂ (a negative B when β₁ > β₂)."""
        nu = h.beta1 / h.beta2
        correction = 1 - h.beta1 * h.beta2 ** (k - 1) if self.debias else 1.0
        return h.beta2, nu * (1 - h.beta2) / correction, (1 - nu) / correction


@dataclass(frozen=True)
class NesterovMoment(Momentum):
    """NAdam's first moment: the average looks one step ahead.

    `schedule="torch"` uses torch's (and Dozat's) momentum schedule ``μ_k = β₁(1 − ½·0.96^{kψ})`` and its running
    product; `schedule="optax"` a constant β₁. The two are not equivalent.
    """

    beta1: Value = hyper(0.9, UNIT, "decay of the average of directions")
    momentum_decay: Value = hyper(4e-3, NONNEGATIVE, "ψ, how fast the momentum schedule approaches β₁")
    schedule: Literal["torch", "optax"] = "torch"
    formula: ClassVar[str] = (
        "m ← β₁ m + (1−β₁) d;  u = μ_{k+1} m/(1−Π_{j≤k+1} μ_j) + (1−μ_k) d/(1−Π_{j≤k} μ_j),  μ_k = β₁(1−½·0.96^{kψ})"
    )

    def buffers(self) -> dict[str, Buffer]:
        """The average."""
        return {"exp_avg": Buffer()}

    def counters(self) -> dict[str, float]:
        """The product of the momentum schedule so far."""
        return {"mu_product": 1.0}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights of the average and of the current direction."""
        if self.schedule == "optax":
            now, ahead = h.beta1, h.beta1
        else:
            now = h.beta1 * (1 - 0.5 * 0.96 ** (k * h.momentum_decay))
            ahead = h.beta1 * (1 - 0.5 * 0.96 ** ((k + 1) * h.momentum_decay))
        c.mu_product = c.mu_product * now
        return {
            "weight": 1 - h.beta1,
            "slow": ahead / (1 - c.mu_product * ahead),
            "now": (1 - now) / (1 - c.mu_product),
        }

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The average one step ahead."""
        s.exp_avg = average(s.exp_avg, d, n.weight)
        return n.slow * s.exp_avg + n.now * d

    def linear(self, h: Names, k: int) -> tuple[float, float, float]:
        """The weights of step `k`, from the recursion of the momentum schedule."""
        c = Names(**self.counters())
        for step in range(1, k + 1):
            n = self.numbers(h, step, c)
        return h.beta1, n["slow"] * n["weight"], n["now"]


@dataclass(frozen=True)
class Accumulation(Momentum):
    """Simplified-AdEMAMix's momentum: an undamped sum, and a free weight α of the current gradient.

    This is accelerated SGD's decoupling of the momentum coefficient from the weight of the current gradient.
    """

    beta1: Value = hyper(0.99, UNIT, "decay of the sum of directions")
    alpha: Value = hyper(0.0, NONNEGATIVE, "extra weight of the current direction")
    debias: bool = False
    formula: ClassVar[str] = "m ← β₁ m + d;  u = m + α d  (divided by Σ β₁ʲ if debiased)"

    def buffers(self) -> dict[str, Buffer]:
        """The sum."""
        return {"exp_avg": Buffer()}

    def counters(self) -> dict[str, float]:
        """The total weight collected by the sum."""
        return {"weight_sum": 0.0}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Decay, weight of the current direction, and the total weight."""
        c.weight_sum = h.beta1 * c.weight_sum + 1
        return {"beta": h.beta1, "alpha": h.alpha, "total": c.weight_sum if self.debias else 1.0}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The sum and the current direction."""
        s.exp_avg = n.beta * s.exp_avg + d
        u = s.exp_avg + n.alpha * d
        return u / n.total if self.debias else u

    def linear(self, h: Names, k: int) -> tuple[float, float, float]:
        """A = 1, B = α (divided by the total weight if debiased)."""
        total = sum(h.beta1**j for j in range(k)) if self.debias else 1.0
        return h.beta1, 1 / total, h.alpha / total


@dataclass(frozen=True)
class TwoMomenta(Momentum):
    """AdEMAMix's two momenta: a fast, bias-corrected average and a slow one, added with weight α.

    `fast=False` drops the fast buffer; β₁ must then be 0 and the current gradient takes its place.
    """

    beta1: Value = hyper(0.9, UNIT, "decay of the fast average")
    beta3: Value = hyper(0.9999, UNIT, "decay of the slow average")
    alpha: Value = hyper(2.0, NONNEGATIVE, "weight of the slow average")
    fast: bool = True
    formula: ClassVar[str] = "m₁ ← β₁ m₁ + (1−β₁) d;  m₂ ← β₃ m₂ + (1−β₃) d;  u = m₁/(1−β₁ᵏ) + α m₂"

    def buffers(self) -> dict[str, Buffer]:
        """The fast and the slow average."""
        slow = {"exp_avg_slow": Buffer()}
        return {"exp_avg_fast": Buffer(), **slow} if self.fast else slow

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights of both averages."""
        if not self.fast and h.beta1 != 0:
            raise ValueError(
                f"beta1 = {h.beta1} needs the fast average, which this optimizer was built without"
            )
        return {
            "fast_weight": 1 - h.beta1,
            "correction": 1 - h.beta1**k,
            "slow_weight": 1 - h.beta3,
            "alpha": h.alpha,
        }

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The sum of both averages."""
        s.exp_avg_slow = average(s.exp_avg_slow, d, n.slow_weight)
        if not self.fast:
            return d + n.alpha * s.exp_avg_slow
        s.exp_avg_fast = average(s.exp_avg_fast, d, n.fast_weight)
        return s.exp_avg_fast / n.correction + n.alpha * s.exp_avg_slow

    def linear(self, h: Names, k: int) -> tuple[float, float, float]:
        """With β₁ = 0: A = α(1−β₃), B = 1. With β₁ > 0 the system is driven by the fast average f (once its bias
        correction has died out): α e_{β₃}(d) is then α(P f + S e_{β₃}(f))."""
        through = (1 - h.beta3) * h.beta1 / ((1 - h.beta1) * h.beta3)
        slow = (1 - h.beta1 / h.beta3) / (1 - h.beta1)
        return h.beta3, h.alpha * slow * (1 - h.beta3), 1 + h.alpha * through
