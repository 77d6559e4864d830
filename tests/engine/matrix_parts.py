"""Parts of matrix grain as a user would write them, and the same arithmetic by hand, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.words import POSITIVE, UNIT, Buffer, Geometry, Value, hyper

Grain = Literal["element", "tensor", "matrix"]


@dataclass(frozen=True)
class Whiten(Geometry):
    """L ← β L + g gᵀ;  v ← β v + |d|;  u = (ε + L/‖L‖)^-1 (d + y/10) / (1 + v): a buffer of each kind."""

    beta: Value = hyper(0.8, UNIT, "decay of the averages")
    ridge: Value = hyper(0.5, POSITIVE, "added to the diagonal")
    grain: ClassVar[Grain] = "matrix"
    formula: ClassVar[str] = "u = (ε + L/‖L‖)^-1 (d + y/10) / (1 + v)"

    def buffers(self) -> dict[str, Buffer]:
        return {"left": Buffer(shape=lambda size: (size[0], size[0])), "mean": Buffer()}

    def numbers(self, h: Any, k: Any, c: Any) -> dict[str, Any]:
        return {"beta": h.beta, "ridge": h.ridge}

    def direction(self, d: Any, s: Any, n: Any) -> Any:
        s.left = n.beta * s.left + s.grad @ s.grad.mT
        s.mean = n.beta * s.mean + d.abs()
        eye = torch.eye(d.shape[-2], dtype=d.dtype)
        norm = torch.linalg.matrix_norm(s.left, keepdim=True)
        return torch.linalg.solve(n.ridge * eye + s.left / norm, d + s.param * 0.1) / (1 + s.mean)


@dataclass(frozen=True)
class Refreshed(Geometry):
    """Every other step Q is set to the directions' Gram matrix; u = d + Q d. The first step only sets it."""

    grain: ClassVar[Grain] = "matrix"
    traceable: ClassVar[bool] = False
    formula: ClassVar[str] = "u = d + Q d"

    @property
    def preparing(self) -> int:
        return 1

    def buffers(self) -> dict[str, Buffer]:
        return {"gram": Buffer(shape=lambda size: (size[0], size[0]))}

    def numbers(self, h: Any, k: Any, c: Any) -> dict[str, Any]:
        return {"refresh": k % 2}

    def direction(self, d: Any, s: Any, n: Any) -> Any:
        if n.refresh:
            s.gram = d @ d.mT / (1 + d.square().sum(dim=(-2, -1), keepdim=True))
        return d + s.gram @ d


def by_hand(
    params: list[Tensor],
    matrices: Callable[[int, Tensor], Iterator[Tensor]],
    gradients: Callable[[int, int], Tensor | None],
    steps: int,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.01,
    clip: float | None = None,
) -> list[Tensor]:
    """EMA without its bias, `Whiten`, decoupled decay, in float64; `matrices` gives views of those in a tensor."""
    found = [p.detach().double().clone() for p in params]
    average = [torch.zeros_like(p) for p in found]
    mean = [torch.zeros_like(p) for p in found]
    taken = [0] * len(found)
    lefts: list[list[Tensor] | None] = [None] * len(found)
    for k in range(steps):
        grads = [gradients(k, i) for i in range(len(found))]
        norm = sum(float(g.double().square().sum()) for g in grads if g is not None) ** 0.5
        scale = 1.0 if clip is None or norm <= clip else clip / norm
        for i, (p, given) in enumerate(zip(found, grads, strict=True)):
            if given is None:
                continue
            g = scale * given.double()
            taken[i] += 1
            average[i] += (1 - momentum) * (g - average[i])
            unbiased = average[i] / (1 - momentum ** taken[i])
            mean[i] = 0.8 * mean[i] + unbiased.abs()
            each = [list(matrices(i, t)) for t in (p, g, unbiased, mean[i])]
            lefts[i] = lefts[i] or [torch.zeros(x.shape[0], x.shape[0]).double() for x in each[0]]
            moved = []
            for j, (x, y, d, v) in enumerate(zip(*each, strict=True)):
                left = lefts[i][j]
                left.mul_(0.8).add_(y @ y.T)
                inner = 0.5 * torch.eye(x.shape[0]).double() + left / left.norm()
                moved.append(torch.linalg.inv(inner) @ (d + 0.1 * x) / (1 + v))
            for x, u in zip(each[0], moved, strict=True):
                x -= lr * (u + weight_decay * x)
    return found
