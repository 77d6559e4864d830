"""Constants that a user of the method may have to choose: restarts, steps under noise, importance sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.words import NONNEGATIVE, POSITIVE, Interval

__all__ = ["fixed_restart_interval", "importance_constant", "noisy_bound", "noisy_smoothness"]


def importance_constant(smoothness: Tensor) -> float:
    """C = (Σ√λ_b)² for single blocks b drawn with probability ∝ √λ_b.

    For coordinates, λ_b = L_bb is the diagonal of L (Allen-Zhu et al., arXiv:1512.09103); for blocks of coordinates,
    λ_b is the largest eigenvalue of the block of L.

    Args:
        smoothness: λ, shape ``(blocks,)``, non-negative and not all zero.

    Raises:
        ValueError: the tensor has another shape or other entries.

    Example:
        >>> importance_constant(torch.tensor([4.0, 1.0, 0.25]))
        12.25
    """
    values = smoothness.detach().double()
    if values.ndim != 1 or not bool(torch.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise ValueError(
            f"importance_constant: smoothness of shape {tuple(values.shape)} must be one-dimensional, finite, "
            "non-negative and not all zero"
        )
    return float(values.sqrt().sum()) ** 2


def fixed_restart_interval(constant: float, strong_convexity: float) -> int:
    """⌈√(4eC/μ)⌉: restarting schedule U with μ = 0 that often divides E f − f* by e in every cycle.

    Example:
        >>> fixed_restart_interval(constant=100.0, strong_convexity=1.0)
        33
    """
    owner = fixed_restart_interval.__name__
    C = _checked(owner, "constant", constant, POSITIVE)
    mu = _checked(owner, "strong_convexity", strong_convexity, POSITIVE)
    return math.ceil(math.sqrt(4 * math.e * C / mu))


def noisy_smoothness(
    expected_smoothness: float, nu: float, *, noise: float, distance: float, steps: int
) -> float:
    """1/η of the best short step under gradient noise: max(ℓ, σK^1.5/(√(6ν)R)), to be used in place of ℓ.

    Args:
        expected_smoothness: ℓ of the sketch.
        nu: ν of the sketch.
        noise: σ, with E‖ξ‖² ≤ σ² for the noise ξ of the whole gradient.
        distance: R = ‖x₀ − x*‖.
        steps: K, the length of the run.

    Example:
        >>> noisy_smoothness(2.0, 16.0, noise=0.0, distance=1.0, steps=100)
        2.0
        >>> round(noisy_smoothness(2.0, 16.0, noise=1.0, distance=1.0, steps=100), 3)
        102.062
    """
    owner = noisy_smoothness.__name__
    smoothness = _checked(owner, "expected_smoothness", expected_smoothness, POSITIVE)
    inflation = _checked(owner, "nu", nu, POSITIVE)
    sigma = _checked(owner, "noise", noise, NONNEGATIVE)
    R = _checked(owner, "distance", distance, POSITIVE)
    K = _checked(owner, "steps", steps, Interval(1))
    return max(smoothness, sigma * K * math.sqrt(K / (6 * inflation)) / R)


def noisy_bound(smoothness: float, nu: float, *, noise: float, distance: float, steps: int) -> float:
    """Schedule C under gradient noise, step η = 1/smoothness: 2νR²/(η(K+1)²) + ησ² Σ_{j=2}^{K+1} j²/(K+1)².

    Args:
        smoothness: 1/η, at least ℓ.
        nu, noise, distance, steps: as for :func:`noisy_smoothness`.

    Example:
        >>> noisy_bound(1.0, 1.0, noise=0.0, distance=1.0, steps=1)
        0.5
    """
    owner = noisy_bound.__name__
    inverse = _checked(owner, "smoothness", smoothness, POSITIVE)
    inflation = _checked(owner, "nu", nu, POSITIVE)
    sigma = _checked(owner, "noise", noise, NONNEGATIVE)
    R = _checked(owner, "distance", distance, NONNEGATIVE)
    last = _checked(owner, "steps", steps, Interval(0)) + 1
    squares = last * (last + 1) * (2 * last + 1) / 6 - 1
    return (2 * inflation * R**2 * inverse + sigma**2 * squares / inverse) / last**2


def _checked(owner: str, name: str, value: float, allowed: Interval) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in allowed:
        raise ValueError(f"{owner}: {name} = {value!r} is not allowed; it must be a number in {allowed}")
    return float(value)
