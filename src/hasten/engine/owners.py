"""Whole matrices from shards: each is gathered to one worker, worked on there, and handed back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.engine.structure import PLAIN, Structure
from hasten.sharding import Division
from hasten.wire import Wire, wait

_ALIGNMENT = 8
"""Every piece of a message starts at a multiple of so many bytes, so that it can be read as any dtype."""


def cost(shape: Sequence[int], structure: Structure = PLAIN) -> int:
    """m · n · min(m, n) of every m × n matrix in a tensor, what a decomposition of it takes.

    Example:
        >>> cost((4, 3)), cost((4, 3, 2)), cost((4, 3, 2), Structure("stack")), cost((5,))
        (36, 96, 48, 5)
    """
    if len(shape) < 2:
        return math.prod(shape)
    count, _, columns = structure.matrix(shape)
    return sum(count * rows * columns * min(rows, columns) for rows in structure.heights(shape))


def balanced(costs: Sequence[int], workers: int) -> list[int]:
    """A worker for each task, the same list on all of them: the longest first, to the least loaded.

    No worker gets more than 4/3 of the load that it has in the best of all assignments (Graham, 1969, SIAM J. Appl.
    Math. 17:416).

    Example:
        >>> balanced([5, 3, 3, 2], workers=2)
        [0, 1, 1, 0]
    """
    loads = [0] * workers
    found = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        found[task] = min(range(workers), key=lambda w: (loads[w], w))
        loads[found[task]] += costs[task]
    return found


def batches(
    owner: Sequence[int], costs: Sequence[int], sizes: Sequence[int], workers: int, budget: int
) -> list[list[int]]:
    """Tasks that are exchanged together, the same on all workers: of each owner as many as fit a budget, at least one.

    Every owner takes its longest tasks first, so that those of one batch take about equally long.

    Example:
        >>> batches([0, 1, 1, 0], [5, 3, 3, 2], [4, 2, 2, 2], workers=2, budget=4)
        [[0, 1, 2], [3]]
    """
    found: list[list[int]] = []
    for worker in range(workers):
        own = sorted((i for i, o in enumerate(owner) if o == worker), key=lambda i: (-costs[i], i))
        number, filled = 0, 0
        for i in own:
            if filled and filled + sizes[i] > budget:
                number, filled = number + 1, 0
            filled += sizes[i]
            found += [[]] if number == len(found) else []
            found[number].append(i)
    return [sorted(batch) for batch in found]


class Piece(NamedTuple):
    """One thing that travels: to or from its owner, how it is divided, and this worker's end of it.

    `tensor` is this worker's part on the way to the owner; on the way back it is the whole, on the owner only.
    """

    owner: int
    division: Division
    tensor: Tensor | None
    dtype: torch.dtype | None = None
    """In which it travels back."""


class Owners:
    """The two exchanges that make shards whole on one worker, and shards of what is whole there.

    What travels together goes in one collective each way. Workers that hold replicas of the same shards own different
    matrices: an owner gathers from those that hold its own copy, and sends to all.

    Args:
        wire: the workers, with all replicas.
        replicas: which copy each of them holds a part of; empty where there is only one.
        device: where the tensors are.
        part: what the traffic is counted as.

    Example:
        >>> import torch.distributed as dist
        >>> from hasten.wire import Wire
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> all_of_it = Division(torch.Size((2, 3)), Wire(), ((slice(0, 2), slice(0, 3)),), 0)
        >>> owners = Owners(all_of_it.wire)
        >>> (whole,) = owners.gather([Piece(0, all_of_it, torch.ones(2, 3))])()
        >>> owners.scatter([Piece(0, all_of_it, 2 * whole, torch.float32)])[0].sum()
        tensor(12.)
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        wire: Wire,
        replicas: Sequence[int] = (),
        device: torch.device | str = "cpu",
        part: str = "matrices",
    ) -> None:
        self.wire, self.device, self.part = wire, device, part
        self.replicas = list(replicas) or [0] * wire.world

    def gather(self, pieces: Sequence[Piece]) -> Callable[[], list[Tensor | None]]:
        """Start bringing pieces to their owners; what is returned waits, and gives those that this worker owns, whole.

        Args:
            pieces: with this worker's parts; the same ones, of the same dtypes, on every worker.
        """
        me, world = self.wire.rank, range(self.wire.world)
        wholes = [
            p.tensor.new_empty(p.division.shape) if p.owner == me and p.tensor is not None else None
            for p in pieces
        ]
        outgoing = [
            [p.tensor for p in pieces if p.owner == r and p.tensor is not None] if self._shares(r) else []
            for r in world
        ]
        incoming = [
            [w[p.division.boxes[r]] for p, w in zip(pieces, wholes, strict=True) if w is not None]
            if self._shares(r)
            else []
            for r in world
        ]
        arrive = self._started(outgoing, incoming)

        def arrived() -> list[Tensor | None]:
            arrive()
            return wholes

        return arrived

    def scatter(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Hand every worker its parts of pieces that their owners have whole; gives this worker's parts."""
        me, world = self.wire.rank, range(self.wire.world)
        parts = [torch.empty(p.division.part_shape(me), dtype=p.dtype, device=self.device) for p in pieces]
        outgoing = [
            [
                p.tensor[p.division.boxes[r]].to(p.dtype)
                for p in pieces
                if p.owner == me and p.tensor is not None
            ]
            for r in world
        ]
        incoming = [[part for p, part in zip(pieces, parts, strict=True) if p.owner == r] for r in world]
        self._started(outgoing, incoming)()
        return parts

    def _shares(self, other: int) -> bool:
        """Whether another worker holds parts of the same copy as this one."""
        return self.replicas[other] == self.replicas[self.wire.rank]

    def _started(
        self, outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[Sequence[Tensor]]
    ) -> Callable[[], None]:
        """One collective: `outgoing[r]` to each worker r, into the tensors `incoming[r]` from each."""
        to, of = ([sum(map(_length, pieces)) for pieces in side] for side in (outgoing, incoming))
        message = torch.zeros(sum(to), dtype=torch.uint8, device=self.device)
        for piece, place in _places(outgoing, message):
            place.copy_(piece)
        future = self.wire.exchange(message, to, of, self.part)

        def arrive() -> None:
            for piece, place in _places(incoming, wait(future)):
                piece.copy_(place)

        return arrive


def _length(t: Tensor) -> int:
    return -(-t.numel() * t.element_size() // _ALIGNMENT) * _ALIGNMENT


def _places(pieces: Sequence[Sequence[Tensor]], message: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each piece, and its place in a message of bytes, seen in its own dtype and shape."""
    start = 0
    for piece in (piece for own in pieces for piece in own):
        place = message[start : start + piece.numel() * piece.element_size()]
        yield piece, place.view(piece.dtype).view(piece.shape)
        start += _length(piece)
