"""Geometry: transforms that choose the norm under which one descends steepest.

`s.grad` is the gradient as it entered the first momentum or geometry; second moments are taken of it, whatever
momentum came before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hasten.numbers import Names, Number, maximum, sqrt, where
from hasten.transforms.momentum import average
from hasten.transforms.step import root_mean_square
from hasten.words import ANY, FRACTION, NONNEGATIVE, POSITIVE, UNIT, Buffer, Entry, Geometry, Value, hyper


@dataclass(frozen=True)
class SecondMoment(Geometry):
    """Adam's diagonal: divide by the root of an average of squared gradients.

    `debias` divides the average by ``1 − β₂ᵏ``. `eps_on` says whether eps is added to the root of the corrected
    average (torch, most codes) or of the `raw` one (AdaBound, diffGrad, the Adam paper). `maximum` keeps the running
    maximum of the average (AMSGrad).
    """

    beta2: Value = hyper(0.999, UNIT, "decay of the average of squared gradients")
    eps: Value = hyper(1e-8, NONNEGATIVE, "added to the root, so that small entries do not explode")
    debias: bool = True
    eps_on: Literal["corrected", "raw"] = "corrected"
    maximum: bool = False
    formula: ClassVar[str] = "v ← β₂ v + (1−β₂) g²;  u = d / (√(v/(1−β₂ᵏ)) + ε)"

    def buffers(self) -> dict[str, Buffer]:
        """The average of squares, and its running maximum."""
        return {"exp_avg_sq": Buffer(), **({"max_exp_avg_sq": Buffer()} if self.maximum else {})}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weight of the new square, the root of the bias correction, and eps in the same units."""
        correction = sqrt(1 - h.beta2**k)
        root = correction if self.debias else 1.0
        return {
            "beta": h.beta2,
            "weight": 1 - h.beta2,
            "root": root,
            "eps": h.eps * (correction if self.eps_on == "corrected" else 1.0) / root,
        }

    def second_moment(self, s: Any, n: Any) -> Entry:
        """The advanced average (or its running maximum)."""
        # Not `average`: torch rounds β₂ to the compute dtype, which over many steps outweighs all other rounding.
        s.exp_avg_sq = n.beta * s.exp_avg_sq + n.weight * (s.grad * s.grad)
        if not self.maximum:
            return s.exp_avg_sq
        s.max_exp_avg_sq = torch.maximum(s.max_exp_avg_sq, s.exp_avg_sq)
        return s.max_exp_avg_sq

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The direction in Adam's metric."""
        return d / (torch.sqrt(self.second_moment(s, n)) / n.root + n.eps)


@dataclass(frozen=True)
class QuasiHyperbolicSecondMoment(SecondMoment):
    """QHAdam's diagonal: a mixture of the average of squares and the current square."""

    nu2: Value = hyper(1.0, FRACTION, "weight of the average of squares against the current square")
    formula: ClassVar[str] = "v ← β₂ v + (1−β₂) g²;  u = d / (√(ν₂ v/(1−β₂ᵏ) + (1−ν₂) g²) + ε)"

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights of the average and of the current square."""
        return {
            "beta": h.beta2,
            "weight": 1 - h.beta2,
            "slow": h.nu2 / (1 - h.beta2**k),
            "now": 1 - h.nu2,
            "eps": h.eps,
        }

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The direction in the mixed metric."""
        square = s.grad * s.grad
        return d / (torch.sqrt(n.slow * self.second_moment(s, n) + n.now * square) + n.eps)


@dataclass(frozen=True)
class InfinityNorm(Geometry):
    """AdaMax's diagonal: a decayed maximum of absolute gradients."""

    beta2: Value = hyper(0.999, UNIT, "decay of the maximum")
    eps: Value = hyper(1e-8, NONNEGATIVE, "added to the absolute gradient")
    formula: ClassVar[str] = "v ← max(β₂ v, |g| + ε);  u = d / v"

    def buffers(self) -> dict[str, Buffer]:
        """The decayed maximum."""
        return {"exp_inf": Buffer()}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Decay and eps."""
        return {"beta": h.beta2, "eps": h.eps}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The direction in the metric of the maximum."""
        s.exp_inf = torch.maximum(n.beta * s.exp_inf, torch.abs(s.grad) + n.eps)
        return d / s.exp_inf


@dataclass(frozen=True)
class RectifiedSecondMoment(SecondMoment):
    """RAdam's diagonal: Adam's, once enough squares have been seen to trust it, scaled by the rectifier.

    While ``ρ_k ≤ 5`` the direction passes unchanged (torch's rule).
    """

    eps_on: Literal["corrected", "raw"] = "raw"
    formula: ClassVar[str] = (
        "v ← β₂ v + (1−β₂) g²;  ρ_∞ = 2/(1−β₂) − 1,  ρ_k = ρ_∞ − 2kβ₂ᵏ/(1−β₂ᵏ);  "
        "u = d · r_k √(1−β₂ᵏ)/(√v + ε) if ρ_k > 5, else d;  r_k² = (ρ_k−4)(ρ_k−2)ρ_∞/((ρ_∞−4)(ρ_∞−2)ρ_k)"
    )

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The rectifier, or a plain factor while it is not defined."""
        numbers = super().numbers(h, k, c)
        limit = 2 / (1 - h.beta2) - 1
        length = limit - 2 * k * h.beta2**k / (1 - h.beta2**k)
        trusted = length > 5
        square = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
        rectifier = sqrt(maximum(where(trusted, square, 0.0), 0.0))
        return {**numbers, "rectified": where(trusted, rectifier, 0.0), "plain": where(trusted, 0.0, 1.0)}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The rectified direction."""
        return d * (n.rectified / (torch.sqrt(self.second_moment(s, n)) / n.root + n.eps) + n.plain)


@dataclass(frozen=True)
class BoundedSecondMoment(SecondMoment):
    """AdaBound's diagonal: Adam's rate of every coordinate, clipped between bounds that close in on SGD's.

    Expects the uncorrected average as direction: Adam's bias corrections are part of the clipped rate.
    """

    beta1: Value = hyper(0.9, UNIT, "decay of the average of directions, for its bias correction")
    final_lr: Value = hyper(0.1, POSITIVE, "the learning rate of SGD that the bounds close in on")
    base_lr: Value = hyper(
        1e-3, POSITIVE, "the learning rate at construction: a schedule on lr scales the bounds"
    )
    gamma: Value = hyper(1e-3, POSITIVE, "speed at which the bounds close")
    eps_on: Literal["corrected", "raw"] = "raw"
    formula: ClassVar[str] = (
        "v ← β₂ v + (1−β₂) g²;  u = clip(√(1−β₂ᵏ)/((1−β₁ᵏ)(√v + ε)), f(1−1/(γk+1)), f(1+1/(γk))) · d,  "
        "f = final_lr/base_lr"
    )

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Adam's rate and the bounds, in units of the learning rate."""
        final = h.final_lr / h.base_lr
        return {
            "beta": h.beta2,
            "weight": 1 - h.beta2,
            "eps": h.eps,
            "rate": sqrt(1 - h.beta2**k) / (1 - h.beta1**k),
            "low": final * (1 - 1 / (h.gamma * k + 1)),
            "high": final * (1 + 1 / (h.gamma * k)),
        }

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The direction at the clipped rates."""
        rate = n.rate / (torch.sqrt(self.second_moment(s, n)) + n.eps)
        return torch.clamp(rate, n.low, n.high) * d


@dataclass(frozen=True)
class Sign(Geometry):
    """Steepest descent in the largest-entry norm: keep only the sign."""

    formula: ClassVar[str] = "u = sign(d)"

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The sign."""
        return torch.sign(d)


@dataclass(frozen=True)
class Friction(Geometry):
    """diffGrad's friction: damp an entry whose gradient changes little.

    The factor is σ(|Δg|) ∈ [½, 1); for gradients well below 1 it is ½ throughout, so that diffGrad is close to
    Adam at half the learning rate.
    """

    formula: ClassVar[str] = "u = σ(|g_{k−1} − g_k|) · d"

    def buffers(self) -> dict[str, Buffer]:
        """The previous gradient."""
        return {"previous_grad": Buffer()}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The damped direction."""
        change = torch.abs(s.previous_grad - s.grad)
        s.previous_grad = s.grad
        return torch.sigmoid(change) * d


def _rows(shape: torch.Size) -> tuple[int, ...]:
    return (*shape[:-1], 1) if len(shape) > 1 else (0,)


def _columns(shape: torch.Size) -> tuple[int, ...]:
    return (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else (0,)


def _vector(shape: torch.Size) -> tuple[int, ...]:
    return (0,) if len(shape) > 1 else tuple(shape)


@dataclass(frozen=True)
class FactoredSecondMoment(Geometry):
    """Adafactor's diagonal: row and column means of squared gradients instead of the full average.

    The update is then clipped to root mean square `clip`. Tensors with fewer than two dimensions keep the full
    average. `eps1` None means the machine precision of the parameter (torch's default).
    """

    beta2_decay: Value = hyper(-0.8, ANY, "the weight of new squares is kᵇ, b negative")
    clip: Value = hyper(1.0, POSITIVE, "largest root mean square of the update")
    eps1: float | None = None
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "tensor"
    formula: ClassVar[str] = (
        "R ← lerp(R, mean_cols g², kᵇ);  C ← lerp(C, mean_rows g², kᵇ);  V = R C / mean(R);  "
        "u = g/√max(V, ε₁²);  u ← u / max(1, RMS(u)/clip)"
    )

    def buffers(self) -> dict[str, Buffer]:
        """Row means, column means, or, for vectors, the full average."""
        return {
            "row_var": Buffer(shape=_rows),
            "col_var": Buffer(shape=_columns),
            "variance": Buffer(shape=_vector),
        }

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weight of the new squares, and the clip."""
        return {"weight": k**h.beta2_decay, "clip": h.clip}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The clipped direction in the factored metric."""
        eps1 = torch.finfo(d.dtype).eps if self.eps1 is None else self.eps1
        square = s.grad * s.grad
        if d.dim() > 2:
            s.row_var = average(s.row_var, square.mean(dim=-1, keepdim=True), n.weight)
            s.col_var = average(s.col_var, square.mean(dim=-2, keepdim=True), n.weight)
            total = s.row_var.mean(dim=-2, keepdim=True).clamp(min=eps1)
            variance = s.row_var @ s.col_var / total
        else:
            s.variance = average(s.variance, square, n.weight)
            variance = s.variance
        u = d * torch.rsqrt(variance.clamp(min=eps1 * eps1))
        return u / torch.clamp(root_mean_square(u) / n.clip, min=1.0)
