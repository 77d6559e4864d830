"""Step: transforms that set lengths — decay, clipping, scaling.

A step transform that stands before every momentum and geometry changes the gradient that they all see; one that
stands after them changes the step. So weight decay placed first is the L2 penalty, and placed last it is decoupled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hasten.numbers import Names, Number, maximum, minimum, sqrt, where
from hasten.words import NONNEGATIVE, POSITIVE, Entry, Step, Value, hyper


@dataclass(frozen=True)
class WeightDecay(Step):
    """Add λ times the parameter: an L2 penalty when placed first, decoupled decay when placed last.

    Example:
        >>> import torch, hasten
        >>> from hasten.transforms import EMA, SecondMoment, WeightDecay
        >>> w = [torch.ones(3, requires_grad=True)]
        >>> l2 = hasten.Optimizer(w, WeightDecay(0.1), EMA(), SecondMoment(), lr=1e-3)
    """

    weight_decay: Value = hyper(0.0, NONNEGATIVE, "weight of the parameter in the direction")
    formula: ClassVar[str] = "u = d + λ y"

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The weight."""
        return {"weight_decay": h.weight_decay}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The direction with decay."""
        return d + n.weight_decay * s.param


@dataclass(frozen=True)
class Scale(Step):
    """Multiply the direction by a factor, such as a learning rate relative to the group's."""

    factor: Value = hyper(1.0, NONNEGATIVE, "factor on the direction")
    formula: ClassVar[str] = "u = c d"

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The factor."""
        return {"factor": h.factor}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The scaled direction."""
        return n.factor * d


@dataclass(frozen=True)
class _ClipNorm(Step):
    max_norm: Value = hyper(1.0, POSITIVE, "largest Euclidean norm that passes unchanged")

    def measure(self, d: Entry, s: Any, n: Any) -> dict[str, Entry]:
        """Squares of the direction."""
        return {"square": d * d}

    def measured(self, h: Names, k: Number, c: Names, sums: Names) -> dict[str, Number]:
        """The factor that brings the norm down to the largest allowed."""
        return {"factor": h.max_norm / maximum(sqrt(sums.square), h.max_norm)}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The clipped direction."""
        return n.factor * d


@dataclass(frozen=True)
class ClipNorm(_ClipNorm):
    """Scale the direction so that its norm over all parameters is at most `max_norm`.

    Placed first it clips the gradient, as ``torch.nn.utils.clip_grad_norm_`` does, but leaves ``p.grad`` alone.
    """

    measures: ClassVar[Literal["", "tensor", "all"]] = "all"
    formula: ClassVar[str] = "u = d · min(1, c/‖d‖),  ‖·‖ over all parameters"


@dataclass(frozen=True)
class ClipTensorNorm(_ClipNorm):
    """Scale the direction of every tensor so that its norm is at most `max_norm` (MARS)."""

    measures: ClassVar[Literal["", "tensor", "all"]] = "tensor"
    formula: ClassVar[str] = "u = d · min(1, c/‖d‖),  ‖·‖ over the tensor"


@dataclass(frozen=True)
class RelativeStep(Step):
    """Adafactor's step: at most 1/√k, and in proportion to the size of the parameter."""

    lr: Value = hyper(1e-2, NONNEGATIVE, "learning rate, the upper limit of the relative step")
    eps2: Value = hyper(1e-3, NONNEGATIVE, "smallest root mean square the parameter is taken to have")
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "tensor"
    formula: ClassVar[str] = "u = max(ε₂, RMS(y)) · min(1, 1/(lr √k)) · d"

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The relative step in units of the learning rate, and the floor."""
        return {"relative": minimum(1.0, 1 / (where(h.lr > 0, h.lr, 1.0) * sqrt(k))), "eps2": h.eps2}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The direction in proportion to the parameter."""
        size = root_mean_square(s.param)
        return torch.clamp(size, min=n.eps2) * n.relative * d


def root_mean_square(x: Entry) -> Entry:
    """Root mean square of the entries of every tensor of a stack [k, …], as [k, 1, …].

    Example:
        >>> root_mean_square(torch.tensor([[3.0, 4.0], [1.0, 1.0]])).flatten()
        tensor([3.5355, 1.0000])
    """
    flat = x.reshape(len(x), -1)
    size = torch.linalg.vector_norm(flat, dim=1) / max(flat.shape[1], 1) ** 0.5
    return size.reshape(-1, *(1,) * (x.dim() - 1))
