"""Surfaces: minima are minima, and formulas agree with plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.problems.surfaces import SURFACES

PLAIN = {
    "rosenbrock": lambda x, y: (1 - x) ** 2 + 100 * (y - x * x) ** 2,
    "beale": lambda x, y: sum((c - x * (1 - y**k)) ** 2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625))),
    "himmelblau": lambda x, y: (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2,
    "valley": lambda x, y: 0.5 * x * x + 50 * y * y,
    "styblinski-tang": lambda x, y: 78.33233140754282 + sum(z**4 - 16 * z**2 + 5 * z for z in (x, y)) / 2,
    "ackley": lambda x, y: (
        20 * (1 - math.exp(-0.2 * math.sqrt((x * x + y * y) / 2)))
        + math.e
        - math.exp((math.cos(2 * math.pi * x) + math.cos(2 * math.pi * y)) / 2)
    ),
}


@pytest.mark.parametrize("name", SURFACES)
def test_formula_agrees_with_plain_python(name: str) -> None:
    points = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    expected = [PLAIN[name](x, y) for x, y in points.tolist()]
    assert SURFACES[name](points).tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", SURFACES)
def test_minima_are_stationary_and_lowest(name: str) -> None:
    surface = SURFACES[name]
    for minimum in surface.minima:
        # Ackley's funnel has a kink at its bottom: there the value is enough.
        point = torch.tensor(minimum, dtype=torch.float64, requires_grad=True)
        value = surface(point)
        assert value.item() == pytest.approx(surface.minimum, abs=1e-9)
        if name != "ackley":
            (slope,) = torch.autograd.grad(value, point)
            assert slope.abs().max() < 1e-3
    left, right, bottom, top = surface.bounds
    grid = torch.cartesian_prod(torch.linspace(left, right, 101), torch.linspace(bottom, top, 101)).double()
    assert float(surface(grid).min()) >= surface.minimum - 1e-9
    assert left <= surface.start[0] <= right
    assert bottom <= surface.start[1] <= top
