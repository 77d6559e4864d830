"""The curvature of a loss, estimated from products of its Hessian with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from hasten.oracles.directional import squared_norm
from hasten.oracles.hessian_vector import HessianVector, signs, variables_of
from hasten.oracles.substitution import State
from hasten.sketches import Curvature


class Estimate(NamedTuple):
    """An estimated number and how far to trust it.

    `error` is the standard error of a mean of `samples` probes, or, for an eigenvalue found in `samples` products, the
    residual ‖Hv − λv‖ of a unit vector v: some eigenvalue lies within it.
    """

    value: float
    error: float
    samples: int


def estimate_trace(
    closure: Callable[[], Any], params: nn.Module | Sequence[Tensor], samples: int = 16, seed: int = 0
) -> Estimate:
    """tr ∇²f by Hutchinson's estimate: the mean of uᵀ∇²f u over probes u of independent signs.

    One probe has the variance 2(‖H‖_F² − Σ h_ii²); diagonal Hessians are exact. Nothing is changed: random numbers and
    buffers are put back, and every probe sees the same ones.

    Args:
        closure: returns the loss.
        params: the parameters, or their module.
        samples: probes; one product of the Hessian with a vector each.
        seed: seed of the probes.

    Example:
        >>> import torch
        >>> w = torch.ones(3, requires_grad=True)
        >>> estimate_trace(lambda: (w**2).sum(), [w], samples=4)
        Estimate(value=6.0, error=0.0, samples=4)
    """
    _check_count("estimate_trace", "samples", samples)
    with _products(closure, params) as (tensors, product):
        found = []
        for k in range(samples):
            u = signs(tensors, seed, k)
            found.append(_dot(u, product(u)))
    mean = math.fsum(found) / samples
    spread = math.fsum((x - mean) ** 2 for x in found) / max(samples - 1, 1)
    return Estimate(mean, math.sqrt(spread / samples) if samples > 1 else math.inf, samples)


def estimate_largest(
    closure: Callable[[], Any],
    params: nn.Module | Sequence[Tensor],
    iterations: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Estimate:
    """λ_max(∇²f) by power iteration.

    The value vᵀ∇²f v of a unit vector is never above λ_max. Where it is negative, or has not settled after half of the
    iterations, they go on with ∇²f + ‖∇²f‖I, whose eigenvalue of largest magnitude is that of λ_max. Nothing is
    changed, as in :func:`estimate_trace`.

    Args:
        closure: returns the loss.
        params: the parameters, or their module.
        iterations: products of the Hessian with a vector, at most.
        tolerance: stops once the residual is below this fraction of ‖∇²f‖, as far as it was seen.
        seed: seed of the first vector.

    Example:
        >>> import torch
        >>> w = torch.ones(3, requires_grad=True)
        >>> round(estimate_largest(lambda: (w**2 * torch.tensor([3.0, 1.0, 0.5])).sum(), [w]).value, 3)
        6.0
    """
    _check_count("estimate_largest", "iterations", iterations)
    with _products(closure, params) as (tensors, product):
        v = _unit(signs(tensors, seed, 0))
        shift = scale = 0.0
        for k in range(1, iterations + 1):
            image = product(v)
            value = _dot(v, image)
            residual = math.sqrt(sum(squared_norm(h - value * u) for h, u in zip(image, v, strict=True)))
            if not math.isfinite(value):
                raise ValueError(f"estimate_largest: the Hessian holds NaN or infinity (vᵀHv = {value})")
            scale = max(scale, math.hypot(value, residual))  # ‖Hv‖
            if residual <= tolerance * scale and (value > 0 or shift > 0 or scale == 0):
                return Estimate(value, residual, k)
            if value < 0 or shift > 0 or k >= iterations // 2:
                shift = scale
            v = _unit([h + shift * u for h, u in zip(image, v, strict=True)]) or _unit(
                signs(tensors, seed, k)
            )
    return Estimate(value, residual, iterations)


def estimate_curvature(
    closure: Callable[[], Any],
    params: nn.Module | Sequence[Tensor],
    samples: int = 16,
    iterations: int = 50,
    seed: int = 0,
) -> Curvature:
    """λ_max and trace of ∇²f at the parameters, as a curvature.

    The trace is kept between λ_max and d·λ_max, where that of a positive semi-definite matrix lies.

    Raises:
        ValueError: the largest eigenvalue found is not positive.
    """
    largest = estimate_largest(closure, params, iterations, seed=seed)
    if not largest.value > 0:
        raise ValueError(
            f"estimate_curvature: the largest eigenvalue found is {largest.value:g}; a smoothness matrix has "
            "a positive one"
        )
    trace = estimate_trace(closure, params, samples, seed=seed)
    dimension = sum(p.numel() for p in variables_of(params)[1])
    return Curvature(
        dimension, largest.value, min(max(trace.value, largest.value), dimension * largest.value)
    )


@contextmanager
def _products(
    closure: Callable[[], Any], params: nn.Module | Sequence[Tensor]
) -> Iterator[tuple[list[Tensor], Callable[[Sequence[Tensor]], list[Tensor]]]]:
    """Products of one Hessian: of the same batch, with the same random numbers and buffers."""
    module, tensors = variables_of(params)
    start = State(module, {p.device for p in tensors})

    def product(vectors: Sequence[Tensor]) -> list[Tensor]:
        start.restore()
        return HessianVector().product(closure, params, vectors).products

    try:
        yield tensors, product
    finally:
        start.restore()


def _check_count(owner: str, name: str, count: int) -> None:
    if type(count) is not int or count < 1:
        raise ValueError(f"{owner}: {name} = {count!r} is not allowed; it must be an integer of at least 1")


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _unit(vectors: Sequence[Tensor]) -> list[Tensor]:
    """The vector of length 1, or an empty list for the zero vector."""
    length = math.sqrt(sum(squared_norm(v) for v in vectors))
    return [v / length for v in vectors] if length > 0 else []
