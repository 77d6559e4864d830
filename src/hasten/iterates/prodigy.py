"""Prodigy (Mishchenko & Defazio, 2023, arXiv:2306.06101): the learning rate from an estimate of the distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hasten.numbers import Names, Number, maximum, minimum, sqrt, where
from hasten.transforms.momentum import average
from hasten.words import NONNEGATIVE, POSITIVE, UNIT, Buffer, Entry, Interval, Iterate, Value, hyper


@dataclass(frozen=True)
class DistanceEstimate(Iterate):
    """Adam whose step length is an estimate d of the distance to the solution, which only grows.

    The moments are weighted by d as it was at their time, so momentum, geometry and step cannot be taken apart: it is
    one part. The estimate is one number for all parameters; ``opt.param_groups[0]["d"]`` shows it. Different learning
    rates in different groups are not supported by the theory.
    """

    lr: Value = hyper(1.0, NONNEGATIVE, "factor on the estimated step; a schedule belongs here")
    beta1: Value = hyper(0.9, UNIT, "decay of the average of gradients")
    beta2: Value = hyper(0.999, UNIT, "decay of the average of squared gradients")
    eps: Value = hyper(1e-8, NONNEGATIVE, "added to the root, in units of d")
    weight_decay: Value = hyper(0.0, NONNEGATIVE, "decoupled weight decay")
    d0: Value = hyper(1e-6, POSITIVE, "initial estimate of the distance")
    d_coef: Value = hyper(1.0, POSITIVE, "factor on the estimate; the preferred knob to tune")
    growth_rate: Value = hyper(
        math.inf, Interval(1, math.inf, "both"), "largest growth of the estimate in a step"
    )
    use_bias_correction: bool = False
    safeguard_warmup: bool = False
    measures: ClassVar[Literal["", "tensor", "all"]] = "all"
    formula: ClassVar[str] = (
        "m ← β₁ m + (1−β₁) d g;  v ← β₂ v + (1−β₂) d² g²;  s ← √β₂ s + (d/d₀) d lr g;  "
        "r ← √β₂ r + (d/d₀) d lr ⟨g, y₀−y⟩;  d' = max(d, r/‖s‖₁);  y ← y − lr d (m/(√v + d' ε) + λ y)"
    )

    def buffers(self) -> dict[str, Buffer]:
        """Both moments, the weighted sum of gradients, and the starting point."""
        return {
            "exp_avg": Buffer(),
            "exp_avg_sq": Buffer(),
            "s": Buffer(),
            "p0": Buffer("param", exact=True),
        }

    def counters(self) -> dict[str, float]:
        """The estimate d, its numerator r and its largest value; 0 stands for d0."""
        return {"d": 0.0, "d_max": 0.0, "d_numerator": 0.0}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights by the estimate as it stands before this step."""
        d = where(c.d > 0, c.d, h.d0)
        step = d * h.lr * (sqrt(1 - h.beta2**k) / (1 - h.beta1**k) if self.use_bias_correction else 1.0)
        return {
            "weight1": 1 - h.beta1,
            "weight2": 1 - h.beta2,
            "d": d,
            "decay_s": sqrt(h.beta2),
            "new_s": d / h.d0 * (d if self.safeguard_warmup else step),
            "step": step,
            "weight_decay": h.weight_decay,
        }

    def measure(self, d: Entry, s: Any, n: Any) -> dict[str, Entry]:
        """⟨g, y₀ − y⟩ and ‖s‖₁."""
        s.s = n.decay_s * s.s + n.new_s * d
        return {"progress": d * (s.p0 - s.param), "norm": torch.abs(s.s)}

    def measured(self, h: Names, k: Number, c: Names, sums: Names) -> dict[str, Number]:
        """The new estimate."""
        n = Names(**self.numbers(h, k, c))
        d, d_max = n.d, where(c.d_max > 0, c.d_max, h.d0)
        numerator = n.decay_s * c.d_numerator + n.d / h.d0 * n.step * sums.progress
        found = where(sums.norm > 0, sums.norm, 1.0)
        estimate = where((sums.norm > 0) * (h.lr > 0), h.d_coef * numerator / found, d)
        d = where(d == h.d0, maximum(d, estimate), d)
        d_max = maximum(d_max, estimate)
        d = minimum(d_max, d * h.growth_rate)
        c.d, c.d_max, c.d_numerator = d, d_max, numerator
        return {"eps": d * h.eps}

    def move(self, d: Entry, s: Any, n: Any) -> Entry:
        """The moved parameter."""
        weighted = n.d * d
        s.exp_avg = average(s.exp_avg, weighted, n.weight1)
        s.exp_avg_sq = average(s.exp_avg_sq, weighted * weighted, n.weight2)
        u = s.exp_avg / (torch.sqrt(s.exp_avg_sq) + n.eps)
        return s.param - n.step * (u + n.weight_decay * s.param)
