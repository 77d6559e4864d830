"""A small problem on which workers drift apart: convex, not quadratic, another one for each worker and step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hasten

SHAPES = ((6, 5), (5,), (3, 4))


def start() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]


def target(rank: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Another one for each worker and step, so that workers drift apart."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def slope(p: Tensor, rank: int, step: int) -> Tensor:
    """Gradient of the worker's convex, not quadratic loss."""
    return torch.sinh((p - target(rank, step, tuple(p.shape))) / 4)


def train(opt: Any, params: list[nn.Parameter], rank: int, steps: range) -> None:
    for step in steps:
        for p in params:
            p.grad = slope(p.detach(), rank, step)
        opt.step()


INNERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.3),
    "AdamW": lambda params: hasten.AdamW(params, lr=0.05),
    "torch.AdamW": lambda params: torch.optim.AdamW(params, lr=0.05),
    "ScheduleFree": lambda params: hasten.ScheduleFreeSGD(params, lr=0.3),
    "MARS": lambda params: hasten.MARS(params, lr=0.05),
}


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
