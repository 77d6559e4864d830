"""Directional derivatives without a graph: r of them for little more than r forward passes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.func import jvp, vmap

from hasten.oracles.failures import explaining
from hasten.oracles.substitution import Loss, differentiable_kernels, scalar
from hasten.sharding import local, total
from hasten.sketches.sketch import Draw

Direction: TypeAlias = Callable[[], Sequence[Tensor]]
"""A direction by variable, made anew whenever it is needed: to keep it would take the room of the parameters."""

LARGEST_CHUNK = 16
"""Directions that go through the model together, at most, unless the user says otherwise."""
CHUNK_ENTRIES = {"cpu": 2**20, "elsewhere": 2**24}
"""Entries of the directions that go through together, at most, unless the user says otherwise."""


def chunk_for(dimension: int, device: torch.device, chunk: int | None = None) -> int:
    """How many directions go through the model together.

    Together they share one evaluation of the loss and the cost of launching its operations; each needs `dimension`
    numbers and a layer's activations of its own. On a CPU this pays up to about 10⁵ parameters: 16 directions of a
    network of 5·10³ took 2 ms together and 16 ms one by one, and 8 of one of 1.6·10⁶ 1.6 s and 0.5 s.

    Example:
        >>> [chunk_for(d, torch.device("cpu")) for d in (1_000, 2**18, 10**7)], chunk_for(10**7, torch.device("cpu"), 3)
        ([16, 4, 1], 3)
    """
    if chunk is not None:
        return chunk
    budget = CHUNK_ENTRIES.get(device.type, CHUNK_ENTRIES["elsewhere"])
    return max(1, min(LARGEST_CHUNK, budget // max(dimension, 1)))


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
    size = chunk_for(x.numel(), x.device, chunk)
    value, found, reached = None, [x.new_zeros(0)], False

    def evaluate(moved: Tensor) -> Tensor:
        nonlocal reached
        result = scalar("directional_derivatives", function(moved))
        reached = reached or parts_of(result)[1] is not None
        return result

    def along(row: Tensor) -> Any:
        return jvp(evaluate, (x,), (row,))

    with explaining("directional_derivatives", None), torch.no_grad():
        for start in range(0, draw.rank, size):
            rows = draw.columns(start, min(start + size, draw.rank), dtype=x.dtype, device=x.device)
            if size == 1:
                with forward_ad.dual_level():
                    value, slope = parts_of(evaluate(dual(x, rows.view_as(x))))
                    found.append(x.new_zeros(1) if slope is None else slope.reshape(1))
            else:
                values, slopes = vmap(along, randomness="same")(rows)
                value = values[0]
                found.append(slopes)
        if value is None:
            return function(x), found[0]
    if not reached:
        raise RuntimeError("directional_derivatives: the value of the function does not depend on the point")
    return value, torch.cat(found)


def push(loss: Loss, tangents: list[Tensor | None], together: bool) -> tuple[Tensor, Tensor, bool]:
    """The loss and its derivatives along c directions, in one pass.

    Args:
        loss: the function.
        tangents: the directions by variable, each of shape (c, \\*shape); None where the variable does not move. The
            list is emptied, so that nothing but the pass itself holds them.
        together: whether c may exceed 1. Both ways draw dropout masks from the same generator, but for some layouts of
            memory not in the same order, so all passes of a step go the same way.

    Returns:
        The loss, shape (); the c derivatives, shape (c,); and whether the loss was reached by a moved variable.
    """
    with explaining(loss.owner, loss.module), torch.no_grad(), differentiable_kernels(loss.module):
        return (_together if together else _alone)(loss, tangents)


def _alone(loss: Loss, tangents: list[Tensor | None]) -> tuple[Tensor, Tensor, bool]:
    """One direction: the variables themselves carry it as dual numbers until the pass ends; their values stay."""
    with forward_ad.dual_level():
        _carry(loss.variables, tangents)
        value, slope = parts_of(scalar(loss.owner, loss.closure()))
        if slope is None:
            return value, torch.zeros_like(value).reshape(1), False
        return value, slope.reshape(1), True


def _carry(variables: Sequence[Tensor], tangents: list[Tensor | None]) -> None:
    """Make the variables dual numbers. They hold copies of the directions, which are let go of before the pass."""
    for p, t in zip(variables, tangents, strict=True):
        if t is not None:
            p.copy_(dual(p.detach(), t[0]))
    tangents.clear()


def _together(loss: Loss, tangents: list[Tensor | None]) -> tuple[Tensor, Tensor, bool]:
    """Many directions, by a batched Jacobian-vector product."""
    moving = [i for i, t in enumerate(tangents) if t is not None]
    points, reached = [p.detach() for p in loss.variables], False

    def evaluate(*moved: Tensor) -> tuple[Tensor, list[Tensor]]:
        nonlocal reached
        values = list(points)
        for i, value in zip(moving, moved, strict=True):
            values[i] = value
        result, buffers = loss(values)
        reached = parts_of(result)[1] is not None
        return result, buffers

    def along(*direction: Tensor) -> Any:
        return jvp(evaluate, tuple(points[i] for i in moving), direction, has_aux=True)

    values, slopes, buffers = vmap(along, randomness="same")(*(t for t in tangents if t is not None))
    loss.write([b[0] for b in buffers])
    return values[0], slopes, reached


def dual(value: Tensor, tangent: Tensor) -> Tensor:
    """value + ε tangent."""
    made: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return made


def parts_of(result: Tensor) -> tuple[Tensor, Tensor | None]:
    """Value and tangent; None where there is none."""
    parts = forward_ad.unpack_dual(result)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return parts.primal, parts.tangent


@contextlib.contextmanager
def moved(variables: Sequence[Tensor], along: Direction, length: float) -> Iterator[None]:
    """The variables at y + length · direction; put back bit for bit."""
    kept = [p.detach().clone() for p in variables]
    with torch.no_grad():
        try:
            _shift(variables, along(), length)
            yield
        finally:
            for p, value in zip(variables, kept, strict=True):
                p.copy_(value)


def _shift(variables: Sequence[Tensor], direction: Sequence[Tensor], length: float) -> None:
    for p, d in zip(variables, direction, strict=True):
        p.add_(d, alpha=length)


def second_derivative(slope: Callable[[], float], variables: Sequence[Tensor], along: Direction) -> float:
    """q = Gᵀ∇²f(y)G, the central difference of the derivatives along G at y ± hG.

    Nested forward mode would be exact for most functions, but torch's forward derivative of batch normalisation is
    wrong when it is differentiated again; differences only need first derivatives.

    Args:
        slope: G·∇f at the variables as they are.
        variables: y; moved and put back.
        along: makes G.
    """
    size = root_mean_square(along())
    if size == 0 or not math.isfinite(size):
        return 0.0 if size == 0 else math.nan
    h = difference_step(variables, size, 1 / 3)
    with moved(variables, along, h):
        ahead = slope()
    with moved(variables, along, -h):
        behind = slope()
    return (ahead - behind) / (2 * h)


def difference_step(points: Sequence[Tensor], size: float, power: float) -> float:
    """The length along a direction of root mean square `size` that changes entries by ε^power of theirs (of 1 at 0)."""
    epsilon = max(torch.finfo(y.dtype).eps for y in points)
    return float(epsilon**power) * (root_mean_square(points) or 1.0) / size


def root_mean_square(tensors: Sequence[Tensor]) -> float:
    """Over all entries of all tensors."""
    count = max(sum(t.numel() for t in tensors), 1)
    return math.sqrt(sum(squared_norm(t) for t in tensors) / count)


def squared_norm(t: Tensor) -> float:
    """‖t‖², summed in float64."""
    return total(float(torch.linalg.vector_norm(local(t).detach(), dtype=torch.float64)) ** 2, of=t)
