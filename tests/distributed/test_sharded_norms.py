"""Groups with norms of their own, over sharded parameters: the same as in one process."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import hasten
from hasten.transforms import NORMS

NAMES = sorted(NORMS)


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in NAMES]


def whole(t: Tensor) -> Tensor:
    return t.full_tensor().detach().clone() if isinstance(t, DTensor) else t.detach().clone()


def moved(params: list[Tensor]) -> list[Tensor]:
    groups = [{"params": [p], "norm": name} for p, name in zip(params, NAMES, strict=True)]
    opt = hasten.SteepestDescent(groups, lr=0.1, weight_decay=0.1, backend="svd")
    for k in range(3):
        for i, p in enumerate(params):
            generator = torch.Generator().manual_seed(100 * k + i)
            g = whole(p) + torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if isinstance(p, DTensor):
                g = DTensor.from_local(g, p.device_mesh, [Replicate()], run_check=False)
                g = g.redistribute(p.device_mesh, p.placements).detach()
            p.grad = g
        opt.step()
    return [whole(p) for p in params]


def sharded(rank: int, world: int) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (world,))
    params = []
    for i, p in enumerate(start()):
        replicated = DTensor.from_local(p, mesh, [Replicate()], run_check=False)
        params.append(replicated.redistribute(mesh, [Shard(i % 2)]).detach().requires_grad_())
    return moved(params)


def test_two_workers_move_as_one(pair) -> None:
    expected = moved([p.requires_grad_() for p in start()])
    for found in pair.run(sharded):
        for name, a, b in zip(NAMES, found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
