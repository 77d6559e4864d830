"""Odd quintics p(σ) = a σ + b σ³ + c σ⁵ that take singular values to one, one after another."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext
from typing import Any, TypeAlias

Quintic: TypeAlias = tuple[float, float, float]
"""a, b, c of a σ + b σ³ + c σ⁵."""
Coefficients: TypeAlias = tuple[Quintic, ...]
"""One quintic for each step."""

NS5: Quintic = (3.4445, -4.7750, 2.0315)
"""Steep at zero, and never at one: most singular values end between 0.68 and 1.20 (Jordan et al. 2024)."""
MUON_PLUS: Coefficients = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""The table of Muon+ and Dion (You 2025). Fewer steps take the last rows."""
CUSHION = 0.02407327424182761
"""The first quintics of the published Polar Express table approximate 1 above this share of the interval only."""

_ONE = Decimal(1)


@functools.cache
def polar_express(
    steps: int, lower: float = 1e-3, *, safety: float = 1.0, cushion: float = CUSHION
) -> Coefficients:
    """The quintics of Polar Express: each has the least worst-case error on the interval that the last one left.

    Step t is the best approximation of 1 on [max(ℓ, cushion · u), u] by an odd quintic, found by Remez exchange, and
    scaled to be centred around 1 where the cushion was active; then ℓ ← p(ℓ), u ← 2 − ℓ.

    Args:
        steps: how many quintics. They belong together: the first few of a longer row leave singular values up to 1.87.
        lower: ℓ of the first step, u is 1. Singular values below it are raised, but not to one.
        safety: singular values may exceed their interval by this factor, from rounding, after each step but the last.
        cushion: in [0, 1): quintics approximate 1 above ``cushion · u`` only, whatever ℓ is.

    Returns:
        (a, b, c) of each step. Computed with 50 digits: the same on every machine.

    Raises:
        ValueError: for arguments out of range.

    Source:
        Amsel, Persson, Musco and Gower 2025, "The Polar Express".

    Example:
        >>> from hasten.linalg.coefficients import polar_express, range_of
        >>> low, high = range_of(polar_express(5, cushion=0.0))
        >>> round(low, 3), round(high, 3)
        (0.887, 1.113)
    """
    _allow("steps", steps, steps >= 1, "at least 1")
    _allow("lower", lower, 0 < lower < 1, "in (0, 1)")
    _allow("safety", safety, 1 <= safety < 2, "in [1, 2)")
    _allow("cushion", cushion, 0 <= cushion < 1, "in [0, 1)")
    found = []
    with localcontext() as context:
        context.prec = 50
        low, high, share, margin = Decimal(lower), _ONE, Decimal(cushion), Decimal(safety)
        for step in range(1, steps + 1):
            p = _best_quintic(max(low, share * high), high)
            if share * high > low:
                p = tuple(x * 2 / (_value(p, low) + _value(p, high)) for x in p)
            if step < steps:
                p = (p[0] / margin, p[1] / margin**3, p[2] / margin**5)
            found.append((float(p[0]), float(p[1]), float(p[2])))
            low = min(_value(p, low), _ONE)
            high = 2 - low
    return tuple(found)


def _allow(name: str, value: Any, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"polar_express: {name} = {value!r} is not allowed; it must be {allowed}")


def _value(p: Sequence[Any], x: Any) -> Any:
    return x * (p[0] + x * x * (p[1] + x * x * p[2]))


def _best_quintic(low: Decimal, high: Decimal) -> tuple[Decimal, ...]:
    """The odd quintic nearest to 1 on [low, high] in the largest error, which it takes at four points in turn."""
    if low >= high * (1 - Decimal("5e-6")):
        # The limit: p = 1, p′ = p″ = 0 at the upper end.
        return Decimal("1.875") / high, Decimal("-1.25") / high**3, Decimal("0.375") / high**5
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    error, last = Decimal(0), Decimal(1)
    while abs(error - last) >= Decimal("1e-30"):
        signs = (_ONE, -_ONE, _ONE, -_ONE)
        rows = [[x, x**3, x**5, sign, _ONE] for x, sign in zip((low, q, r, high), signs, strict=True)]
        last = error
        a, b, c, error = _solution(rows)
        root = (9 * b * b - 20 * a * c).sqrt()
        q, r = (((-3 * b - root) / (10 * c)).sqrt(), ((-3 * b + root) / (10 * c)).sqrt())
    return a, b, c


def _solution(rows: list[list[Decimal]]) -> list[Decimal]:
    """Of linear equations, each with its right-hand side last: Gauss–Jordan elimination."""
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda j: abs(rows[j][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


def shrunk(quintics: Iterable[Quintic], factor: float) -> Coefficients:
    """Quintics that take σ as p(σ / factor), all but the last: room for rounding, added to a finished row.

    Example:
        >>> from hasten.linalg.coefficients import shrunk
        >>> shrunk([(2.0, -8.0, 32.0)] * 2, 2.0)
        ((1.0, -1.0, 1.0), (2.0, -8.0, 32.0))
    """
    *first, last = quintics
    return (*((a / factor, b / factor**3, c / factor**5) for a, b, c in first), last)


def range_of(quintics: Iterable[Quintic], lower: float = 1e-3, upper: float = 1.0) -> tuple[float, float]:
    """The least and the largest that singular values in [lower, upper] become: exact, from each quintic's extrema.

    Example:
        >>> from hasten.linalg.coefficients import NS5, range_of
        >>> low, high = range_of([NS5] * 5)
        >>> round(low, 2), round(high, 2)
        (0.47, 1.2)
    """
    for p in quintics:
        ends = [lower, upper, *(x for x in _extrema(p) if lower < x < upper)]
        values = [_value(p, x) for x in ends]
        lower, upper = min(values), max(values)
    return lower, upper


def _extrema(p: Quintic) -> list[float]:
    """Where p′ = a + 3 b σ² + 5 c σ⁴ vanishes, for σ > 0."""
    a, b, c = p
    if c == 0:
        return [(-a / (3 * b)) ** 0.5] if a * b < 0 else []
    inside = 9 * b * b - 20 * a * c
    if inside < 0:
        return []
    squares = [(-3 * b + sign * inside**0.5) / (10 * c) for sign in (-1, 1)]
    return [x**0.5 for x in squares if x > 0]


def worst_error(quintics: Iterable[Quintic], lower: float = 1e-3) -> float:
    """The largest |1 − σ| that singular values in [lower, 1] end with.

    Example:
        >>> from hasten.linalg.coefficients import NS5, polar_express, worst_error
        >>> round(worst_error(polar_express(5, cushion=0.0)) / worst_error([NS5] * 5), 2)
        0.21
    """
    low, high = range_of(quintics, lower)
    return max(1 - low, high - 1)
