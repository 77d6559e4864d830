"""Sketches over several parameters: all as one vector, or each by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from hasten.sketches.counters import key_of
from hasten.sketches.curvature import Curvature
from hasten.sketches.sketch import Draw, ExchangeableSketch, Sketch

Shape = Sequence[int]


class IdentityDraw(Draw):
    """P = I."""

    def __init__(self, dimension: int) -> None:
        self.dimension = self.rank = dimension

    def _project(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        return g.to(dtype, copy=True)

    def _lift(self, s: Tensor, out: Tensor) -> None:
        out.copy_(s)

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.zeros(stop - start, self.dimension, dtype=dtype, device=device)
        out.diagonal(start).fill_(1)
        return out


@dataclass(frozen=True)
class Identity(ExchangeableSketch):
    """P = I: the whole gradient, r = d, ν = 1, ℓ = λ_max.

    Example:
        >>> Identity().draw(3).project(torch.tensor([1.0, 2.0, 3.0]))
        tensor([1., 2., 3.])
    """

    rank: None = field(default=None, init=False)
    ratio: float = field(default=1.0, init=False)
    formula: ClassVar[str] = "P = I"

    def coefficients(self, dimension: int) -> tuple[float, float, float]:
        """1, 0, 0."""
        return 1.0, 0.0, 0.0

    def _draw(self, dimension: int, key: int) -> IdentityDraw:
        return IdentityDraw(dimension)


def vectors(shape: Shape) -> bool:
    """Whether a parameter is a vector or a scalar: a bias, a norm's weight."""
    return len(shape) < 2


@dataclass(frozen=True)
class Block:
    """Parameters that are sketched together, as one vector in their order.

    Attributes:
        number: the block's part of the key.
        members: positions in the list of parameters.
        dimension: entries of all members together.
        sketch: the family, with its rank for this block.
    """

    number: int
    members: tuple[int, ...]
    dimension: int
    sketch: Sketch

    def draw(self, *, seed: int = 0, step: int = 0) -> Draw:
        """The block's matrix at this step."""
        return self.sketch.draw(self.dimension, seed=seed, step=step, block=self.number)


def blocks(sketch: Sketch, shapes: Sequence[Shape]) -> list[Block]:
    """How a sketch divides parameters of these shapes: one block of all, or one for each under `PerLayer`.

    Parameters without entries are in no block.

    Example:
        >>> from hasten.sketches import CountSketch
        >>> [block.members for block in blocks(CountSketch(rank=2), [(3, 4), (4,)])]
        [(0, 1)]
        >>> [(block.dimension, block.sketch) for block in blocks(PerLayer(CountSketch(ratio=4)), [(3, 4), (4,)])]
        [(12, CountSketch(rank=3, ratio=None)), (4, Identity(rank=None, ratio=1.0))]
    """
    if isinstance(sketch, PerLayer):
        return sketch.bind(shapes).blocks()
    sizes = [math.prod(shape) for shape in shapes]
    members = tuple(i for i, size in enumerate(sizes) if size)
    return [Block(0, members, sum(sizes), sketch)] if members else []


class ProductDraw(Draw):
    """blockdiag(P_b), on the concatenation of all parameters."""

    def __init__(self, parts: Sequence[Draw]) -> None:
        self.parts = list(parts)
        self.dimension = sum(part.dimension for part in parts)
        self.rank = sum(part.rank for part in parts)

    def _project(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        pieces = torch.split(g, [part.dimension for part in self.parts])
        return torch.cat(
            [part.project(piece).to(dtype) for part, piece in zip(self.parts, pieces, strict=True)]
        )

    def _lift(self, s: Tensor, out: Tensor) -> None:
        smalls = torch.split(s, [part.rank for part in self.parts])
        targets = torch.split(out, [part.dimension for part in self.parts])
        for part, small, target in zip(self.parts, smalls, targets, strict=True):
            part.lift(small, target)

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.zeros(stop - start, self.dimension, dtype=dtype, device=device)
        row = column = 0
        for part in self.parts:
            low, high = max(start - row, 0), min(stop - row, part.rank)
            if low < high:
                where = out[low + row - start : high + row - start, column : column + part.dimension]
                where.copy_(part.columns(low, high, dtype=dtype, device=device))
            row, column = row + part.rank, column + part.dimension
        return out


@dataclass(frozen=True)
class PerLayer(Sketch):
    """blockdiag(P_b): every parameter is sketched by itself, and small ones are kept whole.

    E[W L W] is L with each diagonal block replaced by E[W_b L_bb W_b]; ν = max_b ν_b. A `ratio` of the sketch holds
    for every layer; a `rank` is divided among the sketched layers in proportion to their sizes, at least 1 each.
    Layers kept whole come on top of it.

    Args:
        sketch: the family for the parameters that are sketched.
        exact: which shapes are kept whole; vectors and scalars unless told otherwise.

    Raises:
        TypeError: the sketch has no rank or ratio to divide, or a moment or a draw is asked for before `bind`.

    Example:
        >>> from hasten.sketches import BalancedCountSketch
        >>> sketch = PerLayer(BalancedCountSketch(ratio=8)).bind([(16, 4), (16,)])
        >>> sketch.rank_in(80), [block.dimension for block in sketch.blocks()]
        (24, [64, 16])
    """

    rank: None = field(default=None, init=False, repr=False)
    ratio: float = field(default=1.0, init=False, repr=False)
    sketch: Sketch
    exact: Callable[[Shape], bool] = vectors
    shapes: tuple[tuple[int, ...], ...] | None = field(default=None, kw_only=True)
    formula: ClassVar[str] = "P = blockdiag(P_b)"

    def __post_init__(self) -> None:
        if not isinstance(self.sketch, Sketch) or not all(f.init for f in fields(self.sketch)):
            raise TypeError(
                f"PerLayer: sketch = {self.sketch!r} is not allowed; it must be a sketch with a rank or a ratio"
            )
        if not callable(self.exact):
            raise TypeError(
                f"PerLayer: exact = {self.exact!r} is not allowed; it must be a function of a shape"
            )

    def bind(self, shapes: Sequence[Shape]) -> PerLayer:
        """The same for parameters of these shapes, which fixes every layer's rank."""
        return replace(self, shapes=tuple(tuple(shape) for shape in shapes))

    def blocks(self) -> list[Block]:
        """One block for each parameter that has entries."""
        return list(self._blocks)

    @cached_property
    def _blocks(self) -> tuple[Block, ...]:
        if self.shapes is None:
            raise TypeError(
                "PerLayer: the shapes of the parameters are not known yet; call bind(shapes) first"
            )
        sizes = [math.prod(shape) for shape in self.shapes]
        sketched = [bool(n) and not self.exact(shape) for n, shape in zip(sizes, self.shapes, strict=True)]
        chosen = iter(
            self.sketch.divided([shape for shape, own in zip(self.shapes, sketched, strict=True) if own])
        )
        families = [next(chosen) if own else Identity() for own in sketched]
        return tuple(Block(i, (i,), n, families[i]) for i, n in enumerate(sizes) if n)

    def _fits(self, dimension: int) -> tuple[Block, ...]:
        found = sum(block.dimension for block in self._blocks)
        if found != dimension:
            raise ValueError(
                f"PerLayer: dimension = {dimension!r} is not allowed; it is bound to {found} entries in all"
            )
        return self._blocks

    def rank_in(self, dimension: int) -> int:
        """The sum of the layers' ranks."""
        return sum(block.sketch.rank_in(block.dimension) for block in self._fits(dimension))

    def cost(self, dimension: int) -> float:
        """The sum of the layers' costs."""
        return sum(block.sketch.cost(block.dimension) for block in self._fits(dimension))

    def draw(self, dimension: int, *, seed: int = 0, step: int = 0, block: int = 0) -> Draw:
        """The product of the layers' matrices; layer b has the draw that its own `Block` has (at block 0)."""
        # Further blocks are told apart by their seeds; block 0 keeps the seed, so that layers agree with `blocks`.
        seed = seed if block == 0 else key_of(seed, 0, block)
        return ProductDraw([part.draw(seed=seed, step=step) for part in self._fits(dimension)])

    def _draw(self, dimension: int, key: int) -> Draw:
        return self.draw(dimension, seed=key)

    def nu(self, dimension: int) -> float:
        """max_b ν_b."""
        return max(block.sketch.nu(block.dimension) for block in self._fits(dimension))

    def smoothed(self, L: Tensor) -> Tensor:
        """L with each diagonal block replaced by E[W_b L_bb W_b]."""
        found = L.double().clone()
        for block, part in self._parts(L.shape[0]):
            where = (part,) * L.dim()
            found[where] = block.sketch.smoothed(L[where])
        return found

    def _parts(self, dimension: int) -> Iterator[tuple[Block, slice]]:
        start = 0
        for block in self._fits(dimension):
            yield block, slice(start, start + block.dimension)
            start += block.dimension

    def smoothness_bound(self, curvature: Curvature, minus: float = 0.0) -> float:
        """(1 − minus) λ_max + max_b λ_max(E[W_b L_bb W_b] − L_bb), from λ_max and trace of L_bb."""
        excess = 0.0
        for block, part in self._parts(curvature.dimension):
            diagonal = None if curvature.diagonal is None else curvature.diagonal[part]
            trace = curvature.trace if diagonal is None else float(diagonal.sum())
            largest = min(curvature.largest, trace)
            if largest > 0:
                n = block.dimension
                known = Curvature(n, largest, max(largest, min(trace, n * largest)), diagonal)
                excess = max(excess, block.sketch.smoothness_bound(known, minus=1.0))
        return (1 - minus) * curvature.largest + excess
