"""Subspace optimizers on what arrives over a network: the same as one process on the averaged gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_hook import data, network
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel as DDP

import hasten
from hasten.distributed import SubspaceHook
from hasten.sketches import BalancedCountSketch, PerLayer

STEPS = 8


def trajectory(model: Any, opt: Any, x: Tensor, y: Tensor, toggles: bool = False) -> list[list[Tensor]]:
    """The parameters after every step."""
    found = []
    for k in range(STEPS):
        opt.step(lambda: ((model(x) - y) ** 2).mean())
        if toggles and k % 3 == 1:
            with opt.evaluating():
                found.append([p.detach().clone() for p in model.parameters()])
        found.append([p.detach().clone() for p in model.parameters()])
    return found


def one_process(kind: str, world: int, options: dict[str, Any], toggles: bool = False) -> Any:
    """The reference: the whole batch in one process, the same subspaces."""
    net = network()
    x, y = data(world)
    sketch = PerLayer(BalancedCountSketch(ratio=8))
    opt = getattr(hasten, kind)(net, sketch=sketch, seed=3, **options)
    return trajectory(net, opt, x, y, toggles), opt.oracle_calls


def workers(
    rank: int, world: int, kind: str, cap: float, ddp: dict[str, Any], options: dict[str, Any], toggles: bool
) -> Any:
    model = DDP(network(), bucket_cap_mb=cap, **ddp)
    hook = SubspaceHook(BalancedCountSketch(ratio=8), seed=3).register(model)
    opt = getattr(hasten, kind)(model, oracle=hook.oracle, **options)
    x, y = (t.chunk(world)[rank] for t in data(world))
    found = trajectory(model, opt, x, y, toggles)
    return found, opt.oracle_calls, {n: (t.calls, t.payload) for n, t in opt.communication.parts.items()}


SENTENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "unified": ("SubspaceNesterov", {"smoothness": 20.0}),
    "strong": (
        "SubspaceNesterov",
        {"smoothness": 20.0, "strong_convexity": 0.1, "schedule": "strongly convex"},
    ),
    "convex": ("SubspaceNesterov", {"smoothness": 20.0, "schedule": "convex"}),
    "decay": ("SubspaceNesterov", {"smoothness": 20.0, "weight_decay": 0.1, "strong_convexity": 0.01}),
    "restart": ("SubspaceNesterov", {"smoothness": 20.0, "restart": 3}),
    "restart by value": ("SubspaceNesterov", {"smoothness": 20.0, "restart": 2, "restart_by_value": True}),
    "warm": ("SubspaceNesterov", {"smoothness": 20.0, "warm_start": True}),
    "descent": ("SubspaceGradientDescent", {"smoothness": 20.0, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("cap", [0.01, 25.0])
@pytest.mark.parametrize("name", SENTENCES)
def test_workers_are_one_process_on_the_averaged_gradient(teams, world: int, cap: float, name: str) -> None:
    kind, options = SENTENCES[name]
    toggles = kind == "SubspaceNesterov"
    found = teams(world).run(workers, kind, cap, {}, options, toggles)
    expected, calls = one_process(kind, world, options, toggles)
    for k, step in enumerate(expected):
        for i, p in enumerate(step):
            for rank in range(world):
                assert torch.equal(found[rank][0][k][i], found[0][0][k][i])
            torch.testing.assert_close(found[0][0][k][i], p, rtol=0, atol=1e-12)
    assert found[0][1] == calls
    extra = {"loss"} if "value" in name else set()
    assert set(found[0][2]) == {"gradients"} | extra
    assert all(found[0][2][part] == (STEPS, 8 * STEPS) for part in extra)
