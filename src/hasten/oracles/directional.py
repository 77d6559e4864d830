"""Directional derivatives without a graph: r of them for little more than r forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.func import jvp, vmap

from hasten.oracles.failures import explaining
from hasten.oracles.substitution import Loss, differentiable_kernels
from hasten.sketches.sketch import Draw

LARGEST_BATCH = 16
"""Directions that go through the model together, at most, unless the user says otherwise."""
BATCHED_ENTRIES = 2**22
"""Entries of the directions that go through together, at most, unless the user says otherwise."""


def chunk_for(dimension: int, chunk: int | None = None) -> int:
    """How many directions go through the model together.

    Together they share one evaluation of the loss and the cost of launching its operations; each needs `dimension`
    numbers and a layer's activations of its own.

    Example:
        >>> chunk_for(1_000), chunk_for(2**20), chunk_for(10**8), chunk_for(10**8, chunk=3)
        (16, 4, 1, 3)
    """
    return chunk or max(1, min(LARGEST_BATCH, BATCHED_ENTRIES // max(dimension, 1)))


def directional_derivatives(
    function: Callable[[Tensor], Tensor], point: Tensor, draw: Draw, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """f(x) and s = Pᵀ∇f(x), by forward mode.

    Args:
        function: a differentiable function of one vector of shape (d,), with one entry as its value.
        point: x, shape (d,).
        draw: P, shape (d, r).
        chunk: directions taken together.

    Returns:
        The value, shape (), and s, shape (r,); no graph.

    Raises:
        NotImplementedError: an operation of the function has no forward-mode derivative.
        RuntimeError: the value does not depend on the point.

    Example:
        >>> from hasten.sketches import BalancedCountSketch
        >>> x = torch.arange(4.0)
        >>> draw = BalancedCountSketch(rank=2).draw(4)
        >>> value, s = directional_derivatives(lambda x: (x**2).sum(), x, draw)
        >>> value, bool(torch.allclose(s, draw.project(2 * x)))
        (tensor(14.), True)
    """
    x = point.detach()
    loss = Loss(lambda: function(x), [x], owner="directional_derivatives")
    size = chunk_for(x.numel(), chunk)
    value, found, connected = None, [], False
    for start in range(0, draw.rank, size):
        stop = min(start + size, draw.rank)
        rows = draw.columns(start, stop, dtype=x.dtype, device=x.device)
        value, slopes, reached = push(loss, [x], [rows.view(-1, *x.shape)])
        connected = connected or reached
        found.append(slopes)
    if value is None:
        with torch.no_grad():
            return function(x).detach(), x.new_zeros(0)
    if not connected:
        raise RuntimeError("directional_derivatives: the value of the function does not depend on the point")
    return value, torch.cat(found)


def push(
    loss: Loss, points: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, bool]:
    """The loss at `points` and its derivatives along c directions, in one pass.

    Args:
        loss: the function.
        points: the values of its variables.
        tangents: the directions by variable, each of shape (c, \\*shape); None where the variable does not move.

    Returns:
        The loss, shape (); the c derivatives, shape (c,); and whether the loss was reached by a moved variable.
    """
    moving = [i for i, t in enumerate(tangents) if t is not None]
    directions = [t for t in tangents if t is not None]
    reached = False

    def evaluate(*moved: Tensor) -> tuple[Tensor, list[Tensor]]:
        nonlocal reached
        values = list(points)
        for i, value in zip(moving, moved, strict=True):
            values[i] = value
        result, buffers = loss(values)
        reached = forward_ad.unpack_dual(result).tangent is not None  # type: ignore[no-untyped-call]  # torch's gap
        return result, buffers

    def along(*direction: Tensor) -> Any:
        return jvp(evaluate, tuple(points[i] for i in moving), direction, has_aux=True)

    with explaining(loss.owner, loss.module), torch.no_grad(), differentiable_kernels(loss.module):
        if len(directions[0]) == 1:
            value, slope, buffers = along(*(d[0] for d in directions))
            slopes = slope.reshape(1)
        else:
            values, slopes, batched = vmap(along, randomness="same")(*directions)
            value, buffers = values[0], [b[0] for b in batched]
        loss.write(buffers)
    return value, slopes, reached


def second_derivative(
    slope: Callable[[Sequence[Tensor]], float], points: Sequence[Tensor], direction: Sequence[Tensor]
) -> float:
    """q = Gᵀ∇²f(y)G, the central difference of the derivatives along G at y ± hG.

    Nested forward mode would be exact for most functions, but torch's forward derivative of batch normalisation is
    wrong when it is differentiated again; differences only need first derivatives.

    Args:
        slope: G·∇f at a point.
        points: y by variable.
        direction: G by variable.
    """
    size = root_mean_square(direction)
    if size == 0 or not math.isfinite(size):
        return 0.0 if size == 0 else math.nan
    h = difference_step(points, direction, 1 / 3)
    ahead, behind = (
        slope([y + sign * h * g.to(y.dtype) for y, g in zip(points, direction, strict=True)])
        for sign in (1, -1)
    )
    return (ahead - behind) / (2 * h)


def difference_step(points: Sequence[Tensor], direction: Sequence[Tensor], power: float) -> float:
    """The length along `direction` that changes entries by ε^power of their root mean square (of 1 at zero)."""
    epsilon = max(torch.finfo(y.dtype).eps for y in points)
    return float(epsilon**power) * (root_mean_square(points) or 1.0) / root_mean_square(direction)


def root_mean_square(tensors: Sequence[Tensor]) -> float:
    """Over all entries of all tensors."""
    count = max(sum(t.numel() for t in tensors), 1)
    return math.sqrt(sum(squared_norm(t) for t in tensors) / count)


def squared_norm(t: Tensor) -> float:
    """‖t‖², summed in float64."""
    return float(torch.linalg.vector_norm(t.detach(), dtype=torch.float64)) ** 2
