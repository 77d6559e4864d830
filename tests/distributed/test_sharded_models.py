"""Modules under FSDP2 and DistributedDataParallel: the same training as in one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import hasten

sys.path.append(str(Path(__file__).parents[1] / "contract"))
from entries import ENTRIES, Entry

STEPS = 3
FEW = [
    "AdamW",
    "MARS exact",
    "Adafactor",
    "Muon",
    "Shampoo",
    "Prodigy",
    "ScheduleFreeAdamW",
    "SubspaceNesterov",
]
BY_NAME = {entry.name: entry for entry in ENTRIES}
UNDETERMINED = ("SOAP",)
"""A gradient of rank 5 with 10 rows leaves half of SOAP's basis to rounding, which sums over workers change: here its
workers are compared with each other only. Whole matrices against divided ones: test_sharded_structures.py."""


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 10), nn.Tanh(), nn.Linear(10, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def batch(k: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + k)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    y = x.sin().sum(1, keepdim=True)
    return x.chunk(world)[rank], y.chunk(world)[rank]


def wrapped(kind: str, world: int) -> nn.Module:
    model: Any = network()
    if kind == "DDP":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (world,))
    if kind == "FSDP over TP":
        plane = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, plane["tensor"], plan)
        mesh = plane["data"]
    if kind == "HSDP":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replica", "shard"))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)  # the other layers, which stay gathered from forward to backward
    return model


def full(t: Tensor) -> Tensor:
    return t.full_tensor().detach().clone() if isinstance(t, DTensor) else t.detach().clone()


def train(
    entry: Entry, model: nn.Module, steps: range, rank: int = 0, world: int = 1, opt: Any = None
) -> tuple[list[Tensor], hasten.Optimizer]:
    opt = entry(model) if opt is None else opt
    for k in steps:
        x, y = batch(k, rank, world)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            return loss

        if entry.closure:
            opt.step(closure)
        else:
            closure()
            opt.step()
    return [full(p) for p in model.parameters()], opt


def trained(rank: int, world: int, kind: str, names: list[str]) -> dict[str, list[Tensor]]:
    share = (rank // 2, 2) if kind == "FSDP over TP" else (rank, world)
    return {name: train(BY_NAME[name], wrapped(kind, world), range(STEPS), *share)[0] for name in names}


@pytest.mark.parametrize(("world", "kind"), [(2, "FSDP"), (2, "DDP"), (4, "HSDP"), (4, "FSDP over TP")])
def test_training_is_that_of_one_process(teams, world: int, kind: str) -> None:
    names = list(BY_NAME) if world == 2 else FEW
    found = teams(world).run(trained, kind, names)
    for name in names:
        expected, _ = train(BY_NAME[name], network(), range(STEPS))
        for rank in range(world):
            for a, b, first in zip(found[rank][name], expected, found[0][name], strict=True):
                assert torch.equal(a, first), name
                if not name.startswith(UNDETERMINED):
                    torch.testing.assert_close(
                        a, b, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
                    )


def evaluated_between(rank: int, world: int) -> tuple[list[Tensor], Tensor]:
    model = wrapped("FSDP", world)
    entry = BY_NAME["ScheduleFreeAdamW"]
    _, opt = train(entry, model, range(3), rank, world)
    x, _ = batch(9)
    with opt.evaluating(), torch.no_grad():
        seen = model(x)
    return train(entry, model, range(3, 5), rank, world, opt)[0], seen


def test_evaluating_between_steps_changes_nothing(pair) -> None:
    found = pair.run(evaluated_between)
    model = network()
    entry = BY_NAME["ScheduleFreeAdamW"]
    _, opt = train(entry, model, range(3))
    x, _ = batch(9)
    with opt.evaluating(), torch.no_grad():
        seen = model(x)
    expected, _ = train(entry, model, range(3, 5), opt=opt)
    for values, output in found:
        torch.testing.assert_close(output, seen, rtol=1e-12, atol=1e-12)
        for a, b in zip(values, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def by_loss_alone(rank: int, world: int, kind: str) -> list[Tensor]:
    model = wrapped(kind, world)
    opt = BY_NAME["AdamW"](model)
    for k in range(STEPS):
        x, y = batch(k, rank, world)
        opt.step(lambda x=x, y=y: ((model(x) - y) ** 2).mean())
        assert all(p.grad is None for p in model.parameters())
    return [full(p) for p in model.parameters()]


@pytest.mark.parametrize("kind", ["FSDP", "DDP"])
def test_a_closure_may_return_the_loss_alone(pair, kind: str) -> None:
    expected, _ = train(BY_NAME["AdamW"], network(), range(STEPS))
    for found in pair.run(by_loss_alone, kind):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
