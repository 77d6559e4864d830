"""Where the parts of a divided tensor lie, and how wholes are put together and divided again."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from hasten.engine.owners import Owners, Piece
from hasten.sharding import _box, _group, division, placed, whole

SHAPES = [(5, 3), (1, 4), (7,), (2, 3, 4), (0, 3), (3, 1)]


@given(st.data())
def test_parts_are_those_that_chunking_gives(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    sides = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    kinds = [st.just(Replicate()), st.integers(0, len(shape) - 1).map(Shard)]
    placements: list[Any] = [data.draw(st.one_of(kinds)) for _ in sides]
    whole = torch.arange(math.prod(shape)).reshape(shape)
    mesh = SimpleNamespace(size=lambda i: sides[i])
    seen = torch.zeros(shape)
    for number in range(math.prod(sides)):
        coordinate = [int(c) for c in torch.unravel_index(torch.tensor(number), sides)]
        part = whole
        for side, at, placement in zip(sides, coordinate, placements, strict=True):
            if isinstance(placement, Shard):
                pieces = part.chunk(side, placement.dim)
                empty = part.narrow(placement.dim, 0, 0)
                part = pieces[at] if at < len(pieces) else empty
        box = _box(torch.Size(shape), mesh, placements, coordinate)
        assert torch.equal(whole[box], part)
        seen[box] += 1
    copies = math.prod(n for n, p in zip(sides, placements, strict=True) if p.is_replicate())
    assert (seen == copies).all()


def test_a_strided_shard_was_cut_last() -> None:
    mesh = SimpleNamespace(size=lambda i: 2)
    placements = [_StridedShard(0, split_factor=2), Shard(0)]
    found = [_box(torch.Size((8,)), mesh, placements, [i, j])[0] for i in range(2) for j in range(2)]
    assert [(s.start, s.stop) for s in found] == [(0, 2), (4, 6), (2, 4), (6, 8)]


def layouts(world: int) -> list[tuple[Any, list[Any]]]:
    line = init_device_mesh("cpu", (world,))
    if world == 2:
        return [(line, [Shard(0)])]
    plane = init_device_mesh("cpu", (2, world // 2))
    return [(line, [Shard(0)]), (plane, [Shard(0), Shard(0)]), (plane, [Replicate(), Shard(0)])]


def round_trips(rank: int, world: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in SHAPES]
    for mesh, placements in layouts(world):
        template = [DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim) for t in tensors]
        expected = [t.redistribute(mesh, placements) for t in template]
        divisions = []
        for t, e in zip(tensors, expected, strict=True):
            found = placed(t, like=e)
            assert torch.equal(found.to_local(), e.to_local())
            assert found.placements == e.placements
            assert torch.equal(whole(e, "parameters"), t)
            assert placed(e, like=e) is e
            assert torch.equal(placed(e, like=torch.empty(0)), t)
            divisions.append(division(e, replicated=True))
        owners = Owners(divisions[0].wire, divisions[0].replicas)
        of = [(i + 1) % owners.wire.world for i in range(len(tensors))]
        shards = [(e.to_local(), e.to_local().to(torch.bfloat16)) for e in expected]
        arrived = owners.gather(
            [Piece(o, d, t) for o, d, own in zip(of, divisions, shards, strict=True) for t in own]
        )()
        wholes = []
        for i, o in enumerate(of):
            exact, short = arrived[2 * i : 2 * i + 2]
            wholes.append(exact)
            assert (exact is not None) == (short is not None) == (o == owners.wire.rank)
            assert exact is None or torch.equal(exact, tensors[i])
            assert short is None or torch.equal(short, tensors[i].to(torch.bfloat16))
        parts = owners.scatter(
            [
                Piece(o, d, None if t is None else 2 * t, torch.float64)
                for o, d, t in zip(of, divisions, wholes, strict=True)
            ]
        )
        for part, e in zip(parts, expected, strict=True):
            assert torch.equal(part, 2 * e.to_local().double())
    return True


@pytest.mark.parametrize("world", [2, 4])
def test_wholes_are_put_together_and_divided_again(teams, world: int) -> None:
    assert all(teams(world).run(round_trips))


def among_some(rank: int, world: int) -> tuple[list[int], float]:
    """As on a plane that is a part of all workers, for which torch has no group."""
    mesh = init_device_mesh("cpu", (2, 2))
    with mock.patch("torch.distributed.get_world_size", return_value=8):
        group = _group(mesh, (0, 1))
        assert _group(mesh, (0, 1)) is group
    assert group is not torch.distributed.group.WORLD
    found = torch.tensor(float(rank))
    torch.distributed.all_reduce(found, group=group)
    return torch.distributed.get_process_group_ranks(group), float(found)


def test_planes_of_some_workers_have_a_group(four) -> None:
    assert four.run(among_some) == [([0, 1, 2, 3], 6.0)] * 4


def summands(rank: int, world: int) -> str:
    mesh = init_device_mesh("cpu", (world,))
    try:
        division(DTensor.from_local(torch.ones(2), mesh, [Partial()], run_check=False))
    except RuntimeError as error:
        return str(error)
    return ""


def test_summands_are_refused(pair) -> None:
    assert all("only a summand" in message for message in pair.run(summands))


def test_plain_tensors_are_whole() -> None:
    t: Tensor = torch.ones(2)
    assert division(t) is None
    assert whole(t, "parameters") is not None
    assert placed(t, like=torch.zeros(2)) is t
