"""Whole matrices from shards: each is gathered to one worker, worked on there, and handed back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hasten.sharding import Division
from hasten.wire import Wire, wait

_ALIGNMENT = 8
"""Every piece of a message starts at a multiple of so many bytes, so that it can be read as any dtype."""


def cost(shape: Sequence[int]) -> int:
    """m · n · min(m, n) of an m × n matrix, what a decomposition of it takes; further dimensions count as columns.

    Example:
        >>> cost((4, 3)), cost((4, 3, 2)), cost((5,))
        (36, 96, 5)
    """
    if len(shape) < 2:
        return math.prod(shape)
    rows, columns = shape[0], math.prod(shape[1:])
    return rows * columns * min(rows, columns)


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


class Owners:
    """Which worker has which tensor whole, and the two exchanges that make it so and undo it.

    All tensors travel in one collective each way, which moves every entry at most once; workers that hold replicas of
    the same shards do the same among themselves.

    Args:
        divisions: how the tensors are divided, all among the same workers.
        device: where they are.
        part: what the traffic is counted as.

    Example:
        >>> import torch.distributed as dist
        >>> from hasten.wire import Wire
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> everything = (slice(0, 2), slice(0, 3))
        >>> owners = Owners([Division(torch.Size((2, 3)), Wire(), (everything,), 0)])
        >>> (whole,) = owners.gather([[torch.ones(2, 3)]])[0]
        >>> owners.scatter({0: ([2 * whole], [])}, [[torch.float32]], [[]])[0][0].sum()
        tensor(12.)
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        divisions: Sequence[Division],
        device: torch.device | str = "cpu",
        part: str = "matrices",
    ) -> None:
        self.divisions = list(divisions)
        self.device = device
        self.part = part
        self.wire: Wire = divisions[0].wire
        self.owner = balanced([cost(d.shape) for d in divisions], self.wire.world)

    def owned(self, rank: int) -> list[int]:
        """The positions of the tensors that a worker has whole."""
        return [i for i, owner in enumerate(self.owner) if owner == rank]

    def gather(self, shards: Sequence[Sequence[Tensor]]) -> dict[int, list[Tensor]]:
        """The wholes, by position, of the tensors that this worker owns.

        Args:
            shards: for each tensor this worker's parts of one or several things of its shape (a gradient, a buffer);
                as many, of the same dtypes, on every worker.
        """
        me = self.wire.rank
        outgoing = [[piece for i in self.owned(r) for piece in shards[i]] for r in range(self.wire.world)]
        wholes = {
            i: [piece.new_empty(self.divisions[i].shape) for piece in shards[i]] for i in self.owned(me)
        }
        incoming = [
            [whole[self.divisions[i].boxes[r]] for i, own in wholes.items() for whole in own]
            for r in range(self.wire.world)
        ]
        self._exchange(outgoing, incoming)
        return wholes

    def scatter(
        self,
        results: Mapping[int, tuple[Sequence[Tensor], Sequence[Tensor]]],
        dtypes: Sequence[Sequence[torch.dtype]],
        copies: Sequence[Sequence[Tensor]],
    ) -> list[list[Tensor]]:
        """Hand every worker its parts of the results, and copies of what all shall have whole.

        Args:
            results: of each tensor that this worker owns, by position: things of its shape, and things to be copied.
            dtypes: for each tensor the dtypes in which the things of its shape travel.
            copies: for each tensor where the copies are put, on every worker.

        Returns:
            For each tensor this worker's parts of the things of its shape.
        """
        me, world = self.wire.rank, range(self.wire.world)
        outgoing = [
            [
                *(t[self.divisions[i].boxes[r]].to(kind) for t, kind in zip(things, dtypes[i], strict=True)),
                *(t.to(target.dtype) for t, target in zip(shared, copies[i], strict=True)),
            ]
            for r in world
            for i, (things, shared) in sorted(results.items())
        ]
        each = len(results)
        parts = [
            [torch.empty(d.part_shape(me), dtype=kind, device=self.device) for kind in kinds]
            for d, kinds in zip(self.divisions, dtypes, strict=True)
        ]
        self._exchange(
            [[t for pieces in outgoing[r * each : (r + 1) * each] for t in pieces] for r in world],
            [[t for i in self.owned(r) for t in (*parts[i], *copies[i])] for r in world],
        )
        return parts

    def _exchange(self, outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[Sequence[Tensor]]) -> None:
        """One collective: `outgoing[r]` to each worker r, into the tensors `incoming[r]` from each."""
        to, of = ([sum(map(_length, pieces)) for pieces in side] for side in (outgoing, incoming))
        message = torch.zeros(sum(to), dtype=torch.uint8, device=self.device)
        for piece, place in _places(outgoing, message):
            place.copy_(piece)
        found = wait(self.wire.exchange(message, to, of, self.part))
        for piece, place in _places(incoming, found):
            piece.copy_(place)


def _length(t: Tensor) -> int:
    return -(-t.numel() * t.element_size() // _ALIGNMENT) * _ALIGNMENT


def _places(pieces: Sequence[Sequence[Tensor]], message: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each piece, and its place in a message of bytes, seen in its own dtype and shape."""
    start = 0
    for piece in (piece for own in pieces for piece in own):
        place = message[start : start + piece.numel() * piece.element_size()]
        yield piece, place.view(piece.dtype).view(piece.shape)
        start += _length(piece)
