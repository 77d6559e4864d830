"""Tensors that are divided among workers (DTensor, as FSDP2 makes them): the own part, the whole, and who has what.

A tensor is *divided* over those dimensions of its device mesh along which it is sharded. Along the others it is
replicated: there every worker holds the same part, computes the same from it, and needs to be told nothing.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from hasten.wire import Wire, serve, serving, wait

Box = tuple[slice, ...]
"""Where a part lies in the whole: a range of every dimension."""


def is_distributed(t: Any) -> bool:
    """Whether a tensor is a DTensor.

    Example:
        >>> is_distributed(torch.zeros(2))
        False
    """
    # Importing DTensor takes half a second; who holds one has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Tensor) -> Tensor:
    """The part of a tensor that this worker holds, sharing its memory; a plain tensor itself.

    Example:
        >>> local(torch.ones(2))
        tensor([1., 1.])
    """
    if type(t) in _PLAIN or not is_distributed(t):
        return t
    part: Tensor = t._local_tensor  # type: ignore[attr-defined]  # what to_local() returns, in a third of the time
    return part.wait() if hasattr(part, "wait") else part  # what a collective is still filling


_PLAIN = frozenset({Tensor, torch.nn.Parameter})


@dataclass(frozen=True, eq=False)
class Division:
    """Who has which part of a tensor.

    Attributes:
        shape: of the whole.
        wire: the workers among whom it is divided.
        boxes: the part of every one of them, by its rank on the wire; may be empty.
        number: which part is this worker's; the same on all workers that hold the same part.
        replicas: which copy of the whole each worker's part belongs to; empty where there is only one.
    """

    shape: torch.Size
    wire: Wire
    boxes: tuple[Box, ...]
    number: int
    replicas: tuple[int, ...] = ()

    @property
    def mine(self) -> Box:
        """This worker's part."""
        return self.boxes[self.wire.rank]

    def part_shape(self, rank: int) -> tuple[int, ...]:
        """The shape of a worker's part."""
        return tuple(side.stop - side.start for side in self.boxes[rank])


def division(t: Tensor, of: Tensor | None = None, *, replicated: bool = False) -> Division | None:
    """How a tensor is divided; None for one that every worker holds whole.

    Args:
        t: a tensor.
        of: the parameter on whose account its traffic is; `t` itself where it is one.
        replicated: among all workers of its mesh, also those that hold copies of the same part.

    Raises:
        RuntimeError: the tensor is placed in a way that is not supported.

    Example:
        >>> import torch.distributed as dist
        >>> from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> w = distribute_tensor(torch.ones(4, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
        >>> division(w) is None  # one worker has everything
        True
        >>> dist.destroy_process_group()
    """
    if not is_distributed(t):
        return None
    mesh, placements = t.device_mesh, t.placements  # type: ignore[attr-defined]  # a DTensor
    if any(p.is_partial() for p in placements):
        raise RuntimeError(
            f"a tensor with the placements {placements} is not supported: what each worker holds is only a summand; "
            "redistribute it to Replicate() or Shard(dim)"
        )
    over = tuple(i for i, p in enumerate(placements) if _splits(p) and mesh.size(i) > 1)
    coordinate = mesh.get_coordinate()
    if not over or coordinate is None:
        return None
    wire = wire_over(t if of is None else of, mesh, None if replicated else over)
    members = tuple(dist.get_process_group_ranks(wire.group))
    coordinates = _coordinates(tuple(mesh.mesh.reshape(-1).tolist()), tuple(mesh.mesh.shape), members)
    boxes = tuple(_box(t.shape, mesh, placements, c) for c in coordinates)
    number = 0
    for i in over:
        number = number * mesh.size(i) + coordinate[i]
    replicas = tuple(tuple(x for i, x in enumerate(c) if i not in over) for c in coordinates)
    copies = {replica: copy for copy, replica in enumerate(sorted(set(replicas)))}
    of_each = tuple(copies[replica] for replica in replicas) if len(copies) > 1 else ()
    found = Division(t.shape, wire, boxes, number, of_each)
    if found.part_shape(wire.rank) != tuple(local(t).shape):
        raise RuntimeError(
            f"a tensor with the placements {placements} is not supported: this worker holds a part of shape "
            f"{tuple(local(t).shape)}; {found.part_shape(wire.rank)} was expected"
        )
    return found


def divided_like(p: Tensor, shape: Sequence[int], value: float, dtype: torch.dtype) -> Tensor:
    """A tensor of one value, in another shape than a parameter's, divided by rows among the same workers.

    Every worker has it whole where the parameter is not divided, and if it has no dimensions.

    Example:
        >>> divided_like(torch.zeros(2), (3,), 1.0, torch.float32)
        tensor([1., 1., 1.])
    """
    found = division(p) if shape else None
    if found is None:
        return torch.full(tuple(shape), value, dtype=dtype, device=p.device)
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh, placements = _placement(p)
    rows = [Shard(0) if _splits(placement) else Replicate() for placement in placements]
    box = _box(torch.Size(shape), mesh, rows, mesh.get_coordinate())
    own = torch.full([side.stop - side.start for side in box], value, dtype=dtype, device=local(p).device)
    stride = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(own, mesh, rows, run_check=False, shape=torch.Size(shape), stride=stride)


def wire_over(p: Tensor, mesh: Any, over: Sequence[int] | None = None) -> Wire:
    """The wire of a parameter among the workers along some dimensions of a mesh, or along all."""
    group = _group(mesh, tuple(range(mesh.ndim)) if over is None else tuple(over))
    wire = serving(p, group)
    if wire is None:
        wire = Wire(group)
        serve([p], wire)
    return wire


def whole(t: Tensor, part: str, of: Tensor | None = None) -> Tensor:
    """The whole of a tensor on every worker: an all-gather where it is divided, counted as `part`.

    Example:
        >>> whole(torch.ones(2), "parameters")
        tensor([1., 1.])
    """
    found = division(t, of)
    own = local(t).detach()
    if found is None:
        return own
    sizes = [math.prod(found.part_shape(r)) for r in range(found.wire.world)]
    sent = own.new_zeros(max(sizes))  # workers send equally much
    sent[: own.numel()] = own.reshape(-1)
    out = own.new_empty(found.shape)
    everyone = wait(found.wire.gather(sent, part))
    for r, flat in enumerate(everyone):
        out[found.boxes[r]] = flat[: sizes[r]].view(found.part_shape(r))
    return out


def placed(value: Tensor, like: Tensor) -> Tensor:
    """The same value, divided like another tensor; nothing is sent for one that every worker holds whole.

    Example:
        >>> placed(torch.ones(2), like=torch.zeros(2))
        tensor([1., 1.])
    """
    if is_distributed(value):
        if is_distributed(like) and _placement(value) == _placement(like):
            return value
        value = value.full_tensor()  # type: ignore[attr-defined]  # a DTensor
    if not is_distributed(like):
        return value
    found = division(like)
    own = value if found is None else value[found.mine]
    return type(like).from_local(  # type: ignore[attr-defined, no-any-return]  # a DTensor
        own.contiguous(),
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def aligned(g: Tensor, p: Tensor, name_of: Callable[[Tensor], str]) -> Tensor:
    """This worker's part of a gradient; summands that different workers hold are summed first.

    Raises:
        RuntimeError: the gradient is a plain tensor where the parameter is none, or the reverse.
    """
    if is_distributed(g) != is_distributed(p):
        kinds = ["a DTensor" if is_distributed(t) else "a plain tensor" for t in (g, p)]
        raise RuntimeError(f"{name_of(p)} is {kinds[1]}, but its gradient is {kinds[0]}")
    if is_distributed(g) and _placement(g) != _placement(p):
        mesh, placements = _placement(p)
        size = float(local(g).nbytes)
        moved = math.fsum(
            _moved(a, b, size, mesh.size(i))
            for i, (a, b) in enumerate(zip(g.placements, placements, strict=True))  # type: ignore[attr-defined]
        )
        wire_over(p, mesh).count("gradients", int(size), moved, moved)
        g = g.redistribute(mesh, placements)  # type: ignore[attr-defined]
    return local(g)


def total(term: float, of: Tensor) -> float:
    """The sum over all parts of a tensor, from the term of this worker's part.

    Example:
        >>> total(3.0, of=torch.ones(2))
        3.0
    """
    found = division(of)
    if found is None:
        return term
    own = torch.tensor(term, dtype=torch.float64, device=local(of).device)
    return float(wait(found.wire.sum(own, "sums")))


def _placement(t: Any) -> tuple[Any, Any]:
    return t.device_mesh, t.placements


def _moved(a: Any, b: Any, size: float, workers: int) -> float:
    """Bytes that a worker sends to change one placement, with `size` bytes of its own."""
    if a == b or a.is_replicate():
        return 0.0
    if a.is_partial():
        return (2 if b.is_replicate() else 1) * size * (workers - 1) / workers
    return size * (workers - 1) if b.is_replicate() else size * (workers - 1) / workers


def _splits(placement: Any) -> bool:
    return placement.is_shard() or _strided(placement)


def _strided(placement: Any) -> bool:
    return type(placement).__name__ == "_StridedShard"


@functools.lru_cache(maxsize=16)
def _coordinates(
    ranks: tuple[int, ...], sides: tuple[int, ...], members: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """Where the members are on a mesh of these ranks and sides."""
    positions = {rank: i for i, rank in enumerate(ranks)}
    found = torch.unravel_index(torch.tensor([positions[rank] for rank in members]), sides)
    return tuple(zip(*(axis.tolist() for axis in found), strict=True))


def _box(shape: torch.Size, mesh: Any, placements: Sequence[Any], coordinate: Sequence[int]) -> Box:
    """The part at a coordinate of the mesh: each sharded dimension in turn is cut as torch.chunk does.

    A strided shard says that the later dimensions of the mesh were cut first, as FSDP2 does over tensor parallelism.
    """
    plain = [i for i, p in enumerate(placements) if _splits(p) and not _strided(p)]
    strided = [i for i, p in enumerate(placements) if _strided(p)]
    sides = [(0, n) for n in shape]
    for i in (*plain, *reversed(strided)):
        dim = placements[i].dim
        start, stop = sides[dim]
        length = -(-(stop - start) // mesh.size(i))
        first = min(start + coordinate[i] * length, stop)
        sides[dim] = (first, min(first + length, stop))
    return tuple(slice(a, b) for a, b in sides)


_made: WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = WeakKeyDictionary()
"""Groups over several dimensions of a mesh, which torch has none for, by the default group of their time."""


def _group(mesh: Any, over: tuple[int, ...]) -> Any:
    """The process group of the workers that differ from this one along some dimensions of a mesh only."""
    over = tuple(i for i in over if mesh.size(i) > 1) or over[:1]
    if len(over) == 1:
        return mesh.get_group(over[0])
    here = mesh.get_coordinate()
    ranks = mesh.mesh[tuple(slice(None) if i in over else here[i] for i in range(mesh.ndim))]
    members = tuple(sorted(ranks.reshape(-1).tolist()))
    everyone = dist.group.WORLD
    if members == tuple(range(dist.get_world_size())):
        return everyone
    made = _made.setdefault(everyone, {})
    if members not in made:
        made[members] = dist.new_group(list(members), use_local_synchronization=True)
    return made[members]
