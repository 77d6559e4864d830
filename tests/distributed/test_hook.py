from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

from hasten.distributed import SubspaceHook
from hasten.sketches import BalancedCountSketch


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    ).double()


def data(world: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8 * world, 20, generator=generator, dtype=torch.float64)
    return x, x.sin().sum(1, keepdim=True)


def averaged_gradients(
    rank: int, world: int, ratio: float, cap: float
) -> tuple[list[list[Tensor]], dict[str, int]]:
    model = DDP(network(), bucket_cap_mb=cap)
    hook = SubspaceHook(BalancedCountSketch(ratio=ratio), seed=3).register(model)
    x, y = (t.chunk(world)[rank] for t in data(world))
    steps = []
    for _ in range(4):
        model.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        steps.append([p.grad.clone() for p in model.parameters()])
    return steps, {"payload": hook.communication.total.payload, "calls": hook.communication.total.calls}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("cap", [0.01, 25.0])
def test_gradients_are_the_sketch_of_the_averaged_gradient(teams, world: int, cap: float) -> None:
    found = teams(world).run(averaged_gradients, 8.0, cap)
    model = network()
    x, y = data(world)
    for step in range(4):
        model.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        for i, p in enumerate(model.parameters()):
            for rank in range(world):
                assert torch.equal(found[rank][0][step][i], found[0][0][step][i])
            expected = p.grad
            if p.dim() > 1:
                draw = BalancedCountSketch(rank=max(1, -(-p.numel() // 8))).draw(
                    p.numel(), seed=3, step=step, block=i
                )
                expected = draw.lift(draw.project(p.grad)).view(p.shape)
            torch.testing.assert_close(found[0][0][step][i], expected, rtol=0, atol=1e-12)
    numbers = sum(p.numel() if p.dim() < 2 else -(-p.numel() // 8) for p in model.parameters())
    assert found[0][1]["payload"] == 4 * 8 * numbers
    assert (found[0][1]["calls"] > 4) == (cap < 1)
