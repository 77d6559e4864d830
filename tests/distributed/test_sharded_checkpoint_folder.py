"""Checkpoints of models whose parameters are sharded among the workers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import same
from torch import nn
from torch.distributed.fsdp import fully_shard

import hasten
from hasten.distributed import CheckpointError, load, save

OPTIMIZERS = {
    "AdamW": lambda net: hasten.AdamW(net, lr=1e-2),
    "ScheduleFreeAdamW": lambda net: hasten.ScheduleFreeAdamW(net, lr=1e-2),
    "Adafactor": lambda net: hasten.Adafactor(net, lr=1e-2),
    "torch": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-2),
}


class Training:
    """A sharded model and its optimizer, on one worker."""

    def __init__(self, kind: str, rank: int, sharded: bool = True) -> None:
        torch.manual_seed(1)
        self.rank, self.taken = rank, 0
        self.model = nn.Sequential(nn.Linear(7, 10), nn.Tanh(), nn.Linear(10, 5), nn.Tanh(), nn.Linear(5, 1))
        self.model.register_buffer("own", torch.tensor(float(rank)))
        for layer in (*self.model, self.model) if sharded else ():
            if not isinstance(layer, nn.Tanh):
                fully_shard(layer)
        self.opt: Any = OPTIMIZERS[kind](self.model)

    def run(self, steps: int) -> Training:
        for _ in range(steps):
            generator = torch.Generator().manual_seed(100 * self.rank + self.taken)
            x = torch.randn(16, 7, generator=generator)
            self.opt.zero_grad()
            (self.model(x) - x.sin().sum(1, keepdim=True)).square().mean().backward()
            self.opt.step()
            self.taken += 1
        return self

    def everything(self) -> Any:
        return whole(copy.deepcopy((self.model.state_dict(), self.opt.state_dict())))


def whole(value: Any) -> Any:
    """Shards put together."""
    if isinstance(value, dict):
        return {key: whole(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [whole(each) for each in value]
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def interrupted(rank: int, world: int, kind: str, home: Path) -> tuple[bool, Any]:
    straight = Training(kind, rank).run(3)
    save(home, straight.model, straight.opt, extra=straight.taken)
    saved = straight.everything()
    straight.run(3)
    resumed = Training(kind, rank).run(1)
    resumed.taken = load(home, resumed.model, resumed.opt).extra
    resumed.run(3)
    return same(straight.everything(), resumed.everything()), saved


def loaded(rank: int, world: int, kind: str, home: Path) -> Any:
    training = Training(kind, rank)
    load(home, training.model, training.opt)
    state = training.everything()
    training.run(1)
    return state


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resuming_and_another_number_of_workers(teams, tmp_path: Path, kind: str) -> None:
    found = teams(4).run(interrupted, kind, tmp_path)
    assert [equal for equal, _ in found] == [True] * 4
    for rank, state in enumerate(teams(2).run(loaded, kind, tmp_path)):
        assert same(state, found[rank][1])
    alone = Training(kind, 0, sharded=False)
    load(tmp_path, alone.model, alone.opt)
    assert same(alone.everything(), found[0][1])
    alone.run(1)


def refused(rank: int, world: int, home: Path) -> dict[str, Any]:
    saved, fresh = Training("AdamW", rank).run(2), Training("AdamW", rank).run(1)
    before, said = fresh.everything(), {}

    def attempt(name: str, model: nn.Module, opt: Any, folder: Path = home) -> None:
        try:
            load(folder, model, opt)
        except CheckpointError as error:
            said[name] = str(error)

    path = save(home, saved.model, saved.opt)
    plain = nn.Linear(7, 1)
    attempt("plain", plain, hasten.AdamW(plain))
    attempt("optimizer", fresh.model, hasten.Lion(fresh.model))
    save(home.with_name("plain"), plain, hasten.AdamW(plain))
    attempt("whole", fresh.model, fresh.opt, home.with_name("plain"))
    shard = path / "sharded" / "__1_0.distcp"
    if rank == 0:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    torch.distributed.barrier()
    attempt("a bit", fresh.model, fresh.opt)
    torch.distributed.barrier()
    if rank == 0:
        shard.unlink()
    torch.distributed.barrier()
    attempt("missing", fresh.model, fresh.opt)
    return {**said, "same": same(fresh.everything(), before)}


def test_what_does_not_fit_or_is_damaged_is_refused(pair, tmp_path: Path) -> None:
    found = pair.run(refused, tmp_path / "sharded")
    assert found[0] == found[1]
    said = found[0]
    assert "does not fit the model: 'own' is () torch.float32, in the model there is none" in said["plain"]
    assert "its parameters are the same on all workers, the model's sharded" in said["whole"]
    assert (
        "'exp_avg_sq of 0.weight' is (10, 7) torch.float32, in the optimizer there is none"
        in said["optimizer"]
    )
    assert "__1_0.distcp is damaged" in said["a bit"]
    assert "__1_0.distcp is missing" in said["missing"]
    assert said["same"]
