"""Every optimizer over sharded parameters: the trajectory of one process, and states divided like their parameters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from hasten.sharding import division

sys.path.append(str(Path(__file__).parents[1] / "contract"))
from entries import ENTRIES, Entry  # the contract suite's one table

SHAPES = ((7, 3), (5,), (), (0, 2), (3, 2, 2, 2), (1, 6))
BY_NAME = {entry.name: entry for entry in ENTRIES}


def start(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def targets(k: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 + k)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def meshes(world: int) -> dict[str, Any]:
    return {
        "line": init_device_mesh("cpu", (world,)),
        "plane": init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("first", "second")),
    }


def placed(t: Tensor, mesh: Any, placements: list[Any]) -> DTensor:
    """Cut on every worker, so that nothing is sent."""
    whole = DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(mesh, placements).detach()


def divided(params: list[Tensor], layout: str, world: int) -> list[Tensor]:
    """The same parameters in a layout."""
    mesh = meshes(world)["plane" if "of" in layout else "line"]
    found = []
    for i, p in enumerate(params):
        second = Shard(1 if p.dim() > 1 else 0)
        placements: list[Any] = {
            "rows": [Shard(0)],
            "columns": [second],
            "mixed": [Shard(0)] if i % 2 == 0 else [Replicate()],
            "replicas of shards": [Replicate(), Shard(0)],
            "rows of columns": [Shard(0), second],
        }[layout]
        if p.dim() == 0:
            placements = [Replicate()] * mesh.ndim
        plain = layout == "mixed" and i == 1
        found.append((p.clone() if plain else placed(p, mesh, placements)).requires_grad_())
    return found


def full(t: Tensor) -> Tensor:
    return t.full_tensor().detach().clone() if isinstance(t, DTensor) else t.detach().clone()


def closure_of(params: list[Tensor], k: int) -> Any:
    """The loss Σ ‖p − target‖²/2, with a new target in every step, as a closure that leaves the gradient."""

    def closure() -> Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        for p, target in zip(params, targets(k, params[0].dtype), strict=True):
            if isinstance(p, DTensor):
                target = placed(target, p.device_mesh, list(p.placements))
            p.grad = p.detach() - target
            loss = loss + full(p.grad.square().sum().double()) / 2
        return loss

    return closure


def left(params: list[Tensor], k: int) -> None:
    """The same gradient without the loss, which would be summed over the workers."""
    for p, target in zip(params, targets(k, params[0].dtype), strict=True):
        if isinstance(p, DTensor):
            target = placed(target, p.device_mesh, list(p.placements))
        p.grad = p.detach() - target


def run(entry: Entry, params: list[Tensor], steps: int = 4, **engine: Any) -> tuple[list[Tensor], Any]:
    opt = entry(params, **engine)
    for k in range(steps):
        if entry.closure:
            opt.step(closure_of(params, k))
        else:
            left(params, k)
            opt.step()
    return [full(p) for p in params], opt


def trajectories(rank: int, world: int, layout: str) -> dict[str, Any]:
    found = {}
    for entry in ENTRIES:
        values, opt = run(entry, divided(start(), layout, world), engine="eager")
        for p, state in opt.state.items():
            shapes = opt.state_shapes(p)
            own = {slot.name for slot in opt.composition_of(p).slots if slot.buffer.shape is not None}
            for name, t in state.items():
                assert tuple(t.shape) == shapes[name], (entry.name, name)
                if isinstance(p, DTensor) and t.shape == p.shape and name not in ("step",) and t.dim():
                    # What has a shape of its own is divided by rows, where its parameter is divided at all.
                    assert isinstance(t, DTensor) == (name not in own or division(p) is not None), (
                        entry.name,
                        name,
                    )
                    assert name in own or (t.placements == p.placements and t.device_mesh == p.device_mesh)
        together = any(c.grain != "element" or c.measuring for c in map(opt.composition_of, opt.state))
        found[entry.name] = values, opt.communication.total.calls, together
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, list[Tensor]]:
    return {
        entry.name: run(entry, [p.requires_grad_() for p in start()], engine="eager")[0] for entry in ENTRIES
    }


@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (2, "rows"),
        (2, "columns"),
        (2, "mixed"),
        (4, "rows"),
        (4, "replicas of shards"),
        (4, "rows of columns"),
    ],
)
def test_the_trajectory_is_that_of_one_process(teams, alone, world: int, layout: str) -> None:
    found = teams(world).run(trajectories, layout)
    for name, expected in alone.items():
        for rank in range(world):
            for a, b, first in zip(found[rank][name][0], expected, found[0][name][0], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
                assert torch.equal(a, first), name
        _, calls, together = found[0][name]
        assert (calls > 0) == (together or name.startswith("Subspace")), name
