"""The families that all tests of this folder go through."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hasten import sketches
from hasten.sketches import Sketch


def _curvature(d: int) -> torch.Tensor:
    return torch.linspace(1, 3, d, dtype=torch.float64)


def _low_rank(d: int, r: int) -> Sketch:
    """On the squarest matrix of d entries, of the largest rank that takes no more than r numbers (or 1)."""
    short = max(m for m in range(1, d + 1) if d % m == 0 and m * m <= d)
    (sketch,) = sketches.RandomLowRank(rank=max(1, r // short)).divided([(d // short, short)])
    return sketch


FAMILIES: dict[str, Callable[[int, int], Sketch]] = {
    "Haar": lambda d, r: sketches.Haar(rank=r),
    "Gaussian": lambda d, r: sketches.Gaussian(rank=r),
    "Rademacher": lambda d, r: sketches.Rademacher(rank=r),
    "CountSketch": lambda d, r: sketches.CountSketch(rank=r),
    "BalancedCountSketch": lambda d, r: sketches.BalancedCountSketch(rank=r),
    "AffineCountSketch": lambda d, r: sketches.AffineCountSketch(rank=r),
    "StridedSigns": lambda d, r: sketches.StridedSigns(rank=r),
    "SparseSign": lambda d, r: sketches.SparseSign(rank=r, sparsity=min(3, r)),
    "SRHT": lambda d, r: sketches.SRHT(rank=r),
    "RandomSignDCT": lambda d, r: sketches.RandomSignDCT(rank=r),
    "Coordinates": lambda d, r: sketches.Coordinates(rank=r),
    "Coordinates with replacement": lambda d, r: sketches.Coordinates(rank=r, replace=True),
    "Coordinates from p": lambda d, r: sketches.Coordinates(
        rank=r, probabilities=_curvature(d) / _curvature(d).sum()
    ),
    "IndependentCoordinates": lambda d, r: sketches.IndependentCoordinates(rank=r),
    "ImportanceCoordinates": lambda d, r: sketches.ImportanceCoordinates(_curvature(d)),
    "ImportanceBlocks": lambda d, r: sketches.ImportanceBlocks(_curvature(d), [r, d - r] if r < d else [d]),
    "RandomLowRank": _low_rank,
    "Identity": lambda d, r: sketches.Identity(),
    "PerLayer": lambda d, r: sketches.PerLayer(sketches.BalancedCountSketch(ratio=2)).bind(
        [(r, 1), (d - r,)]
    ),
}
