"""Spectra with a name: how the curvature of a quadratic is spread over its directions.

What decides whether a sketched method pays is the effective rank ρ = Σλ/λ_max, and whether the eigenvalues lie
scattered or in a few clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hasten.checks import nearest
from hasten.words import Interval

__all__ = ["SPECTRA", "clustered", "geometric", "logspace", "power", "spectrum"]


def power(dimension: int, exponent: float) -> Tensor:
    """λ_i = i^−exponent, i = 1 … d; exponent 0 makes all of them 1.

    Example:
        >>> power(4, 1.0)
        tensor([1.0000, 0.5000, 0.3333, 0.2500], dtype=torch.float64)
    """
    _check("power", "exponent", exponent, Interval(0))
    return torch.arange(1, _count("power", dimension) + 1, dtype=torch.float64) ** -exponent


def geometric(dimension: int, ratio: float) -> Tensor:
    """λ_i = ratio^(i−1), with a ratio in (0, 1].

    Example:
        >>> geometric(3, 0.5)
        tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """
    _check("geometric", "ratio", ratio, Interval(0, 1, "right"))
    exponents = torch.arange(_count("geometric", dimension), dtype=torch.float64)
    return torch.tensor(ratio, dtype=torch.float64) ** exponents


def logspace(dimension: int, decades: float) -> Tensor:
    """From 1 down to 10^−decades in equal ratios.

    Example:
        >>> logspace(3, 4.0).tolist()
        [1.0, 0.01, 0.0001]
    """
    _check("logspace", "decades", decades, Interval(0))
    return torch.logspace(0.0, -decades, _count("logspace", dimension), dtype=torch.float64)


def clustered(dimension: int, large: int, small: float) -> Tensor:
    """`large` eigenvalues of 1 and a flat tail of `small` ones.

    Example:
        >>> clustered(4, large=1, small=0.5).tolist()
        [1.0, 0.5, 0.5, 0.5]
    """
    _check("clustered", "small", small, Interval(0, 1, "right"))
    if not 0 < large <= dimension:
        raise ValueError(f"clustered: large = {large!r} is not allowed; it must be from 1 to {dimension}")
    values = torch.full((_count("clustered", dimension),), small, dtype=torch.float64)
    values[:large] = 1.0
    return values


def _half(dimension: int, small: float) -> Tensor:
    return clustered(dimension, math.ceil(dimension / 2), small)


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "equal": partial(power, exponent=0.0),
    "inverse-root": partial(power, exponent=0.5),
    "inverse": partial(power, exponent=1.0),
    "inverse-square": partial(power, exponent=2.0),
    "geometric": partial(geometric, ratio=0.9),
    "slow-geometric": partial(geometric, ratio=0.99),
    "logspace": partial(logspace, decades=4.0),
    "clustered": partial(clustered, large=4, small=0.01),
    "sharply-clustered": partial(clustered, large=4, small=1e-4),
    "spiked": partial(clustered, large=1, small=1e-4),
    "halves": partial(_half, small=1e-4),
}
"""Functions of the dimension by name: all equal, i^−½, 1/i, i⁻², 0.9^(i−1), 0.99^(i−1), four decades, four ones and a
tail of 1e-2 or 1e-4, one 1 and a tail of 1e-4, half 1 and half 1e-4."""


def spectrum(name: str, dimension: int) -> Tensor:
    """A named spectrum of a given length, shape ``(dimension,)``, largest first.

    Raises:
        ValueError: there is no such name, or the dimension is not a positive integer.

    Example:
        >>> spectrum("inverse-square", 3)
        tensor([1.0000, 0.2500, 0.1111], dtype=torch.float64)
        >>> spectrum("inverse-squared", 3)
        Traceback (most recent call last):
        ...
        ValueError: spectrum: unknown name 'inverse-squared'; did you mean 'inverse-square'?
    """
    if name not in SPECTRA:
        raise ValueError(f"spectrum: unknown name {name!r}{nearest(name, SPECTRA)}")
    return SPECTRA[name](dimension)


def _count(owner: str, dimension: int) -> int:
    if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
        raise ValueError(
            f"{owner}: dimension = {dimension!r} is not allowed; it must be an integer of at least 1"
        )
    return dimension


def _check(owner: str, name: str, value: float, allowed: Interval) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {name} = {value!r} is not allowed; it must be in {allowed}")
