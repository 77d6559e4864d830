"""Matrices, or tensors of any order, cut into blocks of limited size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """Blocks of one shape: where they start, how many of them there are, and how long they are, by dimension."""

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many blocks there are of this shape."""
        return math.prod(self.counts)

    @property
    def region(self) -> tuple[slice, ...]:
        """The part of a stack [k, …] that they cover together."""
        sides = zip(self.starts, self.counts, self.lengths, strict=True)
        return (slice(None), *(slice(start, start + count * length) for start, count, length in sides))


class Blocks:
    """How tensors of one size are cut into blocks of at most `limit` along every dimension.

    Blocks have length `limit` from the start; what is left at the end of a dimension is shorter. Tensors come in
    stacks [k, *size]; blocks of one shape make one stack.

    Example:
        >>> blocks = Blocks((5, 4), limit=2)
        >>> x = torch.arange(20.0).view(1, 5, 4)
        >>> [tuple(b.shape) for b in blocks.cut(x)]
        [(4, 2, 2), (2, 1, 2)]
        >>> torch.equal(blocks.join(blocks.cut(x)), x)
        True
    """

    def __init__(self, size: Sequence[int], limit: int) -> None:
        self.size = tuple(size)
        self.kinds = [
            Kind(*(tuple(values) for values in zip(*sides, strict=True)))
            for sides in itertools.product(*(list(_sides(length, limit)) for length in size))
        ]

    def cut(self, x: Tensor) -> list[Tensor]:
        """Stacks [k · count, …] of blocks, one for each shape of block, from [k, *size]."""
        return [self._cut(x[kind.region], kind) for kind in self.kinds]

    def _cut(self, x: Tensor, kind: Kind) -> Tensor:
        if kind.count == 1:
            return x
        order = len(self.size)
        grid = [length for pair in zip(kind.counts, kind.lengths, strict=True) for length in pair]
        apart = x.reshape(x.shape[0], *grid).permute(0, *range(1, 2 * order, 2), *range(2, 2 * order + 1, 2))
        return apart.reshape(-1, *kind.lengths)

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """Tensors [k, *size] from their blocks: undoes `cut`."""
        if len(self.kinds) == 1 and self.kinds[0].count == 1:
            return blocks[0]
        order = len(self.size)
        k = blocks[0].shape[0] // self.kinds[0].count
        whole = blocks[0].new_empty(k, *self.size)
        between = [axis for i in range(order) for axis in (1 + i, 1 + order + i)]
        for own, kind in zip(blocks, self.kinds, strict=True):
            grid = own.reshape(k, *kind.counts, *kind.lengths).permute(0, *between)
            whole[kind.region] = grid.reshape(
                k, *(c * b for c, b in zip(kind.counts, kind.lengths, strict=True))
            )
        return whole

    # For one dimension, every block has a square matrix as long as it is there. A single one is kept as it is, several
    # of one size are stacked, several of different sizes stand one after another, flat.

    def squares_shape(self, dimension: int) -> tuple[int, ...]:
        """The shape in which the square matrices of one dimension are kept for one tensor.

        Example:
            >>> [Blocks(size, limit=4).squares_shape(0) for size in ((3, 4), (8, 6), (6, 4))]
            [(3, 3), (4, 4, 4), (20,)]
        """
        lengths = [kind.lengths[dimension] for kind in self.kinds]
        count = sum(kind.count for kind in self.kinds)
        if len(set(lengths)) > 1:
            return (sum(kind.count * b * b for kind, b in zip(self.kinds, lengths, strict=True)),)
        return (lengths[0], lengths[0]) if count == 1 else (count, lengths[0], lengths[0])

    def unpack(self, kept: Tensor, dimension: int) -> list[Tensor]:
        """Stacks [k · count, b, b], one for each shape of block, from what is kept, [k, …]."""
        flat, found, start = kept.reshape(kept.shape[0], -1), [], 0
        for kind in self.kinds:
            b = kind.lengths[dimension]
            found.append(flat[:, start : start + kind.count * b * b].reshape(-1, b, b))
            start += kind.count * b * b
        return found

    def pack(self, squares: Sequence[Tensor], dimension: int) -> Tensor:
        """What is kept, [k, …], from stacks [k · count, b, b]: undoes `unpack`."""
        k = squares[0].shape[0] // self.kinds[0].count
        flat = [own.reshape(k, -1) for own in squares]
        whole = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        return whole.reshape(k, *self.squares_shape(dimension))


def _sides(length: int, limit: int) -> Iterator[tuple[int, int, int]]:
    """Start, number and length of the blocks along one dimension: the full ones, and the last one."""
    full, rest = divmod(length, limit)
    if full:
        yield 0, full, limit
    if rest or not full:
        yield full * limit, 1, rest


def merged(size: Sequence[int], limit: int) -> tuple[int, ...]:
    """A size with neighbouring dimensions, from the last, merged as long as their product is within the limit.

    Dimensions of length one are dropped.

    Example:
        >>> merged((64, 32, 3, 3), 1024), merged((2, 3, 1, 4), 6), merged((), 8)
        ((64, 288), (6, 4), (1,))
    """
    found: list[int] = []
    for length in reversed(size):
        if found and found[-1] * length <= limit:
            found[-1] *= length
        elif length != 1:
            found.append(length)
    return tuple(reversed(found)) or (1,)
