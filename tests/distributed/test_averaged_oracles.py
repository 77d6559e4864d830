"""Directional derivatives of every worker's own loss, averaged: r floats, and the trajectory of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from team import Team
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import hasten
from hasten.oracles import FiniteDifference, ForwardMode, Sketched
from hasten.sketches import BalancedCountSketch, Haar

ORACLES = {
    "forward": lambda averaged: ForwardMode(averaged=averaged),
    "differences": lambda averaged: FiniteDifference(averaged=averaged),
    "sketched": lambda averaged: Sketched(averaged=averaged),
}


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, x.sin().sum(1, keepdim=True)


def trained(net: nn.Module, opt: Any, x: Tensor, y: Tensor, steps: int = 12) -> list[Tensor]:
    for _ in range(steps):
        opt.step(lambda: ((net(x) - y) ** 2).mean())
    with opt.evaluating():
        return [p.detach().clone() for p in net.parameters()]


def optimizer(model: nn.Module, oracle: Any, smoothness: Any, **options: Any) -> Any:
    sketch = BalancedCountSketch(rank=10)
    return hasten.SubspaceNesterov(
        model, sketch=sketch, oracle=oracle, smoothness=smoothness, seed=5, **options
    )


def on_workers(
    rank: int, world: int, name: str, smoothness: Any, wrapped: bool
) -> tuple[list[Tensor], Any, int]:
    net = network()
    model = DistributedDataParallel(net) if wrapped else net
    opt = optimizer(model, ORACLES[name](not wrapped), smoothness)
    x, y = (t.chunk(world)[rank] for t in batch())
    found = trained(model, opt, x, y)
    parts = {part: traffic.payload for part, traffic in opt.communication.parts.items()}
    return found, parts, opt.oracle_calls


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("smoothness", [20.0, "estimate"])
@pytest.mark.parametrize("name", ORACLES)
def test_workers_are_one_process_on_the_mean_loss(
    pair: Team, name: str, smoothness: Any, wrapped: bool
) -> None:
    (found, sent, calls), (other, _, _) = pair.run(on_workers, name, smoothness, wrapped)
    net = network()
    expected = trained(net, optimizer(net, ORACLES[name](False), smoothness), *batch())
    # Differences divide rounding errors by their step; the estimate divides them again.
    tolerance = 1e-12 if smoothness != "estimate" and name != "differences" else 1e-6
    for a, b, e in zip(found, other, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance)
    assert calls == 120
    numbers = {"loss": 12 * 8, **({"curvature": 12 * 8} if smoothness == "estimate" else {})}
    if wrapped and name == "sketched":
        assert sent == numbers
    else:
        assert sent == {"directional derivatives": 12 * 10 * 8, **numbers}


def strangers(rank: int, world: int, what: str) -> str:
    net = network()
    if what == "parameters" and rank == 1:
        with torch.no_grad():
            next(net.parameters()).add_(1)
    rank_of_sketch = 4 + (rank if what == "sketches" else 0)
    opt = hasten.SubspaceGradientDescent(
        net,
        sketch=Haar(rank=rank_of_sketch),
        oracle=ForwardMode(averaged=True),
        smoothness=20.0,
        seed=rank if what == "seed" else 0,
    )
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError) as refused:
        opt.step(lambda: net(torch.ones(2, 6, dtype=torch.float64)).sum())
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    return str(refused.value)


@pytest.mark.parametrize("what", ["seed", "parameters", "sketches"])
def test_workers_that_differ_are_refused(pair: Team, what: str) -> None:
    said = pair.run(strangers, what)
    assert said[0] == said[1]
    assert what in said[0]


def test_needs_a_process_group() -> None:
    net = network()
    opt = hasten.SubspaceNesterov(net, rank=4, oracle=ForwardMode(averaged=True), smoothness=20.0)
    with pytest.raises(RuntimeError, match="init_process_group"):
        opt.step(lambda: net(torch.ones(2, 6, dtype=torch.float64)).sum())


def nan_on_one(rank: int, world: int) -> tuple[int, bool]:
    net = network()
    opt = optimizer(net, ForwardMode(averaged=True), 20.0, on_nonfinite="skip")
    before = [p.detach().clone() for p in net.parameters()]
    factor = float("nan") if rank == 1 else 1.0
    opt.step(lambda: factor * net(torch.ones(2, 6, dtype=torch.float64)).mean())
    return opt.skipped_steps, all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_all_skip_what_is_not_finite_on_one(pair: Team) -> None:
    assert pair.run(nan_on_one) == [(1, True), (1, True)]
