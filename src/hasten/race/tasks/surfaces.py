"""Deterministic descents on functions of two variables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from hasten.problems.surfaces import SURFACES, Surface
from hasten.race.task import Task
from hasten.race.tasks.least_squares import Point


def surface_builders() -> dict[str, Callable[[int], Task]]:
    """For each surface, the function that makes its task.

    Example:
        >>> "rosenbrock" in surface_builders()
        True
    """
    return {name: partial(descent, surface) for name, surface in SURFACES.items()}


def descent(surface: Surface, seed: int) -> Task:
    """Start near the surface's customary place (the seed moves it a little) and go down.

    Example:
        >>> task = descent(SURFACES["valley"], 0)
        >>> task.evaluate() > 0
        True
    """
    left, right, bottom, top = surface.bounds
    generator = torch.Generator().manual_seed(seed)
    jitter = torch.randn(2, generator=generator, dtype=torch.float64)
    size = torch.tensor([right - left, top - bottom], dtype=torch.float64)
    start = torch.tensor(surface.start, dtype=torch.float64) + 0.02 * size * jitter
    point = Point(start)
    return Task(
        model=point,
        loss=lambda _: surface(point.x),
        evaluate=lambda: float(surface(point.x.detach())) - surface.minimum,
        unit="height above the minimum",
        log_scale=True,
    )
