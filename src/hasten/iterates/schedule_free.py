"""Schedule-Free (Defazio et al., 2024, arXiv:2405.15682): averaging instead of a learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.numbers import Names, Number, maximum, minimum, where
from hasten.words import ANY, NONNEGATIVE, Buffer, Entry, Interval, Iterate, Value, hyper


@dataclass(frozen=True)
class ScheduleFree(Iterate):
    """Gradients at y, steps of z, and the average x of z, which is the point to evaluate.

    The parameter holds y in training. The first weight c is 1, so that the starting point drops out of the average
    (the authors' code; the paper keeps it). The weights use the running maximum of lr: a later decay does not
    lower them. `refined` sets c' = min(1, (1−β) C c), which decouples the averaging width from β.
    """

    lr: Value = hyper(1.0, NONNEGATIVE, "learning rate")
    momentum: Value = hyper(
        0.9, Interval(0, 1, "neither"), "β, where between z and its average gradients are taken"
    )
    warmup_steps: Value = hyper(0, NONNEGATIVE, "steps over which lr grows linearly")
    r: Value = hyper(0.0, ANY, "power of the step in the averaging weights")
    weight_lr_power: Value = hyper(
        2.0, NONNEGATIVE, "power of the largest lr so far in the averaging weights"
    )
    refined: float | None = None
    decay_at_z: float = 0.0
    two_points: ClassVar[bool] = True
    formula: ClassVar[str] = (
        "c = w/Σw,  w = kʳ lr_maxᵖ;  x ← (1−c) x + c z⁺,  z⁺ = z − lr_k d;  y = (1−β) z + β x;  evaluate at x"
    )

    def buffers(self) -> dict[str, Buffer]:
        """The point that takes the steps."""
        return {"z": Buffer("param", exact=True)}

    def counters(self) -> dict[str, float]:
        """The sum of the averaging weights, and the largest learning rate so far."""
        return {"weight_sum": 0.0, "lr_max": 0.0}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The learning rate and the averaging weight of this step."""
        warmup = where(h.warmup_steps > 0, k / maximum(h.warmup_steps, 1.0), 1.0)
        lr = h.lr * minimum(1.0, warmup)
        c.lr_max = maximum(lr, c.lr_max)
        weight = k**h.r * c.lr_max**h.weight_lr_power
        c.weight_sum = c.weight_sum + weight
        average = where(c.weight_sum > 0, weight / where(c.weight_sum > 0, c.weight_sum, 1.0), 0.0)
        if self.refined is not None:
            average = minimum(1.0, (1 - h.momentum) * self.refined * average)
        return {
            "lr": lr,
            "weight": average,
            "current": lr * (1 - h.momentum * (1 - average)),
            "decay_z": lr * self.decay_at_z,
            "decay_y": lr * self.decay_at_z * (1 - h.momentum * (1 - average)),
        }

    def move(self, d: Entry, s: Any, n: Any) -> Entry:
        """The new query point y; z takes the step."""
        z = s.z
        y = s.param + n.weight * (z - s.param) - n.current * d
        if self.decay_at_z:
            s.z = z - n.lr * d - n.decay_z * z
            return y - n.decay_y * z
        s.z = z - n.lr * d
        return y

    def switch(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """How far x lies from y, and y from x, along z."""
        return {"to_x": 1 - 1 / h.momentum, "to_y": 1 - h.momentum}

    def evaluation(self, s: Any, n: Any) -> Entry:
        """x, from y."""
        return s.param + n.to_x * (s.z - s.param)

    def training(self, s: Any, n: Any) -> Entry:
        """y, from x."""
        return s.param + n.to_y * (s.z - s.param)
