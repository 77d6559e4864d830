"""States saved on one number of workers and loaded on another, then stepping on as if nothing had happened."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import hasten

sys.path.append(str(Path(__file__).parents[1] / "contract"))
from entries import ENTRIES

BY_NAME = {entry.name: entry for entry in ENTRIES}
NAMES = [
    "AdamW cosine",
    "Adafactor",
    "Muon",
    "Shampoo",
    "ScheduleFreeAdamW",
    "Prodigy",
    "MARS",
    "Nesterov",
    "SubspaceNesterov",
]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def made(name: str, kind: str, world: int) -> tuple[nn.Module, hasten.Optimizer]:
    model: Any = network()
    if kind == "FSDP":
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif kind == "DDP":
        model = DistributedDataParallel(model)
    plain = model.module if kind == "DDP" else model
    weights = [p for p in plain.parameters() if p.dim() > 1]
    biases = [p for p in plain.parameters() if p.dim() < 2]
    decays = {"weight_decay": 0.0} if "weight_decay" in BY_NAME[name](network()).param_groups[0] else {}
    return model, BY_NAME[name]([{"params": weights}, {"params": biases, **decays}])


def train(model: nn.Module, opt: hasten.Optimizer, steps: range, rank: int = 0, world: int = 1) -> None:
    for k in steps:
        generator = torch.Generator().manual_seed(100 + k)
        x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        y = x.sin().sum(1, keepdim=True)
        opt.zero_grad()
        ((model(x.chunk(world)[rank]) - y.chunk(world)[rank]) ** 2).mean().backward()
        opt.step()


def full(t: Tensor) -> Tensor:
    return t.full_tensor().detach().clone() if isinstance(t, DTensor) else t.detach().clone()


def values(model: nn.Module) -> list[Tensor]:
    return [full(p) for p in model.parameters()]


def saved(rank: int, world: int, folder: str, kind: str, how: str) -> None:
    for name in NAMES:
        model, opt = made(name, kind, world)
        train(model, opt, range(3), rank, world)
        if how == "names":
            weights, state = get_state_dict(model, opt)
        else:
            weights, state = get_model_state_dict(model), opt.state_dict()
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/{name}")


def resumed(rank: int, world: int, folder: str, kind: str, how: str) -> dict[str, Any]:
    found = {}
    for name in NAMES:
        model, opt = made(name, kind, world)
        if how == "names":
            weights, state = get_state_dict(model, opt)
            dcp.load({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/{name}")
            set_state_dict(model, opt, model_state_dict=weights, optim_state_dict=state)
        else:
            weights, state = get_model_state_dict(model), opt.state_dict()
            together = {"model": weights, "optimizer": state}
            dcp.load(together, checkpoint_id=f"{folder}/{name}")
            set_model_state_dict(model, together["model"])
            opt.load_state_dict(together["optimizer"])
        assert [group["step"] for group in opt.param_groups] == [3, 3]
        train(model, opt, range(3, 6), rank, world)
        found[name] = values(model), [group["lr"] for group in opt.param_groups]
    return found


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    found = {}
    for name in NAMES:
        model, opt = made(name, "plain", 1)
        train(model, opt, range(6))
        found[name] = values(model), [group["lr"] for group in opt.param_groups]
    return found


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in NAMES:
        assert found[name][1] == expected[name][1], name
        for a, b in zip(found[name][0], expected[name][0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("before", "after", "kinds", "how"),
    [
        (4, 2, ("FSDP", "FSDP"), "names"),
        (2, 4, ("FSDP", "FSDP"), "positions"),
        (2, 1, ("FSDP", "plain"), "names"),
        (2, 1, ("FSDP", "plain"), "positions"),
        (2, 2, ("DDP", "FSDP"), "names"),
    ],
)
def test_training_goes_on_with_other_workers(
    teams, tmp_path: Path, uninterrupted, before: int, after: int, kinds: tuple[str, str], how: str
) -> None:
    teams(before).run(saved, str(tmp_path), kinds[0], how)
    if after == 1:
        same(resumed(0, 1, str(tmp_path), kinds[1], how), uninterrupted)
        return
    for found in teams(after).run(resumed, str(tmp_path), kinds[1], how):
        same(found, uninterrupted)


def gathered(rank: int, world: int) -> dict[str, bytes]:
    found = {}
    for name in NAMES:
        model, opt = made(name, "FSDP", world)
        train(model, opt, range(3), rank, world)
        file = io.BytesIO()
        weights = get_model_state_dict(model, options=WHOLE)
        torch.save((weights, get_optimizer_state_dict(model, opt, options=WHOLE)), file)
        found[name] = file.getvalue()
    return found


def scattered(rank: int, world: int, files: dict[str, bytes], how: str) -> dict[str, Any]:
    found = {}
    for name in NAMES:
        model, opt = made(name, "FSDP" if world > 1 else "plain", world)
        weights, state = torch.load(io.BytesIO(files[name]), weights_only=True)
        options = WHOLE if world > 1 else None
        set_model_state_dict(model, weights, options=options)
        if how == "names":
            set_optimizer_state_dict(model, opt, optim_state_dict=state, options=options)
        else:
            opt.load_state_dict(state)
        train(model, opt, range(3, 6), rank, world)
        found[name] = values(model), [group["lr"] for group in opt.param_groups]
    return found


def test_a_gathered_state_goes_on_in_one_process(pair, uninterrupted) -> None:
    files = pair.run(gathered)[0]
    assert not dist.is_initialized()
    same(scattered(0, 1, files, "names"), uninterrupted)


@pytest.mark.parametrize("how", ["names", "positions"])
def test_the_state_of_one_process_goes_on_sharded(teams, uninterrupted, how: str) -> None:
    files = {}
    for name in NAMES:
        model, opt = made(name, "plain", 1)
        train(model, opt, range(3))
        state = get_optimizer_state_dict(model, opt) if how == "names" else opt.state_dict()
        file = io.BytesIO()
        torch.save((model.state_dict(), state), file)
        files[name] = file.getvalue()
    for found in teams(4 if how == "names" else 2).run(scattered, files, how):
        same(found, uninterrupted)
